import os
import re
import subprocess

import pytest

from tests.world import ROOT

SCRIPTS = [*sorted(ROOT.glob("scripts/*.sh")), ROOT / ".ci/run"]

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_valid_bash_with_a_usage_comment(script):
    subprocess.run(["bash", "-n", script], check=True)
    sourced = script.name.startswith("_")
    assert os.access(script, os.X_OK) != sourced
    assert script.read_text().startswith("# Sourced by" if sourced else "#!/usr/bin/env bash\n# ")


@pytest.mark.parametrize(
    "name", ["nondist_run.sh", "dist_run_single.sh", "dist_run_multi.sh", "quickstart.sh"]
)
def test_script_rejects_wrong_arguments(name, tmp_path):
    command = [ROOT / "scripts" / name, "vcr/train_end2end.py", "x.yaml"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"{name}: usage: ")


@pytest.mark.parametrize("path", sorted(ROOT.glob("cfgs/*/*.yaml")), ids=lambda path: path.stem)
def test_yaml_comments_name_existing_scripts(path):
    assert all((ROOT / name).exists() for name in re.findall(r"scripts/\w+\.\w+", path.read_text()))
