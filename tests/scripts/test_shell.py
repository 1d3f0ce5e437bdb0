import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted(ROOT.glob("scripts/*.sh")), ROOT / ".ci/run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_is_bash_and_says_how_it_is_used(script):
    subprocess.run(["bash", "-n", script], check=True)
    sourced = script.name.startswith("_")
    assert os.access(script, os.X_OK) != sourced
    assert script.read_text().startswith("# Sourced by" if sourced else "#!/usr/bin/env bash\n# ")


def test_too_few_arguments_are_refused(tmp_path):
    command = [ROOT / "scripts/nondist_run.sh", "vcr/train_end2end.py", "x.yaml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("nondist_run.sh: usage: ")
