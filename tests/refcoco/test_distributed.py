"""RefCOCO with batches of one image orientation, on several processes. The reference hangs on some of these data."""

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


class RecordingTrainer(Trainer):
    """Records epoch, samples, and which images are portrait, of every batch."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batches = []

    def train_batch(self, microbatches):
        (batch,) = microbatches
        portrait = (batch.im_info[:, 0] < batch.im_info[:, 1]).tolist()
        self.batches.append({"epoch": self.state.epoch, "index": batch.index.tolist(), "portrait": portrait})
        super().train_batch(microbatches)


def fit(cfg, settings):
    config = load_config(RefCOCOConfig, cfg, settings)
    task = RefCOCOTask(config)
    loader = build_dataloader(task, "train")
    torch.manual_seed(3)
    model = distributed.wrap_ddp(task.build_model())
    optimizer = build_optimizer(config.TRAIN, dict(model.named_parameters()), distributed.world_size())
    trainer = RecordingTrainer(task, model, optimizer, build_schedule(config.TRAIN, optimizer, len(loader)))
    trainer.fit(loader)
    return trainer.batches


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_have_equally_many_batches_of_one_orientation(world, tmp_path, ranks):
    changes = ["TRAIN.ASPECT_GROUPING=true", "SCALES=[48, 64]", f"TRAIN.END_EPOCH={EPOCHS}"]
    settings = world.settings([*changes, "TRAIN.BATCH_IMAGES=2"])[1::2]
    by_rank = run_distributed(partial(fit, str(world.cfg), settings), tmp_path, ranks)
    assert {value for rank in by_rank for batch in rank for value in batch["portrait"]} == {False, True}
    assert all(len(set(batch["portrait"])) == 1 for rank in by_rank for batch in rank)
    for epoch in range(EPOCHS):
        batches = [[batch["index"] for batch in rank if batch["epoch"] == epoch] for rank in by_rank]
        assert len({len(rank) for rank in batches}) == 1
        indices = {index for rank in batches for batch in rank for index in batch}
        assert indices == set(range(len(indices)))
        assert len(indices) >= 12
