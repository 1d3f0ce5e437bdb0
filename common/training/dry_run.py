"""The largest batch forward and backward before the first step: memory runs out in the first minute or not at all."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.batch import Batch, Sample
from common.config.sections import TrainConfig
from common.data.collate import NO_LIMITS, Limits, Size, collate_microbatches
from common.data.dataset import VisualLinguisticDataset
from common.data.loader import BatchLoader
from common.data.samplers import ItemKey
from common.distributed import process_group as distributed
from common.training.loaders import limits_of
from common.training.precision import to_float32
from common.training.step_monitor import oom_context, shapes
from common.training.trainer import Trainer

logger = logging.getLogger(__name__)


SAMPLES = 64
"""How many samples of each dataset are read, spread over it; the largest of them fill the batch."""


Datasets = Sequence[VisualLinguisticDataset[Any]]


def dry_run(trainer: Trainer, loader: BatchLoader[Any]) -> None:
    """Runs the largest batch through the model as `TRAIN.DRY_RUN` says, and leaves everything as it was.

    Every rank does it for itself, beside as much memory as the optimizer will take.

    Args:
        trainer: before `fit`; no gradient exists yet.
        loader: of the training data.

    Raises:
        TrainingError: the batch does not fit into memory.
        DataError: a record cannot be read.
    """
    train, device = trainer.train, trainer.device
    wanted = train.DRY_RUN == "always" or (train.DRY_RUN == "auto" and device.type == "cuda")
    if not wanted or trainer.epoch >= train.END_EPOCH:
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    model = distributed.unwrap(trainer.model)
    model.train()
    parts = [part for batch in largest_batches(loader.datasets, train) for part in batch]
    with torch.random.fork_rng([device] if on_gpu else []), _restored(model):
        kept = _optimizer_state(trainer.optimizer)
        for part in parts:
            with oom_context("dry run of the largest batch (TRAIN.DRY_RUN)", part):
                _step(trainer, model, part.to(device))
        del kept
    for part in parts:
        logger.info("dry run: a batch of %s fits", shapes(part))
    if on_gpu:
        peak, there = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_properties(device)
        logger.info("dry run: at most %.1f of %.1f GiB", peak / 2**30, there.total_memory / 2**30)


def largest_batches(datasets: Datasets, train: TrainConfig) -> list[tuple[Batch, ...]]:
    """Batches of copies of the largest samples of some that are read, in parts as the limits ask for.

    With limits they are filled up to those, once for each dataset that comes first in doing so.

    Args:
        datasets: of the training; of several, each gives as many samples as its entry of `BATCH_IMAGES`.
        train: sizes and limits of batches.
    """
    limits = limits_of(train)
    pools = [_samples(dataset, source) for source, dataset in enumerate(datasets)]
    pools = [_on_largest_canvas(pool, grouped=train.ASPECT_GROUPING) for pool in pools]
    firsts = range(len(pools)) if limits != NO_LIMITS else [0]
    return [
        collate_microbatches(_fill(pools, train.batch_sizes, limits, first), datasets[0].batch_type, limits)
        for first in firsts
    ]


def _samples(dataset: VisualLinguisticDataset[Any], source: int) -> list[Sample]:
    """Some samples of a dataset, the largest first."""
    read = min(SAMPLES, len(dataset))
    places = [number * len(dataset) // read for number in range(read)]
    samples: list[Sample] = [dataset[ItemKey(0, place, source)] for place in places]
    return sorted(samples, key=Size.of, reverse=True)


def _on_largest_canvas(samples: Sequence[Sample], grouped: bool) -> list[Sample]:
    """Gives every picture the largest padded_size that it can meet in a batch: that of its orientation if grouped."""

    def orientation(sample: Sample) -> bool:
        height, width = sample.padded_size
        return grouped and width < height

    largest: dict[bool, tuple[int, int]] = {}
    for sample in samples:
        height, width = largest.get(orientation(sample), (0, 0))
        largest[orientation(sample)] = max(height, sample.padded_size[0]), max(width, sample.padded_size[1])
    return [dataclasses.replace(sample, padded_size=largest[orientation(sample)]) for sample in samples]


def _fill(pools: Sequence[list[Sample]], counts: Sequence[int], limits: Limits, first: int) -> list[Sample]:
    """Takes the largest sample that still fits again and again, beginning with the pool `first`."""
    taken: list[list[Sample]] = [[] for _ in pools]
    total = Size(0, 0)
    for source in sorted(range(len(pools)), key=lambda source: (source != first, source)):
        while len(taken[source]) < counts[source]:
            fitting = (sample for sample in pools[source] if limits.fits(total.plus(Size.of(sample))))
            # A sample above the limits is a part of its own.
            sample = next(fitting, None) if any(taken) else pools[source][0]
            if sample is None:
                break
            taken[source].append(sample)
            total = total.plus(Size.of(sample))
    return [sample for samples in taken for sample in samples]


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Puts back what training forward and backward change: the statistics of batch norm, and no gradients."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(before[name])
        for parameter in model.parameters():
            parameter.grad = None


def _optimizer_state(optimizer: Optimizer) -> list[Tensor]:
    """As much memory as the optimizer takes with its first update."""
    moments = 2 if "betas" in optimizer.defaults else 1
    return [
        torch.empty_like(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and not optimizer.state.get(parameter)
        for _ in range(moments)
    ]


def _step(trainer: Trainer, model: nn.Module, part: Batch) -> None:
    with trainer.precision.autocast():
        outputs = model(part)
    losses = trainer.task.losses(to_float32(outputs), part)
    trainer.precision.backward(trainer.task.total(losses))
