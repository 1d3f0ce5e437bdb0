"""Data loaders of a task's splits."""

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
    """Opens a split and builds the loader of this rank.

    Training pads the last batches with repeated samples so that all ranks have equally many. An evaluation sees every
    sample of the first dataset once, and takes as many batches from the others.
    """
    config = task.config
    loop = config.loop(split)
    training = split == "train"
    datasets = task.build_datasets(split)
    num_batches = -(-len(datasets[0]) // loop.batch_sizes[0])
    samplers = [
        EpochBatches(
            len(dataset) if training else min(len(dataset), num_batches * size),
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
        JointBatches(samplers) if len(samplers) > 1 else samplers[0],
        batch_type=datasets[0].batch_type,
        num_workers=config.NUM_WORKERS_PER_GPU,
        pin_memory=True,
        limits=limits_of(config.TRAIN) if training else NO_LIMITS,
    )


def limits_of(train: TrainConfig) -> Limits:
    return Limits(train.MAX_TOKENS, train.MAX_REGIONS)
