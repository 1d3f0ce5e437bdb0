"""For every task, microbatches have the gradient and losses of the whole batch, on one rank and on two.

The runs with limits begin with a dry run, which must not change them.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from common.config.schema import load_config
from common.distributed import process_group as distributed
from common.training.dry_run import dry_run
from common.training.optim import build_optimizer, build_schedule
from common.training.task import build_dataloader
from common.training.trainer import Trainer
from scripts.make_toy_data import ToyWorld
from tests.common.distributed.processes import run_distributed
from tests.pretrain.world import World as PretrainWorld
from tests.refcoco.world import World as RefCOCOWorld
from tests.vcr.world import World as VCRWorld
from tests.vqa.world import World as VQAWorld
from tests.world import draw

pytestmark = pytest.mark.integration

REGION_LOSS = "NETWORK.ENABLE_CNN_REG_LOSS=true"
NORM_FIRST = (
    "NETWORK.MLM_LOSS_NORM_IN_BATCH_FIRST=true",
    "NETWORK.MVRC_LOSS_NORM_IN_BATCH_FIRST=true",
    "NETWORK.WITH_REL_LOSS=true",
    "NETWORK.VLBERT.with_pooler=true",
)
# World, changes, and limits under which some batches, but not all, have several microbatches.
CASES = {
    "vcr": (VCRWorld, (REGION_LOSS,), (110, 0)),
    "vcr on top": (VCRWorld, (REGION_LOSS, "NETWORK.CNN_LOSS_TOP=true"), (0, 10)),
    "vqa": (VQAWorld, (), (48, 0)),
    "refcoco": (RefCOCOWorld, ("TRAIN.ASPECT_GROUPING=false", "SCALES=[48, 64]"), (0, 12)),
    "pretrain": (PretrainWorld, (), (60, 0)),
    "pretrain norm first": (PretrainWorld, NORM_FIRST, (60, 0)),
    "pretrain texts alone": (PretrainWorld, (), (1, 0)),
}


class Watched(Trainer):
    """Records the gradient of every step and the number of microbatches of every batch."""

    def __init__(self, *args):
        super().__init__(*args)
        self.gradients, self.num_microbatches = [], []

    def train_batch(self, microbatches):
        self.num_microbatches.append(len(microbatches))
        super().train_batch(microbatches)

    def optimizer_step(self):
        named = distributed.unwrap(self.model).named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        return super().optimizer_step()


def fit(task_class, cfg, settings):
    """Trains an epoch with two batches per update."""
    config = load_config(task_class.config_class, cfg, settings)
    task = task_class(config)
    loader = build_dataloader(task, "train")
    torch.manual_seed(3)
    model = task.build_model()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = build_optimizer(config.TRAIN, dict(model.named_parameters()), distributed.world_size())
    schedule = build_schedule(config.TRAIN, optimizer, len(loader))
    trainer = Watched(task, distributed.wrap_ddp(model), optimizer, schedule)
    dry_run(trainer, loader)
    trainer.fit(loader)
    return {
        "gradients": trainer.gradients,
        "num_microbatches": trainer.num_microbatches,
        "metrics": trainer.metrics.compute(),
    }


def both(runs):
    return [[fit(*run) for run in pair] for pair in runs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """For every case the arguments of `fit` without and with limits."""
    drawn = draw(tmp_path_factory.mktemp("drawn") / "toy", ToyWorld(train=12, val=2, test=2, zip=True))
    pairs = []
    for number, (world_class, changes, limits) in enumerate(CASES.values()):
        world = world_class(drawn, tmp_path_factory.mktemp(f"world{number}"))
        plain = [*changes, "TRAIN.GRAD_ACCUMULATE_STEPS=2"]
        limited = [*plain, f"TRAIN.MAX_TOKENS={limits[0]}", f"TRAIN.MAX_REGIONS={limits[1]}"]
        limited.append("TRAIN.DRY_RUN=always")
        pairs.append([(world.task, str(world.cfg), world.settings(each)[1::2]) for each in (plain, limited)])
    return pairs


def check(whole, parts):
    assert max(parts["num_microbatches"]) > 1
    assert len(parts["gradients"]) == len(whole["gradients"]) > 0
    for found, expected in zip(parts["gradients"], whole["gradients"], strict=True):
        assert set(found) == set(expected)
        size = torch.stack([value.norm() for value in expected.values()]).norm()
        for name, value in expected.items():
            # Single precision: the same sums in another order.
            assert (found[name] - value).norm() < 1e-5 * size, name
    assert parts["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)


@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_microbatches_equal_whole_batch(runs, number):
    check(*both(runs[number : number + 1])[0])


@pytest.mark.dist
def test_ranks_with_different_numbers_of_microbatches(runs, tmp_path):
    ranks = run_distributed(partial(both, runs), tmp_path)
    assert any(
        ours[1]["num_microbatches"] != theirs[1]["num_microbatches"]
        for ours, theirs in zip(*ranks, strict=True)
    )
    for rank in ranks:
        for whole, parts in rank:
            check(whole, parts)
