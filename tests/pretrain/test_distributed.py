"""A step does not depend on how it is dealt out: losses are means over the labels of all processes."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from common.config.schema import load_config
from common.distributed import process_group as distributed
from common.models.official_names import strip_wrapper
from common.training.optim import build_optimizer, build_schedule
from common.training.task import build_dataloader
from common.training.trainer import Trainer
from pretrain.config import PretrainConfig
from pretrain.task import PretrainTask
from tests.common.distributed.processes import run_distributed
from tests.world import run_command

NORM_FIRST = (
    "NETWORK.MLM_LOSS_NORM_IN_BATCH_FIRST=true",
    "NETWORK.MVRC_LOSS_NORM_IN_BATCH_FIRST=true",
    "NETWORK.WITH_REL_LOSS=true",
    "NETWORK.VLBERT.with_pooler=true",
    # Of tiny gradients Adam would make whole steps.
    "TRAIN.OPTIMIZER=SGD",
    "TRAIN.WARMUP=false",
    "TRAIN.LR=0.003",
)


def fit(cfg: str, settings: list[str], width: int) -> dict:
    """Trains three epochs of two steps with 20 and 6 captions, and 12 or 4 texts."""
    sizes = f"TRAIN.BATCH_IMAGES=[{20 // width},{12 // width}]"
    config = load_config(PretrainConfig, cfg, [*settings, sizes, "TRAIN.END_EPOCH=3"])
    task = PretrainTask(config)
    loader = build_dataloader(task, "train")
    torch.manual_seed(3)
    model = task.build_model()
    model.image_feature_extractor.obj_downsample[0].p = 0.0  # ranks draw their own
    optimizer = build_optimizer(config.TRAIN, dict(model.named_parameters()), width)
    trainer = Trainer(
        task, distributed.wrap_ddp(model), optimizer, build_schedule(config.TRAIN, optimizer, len(loader))
    )
    trainer.fit(loader)
    weights = {strip_wrapper(name): value for name, value in trainer.state_dict()["state_dict"].items()}
    return {"weights": weights, "metrics": trainer.metrics.compute()}


@pytest.mark.dist
@pytest.mark.parametrize(("changes", "widths"), [((), (2, 4)), (NORM_FIRST, (2,))])
def test_any_number_of_processes_learns_the_same(world, tmp_path, changes, widths):
    settings = world.settings(["TRAIN.GRAD_ACCUMULATE_STEPS=2", *changes])[1::2]
    single = fit(str(world.cfg), settings, 1)
    for width in widths:
        folder = tmp_path / str(width)
        folder.mkdir()
        ranks = run_distributed(partial(fit, str(world.cfg), settings, width), folder, width)
        for name, value in single["weights"].items():
            assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]), name
            torch.testing.assert_close(ranks[0]["weights"][name], value, atol=1e-5, rtol=1e-5, msg=name)
        assert ranks[0]["metrics"] == pytest.approx(single["metrics"], rel=1e-6)


@pytest.mark.dist
def test_two_processes_validate_as_one(world):
    assert world.train() == 0
    settings = world.settings([])
    torchrun = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = [*world.model(), "--result-name", "two", "--result-path", world.out / "results"]
    printed = run_command(*torchrun, "pretrain/val.py", *flags, *settings)
    assert printed.count("MLMAccWVC\t") == 1
    assert world.evaluate("val", *world.model(), "--result-name", "one") == 0
    one, two = (json.loads((world.out / f"results/{n}_val.json").read_text())[0] for n in ("one", "two"))
    # Losses are means of batches, as in the reference, and these are others.
    for name in ("MLMAccWVC", "MLMAccAUX", "MVRCAccuracy"):
        assert two[name] == pytest.approx(one[name])
