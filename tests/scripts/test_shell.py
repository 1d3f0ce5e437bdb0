import os
import re
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


@pytest.mark.parametrize("name", ["nondist_run.sh", "dist_run_single.sh", "dist_run_multi.sh"])
def test_too_few_arguments_are_refused(name, tmp_path):
    command = [ROOT / "scripts" / name, "vcr/train_end2end.py", "x.yaml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"{name}: usage: ")


@pytest.mark.parametrize("path", sorted(ROOT.glob("cfgs/*/*.yaml")), ids=lambda path: path.stem)
def test_the_commands_in_the_yaml_files_exist(path):
    commands = re.findall(r"scripts/\w+\.\w+", path.read_text())
    assert all((ROOT / command).exists() for command in commands)
