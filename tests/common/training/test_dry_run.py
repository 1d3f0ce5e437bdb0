from __future__ import annotations

import dataclasses
import logging
import random

import numpy as np
import pytest
import torch
from torch import nn

from common.batch import TextSequence
from common.errors import TrainingError
from common.training import checkpoint
from common.training.dry_run import dry_run, largest_batches
from common.training.task import build_dataloader
from tests.common.training.toy import ToyBatch, ToyDataset, ToyTask, toy_config, toy_trainer


class Growing(ToyDataset):
    """Item i has i boxes and i + 1 words; every second picture is high, the others are wide. Or texts alone."""

    def __init__(self, num_items, texts=False):
        super().__init__(num_items)
        self.texts = texts

    def load(self, index, rng):
        words = np.zeros(index + 1, dtype=np.int64)
        padded_size = (10, 20 + index) if index % 2 else (30 + index, 10)
        fields = vars(super().load(index, rng)) | {
            "texts": (TextSequence(words, words, words),),
            "boxes": torch.zeros(0 if self.texts else index, 4),
            "image": None if self.texts else torch.zeros(3, 2, 2, dtype=torch.uint8),
            "padded_size": (0, 0) if self.texts else padded_size,
        }
        return dataclasses.replace(super().load(index, rng), **fields)


def batches(datasets, **train):
    values = {"ASPECT_GROUPING": False, "BATCH_IMAGES": 3, **train}
    found = largest_batches(datasets, toy_config(**values).TRAIN)
    return [[part.index.tolist() for part in parts] for parts in found], found


def test_largest_batches_repeat_the_largest_sample():
    indices, ((batch,),) = batches([Growing(8)])
    assert indices == [[[7, 7, 7]]]
    assert isinstance(batch, ToyBatch)
    # Wide and high pictures may meet, unless they are batched apart.
    assert batch.images.shape == (3, 3, 36, 27)
    assert batches([Growing(8)], ASPECT_GROUPING=True)[1][0][0].images.shape == (3, 3, 10, 27)


def test_largest_batches_read_a_subset():
    assert batches([Growing(1000)])[0] == [[[984, 984, 984]]]


def test_largest_batches_fill_limits():
    # Places: 2 i + 2.
    assert batches([Growing(8)], BATCH_IMAGES=9, MAX_TOKENS=40)[0] == [[[7, 7, 3]]]
    assert batches([Growing(8)], BATCH_IMAGES=2, MAX_TOKENS=40)[0] == [[[7, 7]]]
    assert batches([Growing(8)], BATCH_IMAGES=4, MAX_REGIONS=8)[0] == [[[7, 1, 0, 0]]]
    assert batches([Growing(8)], BATCH_IMAGES=4, MAX_TOKENS=10)[0] == [[[7]]]


def test_largest_batches_start_with_each_dataset():
    datasets = [Growing(4), Growing(9, texts=True)]
    sizes = {"BATCH_IMAGES": [2, 2]}
    assert batches(datasets, **sizes)[0] == [[[3, 3, 8, 8]]]
    # Places: 2 i + 2 of pictures, i + 2 of texts.
    assert batches(datasets, **sizes, MAX_TOKENS=20)[0] == [[[3, 3, 2]], [[8, 8]]]


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch):
        return self.linear(self.dropout(self.norm(batch.x)))


class Watching(ToyTask):
    def __init__(self, config):
        super().__init__(config)
        self.sizes = []

    def losses(self, outputs, batch):
        self.sizes.append(batch.num_samples)
        if self.sizes[-1] == 12:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().losses(outputs, batch)


def rehearse(**train):
    config = toy_config(**{"DRY_RUN": "always", "OPTIMIZER": "AdamW", **train})
    config = config.model_copy(update={"NUM_WORKERS_PER_GPU": 0, "RNG_SEED": 1})
    trainer = toy_trainer(config, 3, task_class=Watching, model=Noisy())
    loader = build_dataloader(trainer.task, "train")
    dry_run(trainer, loader)
    return trainer, loader


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_dry_run_restores_state(caplog):
    torch.manual_seed(3)
    before, weights, drawn = checkpoint.rng_state(), state(Noisy()), random.getstate()
    checkpoint.load_rng_state(before)
    with caplog.at_level(logging.INFO):
        trainer, _ = rehearse(BATCH_IMAGES=4)
    assert trainer.task.sizes == [4]
    assert "dry run: a batch of index (4,), " in caplog.text
    torch.testing.assert_close(state(trainer.model), weights, rtol=0, atol=0)
    expected = torch.get_rng_state()
    checkpoint.load_rng_state(before)
    Noisy()
    assert torch.equal(torch.get_rng_state(), expected)
    assert random.getstate() == drawn
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.metrics.state_dict() == {}
    assert trainer.optimizer.state_dict()["state"] == {}


def test_dry_run_reports_out_of_memory():
    with pytest.raises(TrainingError) as error:
        rehearse(BATCH_IMAGES=12)
    text = str(error.value)
    assert text.startswith(
        "dry run of the largest batch (TRAIN.DRY_RUN): out of memory with a batch of index (12,), "
    )
    assert "lower TRAIN.MAX_TOKENS" in text


@pytest.mark.parametrize("changes", [{"DRY_RUN": "auto"}, {"DRY_RUN": "never"}, {"BEGIN_EPOCH": 2}])
def test_dry_run_is_skipped(changes):
    assert rehearse(**changes)[0].task.sizes == []
