"""Loaders and models of a task, and what a checkpoint predicts."""

from __future__ import annotations

from typing import Any

from common.config.fields import Split
from common.config.sections import TrainConfig
from common.data.collate import NO_LIMITS, Limits
from common.data.loader import BatchLoader, build_loader
from common.data.samplers import EpochBatches, JointBatches
from common.distributed import process_group as distributed
from common.training.task import AnyTask


def build_dataloader(task: AnyTask, split: Split) -> BatchLoader[Any]:
    """Opens a split and builds this process's loader; only training repeats samples to deal out evenly.

    Of further datasets, an evaluation takes as many batches as of the first.
    """
    config = task.config
    loop = config.loop(split)
    training = split == "train"
    datasets = task.build_datasets(split)
    steps = -(-len(datasets[0]) // loop.batch_sizes[0])
    parts = [
        EpochBatches(
            len(dataset) if training else min(len(dataset), steps * size),
            size,
            shuffle=loop.SHUFFLE,
            seed=config.RNG_SEED,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            groups=dataset.groups() if training and config.TRAIN.ASPECT_GROUPING else None,
            pad=training,
            source=source,
        )
        for source, (dataset, size) in enumerate(zip(datasets, loop.batch_sizes, strict=True))
    ]
    return build_loader(
        datasets,
        JointBatches(parts) if len(parts) > 1 else parts[0],
        batch_type=datasets[0].batch_type,
        num_workers=config.NUM_WORKERS_PER_GPU,
        pin_memory=True,
        limits=limits_of(config.TRAIN) if training else NO_LIMITS,
    )


def limits_of(train: TrainConfig) -> Limits:
    """The limits of `TRAIN.MAX_TOKENS` and `TRAIN.MAX_REGIONS`."""
    return Limits(train.MAX_TOKENS, train.MAX_REGIONS)
