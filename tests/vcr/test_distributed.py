"""The commands with two processes on CPUs."""

from __future__ import annotations

import pytest

from common.models.pretrained import read_weights
from tests.vcr.world import CFGS, World
from tests.world import ROOT, run_command


def files(world: World, name: str) -> dict[str, bytes]:
    folder = world.out / name
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".model"}


@pytest.mark.dist
def test_two_processes_train_validate_and_test(world):
    script = [ROOT / "scripts/dist_run_single.sh", 2, "vcr/train_end2end.py"]
    for part, cfg in CFGS.items():
        run_command(*script, cfg, world.out, "--do-test", *world.settings(["TRAIN.BATCH_IMAGES=2"]))
        assert all(name.startswith("module.") for name in read_weights(world.checkpoint(part))["state_dict"])
    assert len(list(world.out.rglob("*_test_result_*.csv"))) == 2
    torchrun = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    models = [*world.model("Q2A"), *world.model("QA2R"), *world.settings([])]
    printed = run_command(*torchrun, "vcr/val.py", "--result-path", world.out / "two", *models)
    assert printed.count("Q->AR") == 1
    run_command(*torchrun, "vcr/test.py", "--result-path", world.out / "two", *models)
    both = (*world.model("Q2A"), *world.model("QA2R"))
    for command in ("val", "test"):
        assert world.evaluate(command, *both, "--result-path", str(world.out / "one")) == 0
    one, two = files(world, "one"), files(world, "two")
    assert set(one) == set(two)
    assert len(one) == 7
