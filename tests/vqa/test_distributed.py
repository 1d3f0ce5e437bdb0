"""The commands of VQA with two processes on CPUs."""

from __future__ import annotations

import json

import pytest

from tests.world import ROOT, run_command


@pytest.mark.dist
def test_two_processes_train_validate_and_test(world):
    script = [ROOT / "scripts/dist_run_single.sh", 2, "vqa/train_end2end.py", world.cfg, world.out]
    # A pooler that nothing trains must not stop the other process.
    settings = world.settings(["TRAIN.BATCH_IMAGES=2", "NETWORK.VLBERT.with_pooler=true"])
    run_command(*script, "--do-test", *settings)
    torchrun = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for command in ("val", "test"):
        flags = [*world.model(), "--result-name", "x"]
        printed = run_command(
            *torchrun, f"vqa/{command}.py", "--result-path", world.out / "two", *flags, *settings
        )
        assert printed.count("overall\t") == (command == "val")
        pooler = ("NETWORK.VLBERT.with_pooler=true",)
        assert world.evaluate(command, *flags, "--result-path", str(world.out / "one"), changes=pooler) == 0
    for name in ("x_vqa2_val2014.json", "x_vqa2_test2015.json"):
        one, two = (json.loads((world.out / folder / name).read_text()) for folder in ("one", "two"))
        assert one == two
