"""RefCOCO with pictures batched by orientation, on several processes: where the reference waits for ever."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from common.config.schema import load_config
from common.distributed import process_group as distributed
from common.training.optim import build_optimizer, build_schedule
from common.training.task import build_dataloader
from common.training.trainer import Trainer
from refcoco.config import RefCOCOConfig
from refcoco.task import RefCOCOTask
from tests.common.distributed.processes import run_distributed

EPOCHS = 3


class Counted(Trainer):
    """Keeps the epoch of every batch, its samples, and whether their pictures are high."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = []

    def _micro_step(self, parts, watch):
        (batch,) = parts
        high = (batch.im_info[:, 0] < batch.im_info[:, 1]).tolist()
        self.seen.append({"epoch": self.epoch, "index": batch.index.tolist(), "high": high})
        super()._micro_step(parts, watch)


def fit(cfg, settings):
    config = load_config(RefCOCOConfig, cfg, settings)
    task = RefCOCOTask(config)
    loader = build_dataloader(task, "train")
    torch.manual_seed(3)
    model = distributed.wrap_ddp(task.build_model())
    optimizer = build_optimizer(config.TRAIN, dict(model.named_parameters()), distributed.world_size())
    trainer = Counted(task, model, optimizer, build_schedule(config.TRAIN, optimizer, len(loader)))
    trainer.fit(loader)
    return trainer.seen


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_make_equally_many_batches_of_one_orientation(world, tmp_path, ranks):
    changes = ["TRAIN.ASPECT_GROUPING=true", "SCALES=[48, 64]", f"TRAIN.END_EPOCH={EPOCHS}"]
    settings = world.settings([*changes, "TRAIN.BATCH_IMAGES=2"])[1::2]
    seen = run_distributed(partial(fit, str(world.cfg), settings), tmp_path, ranks)
    assert {high for rank in seen for batch in rank for high in batch["high"]} == {False, True}
    assert all(len(set(batch["high"])) == 1 for rank in seen for batch in rank)
    for epoch in range(EPOCHS):
        batches = [[batch["index"] for batch in rank if batch["epoch"] == epoch] for rank in seen]
        assert len({len(own) for own in batches}) == 1
        everything = {index for own in batches for batch in own for index in batch}
        assert everything == set(range(len(everything)))
        assert len(everything) >= 12
