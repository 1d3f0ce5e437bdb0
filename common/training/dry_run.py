"""Forward and backward of the largest batch before training, so that memory runs out early or not at all."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import torch

from common.batch import Batch, Sample
from common.config.sections import TrainConfig
from common.data.collate import NO_LIMITS, MicrobatchSize, collate_microbatches
from common.data.dataset import VisualLinguisticDataset
from common.data.loader import BatchLoader
from common.data.samplers import ItemKey
from common.distributed import process_group as distributed
from common.training.precision import to_float32
from common.training.step_monitor import describe_shapes, oom_context
from common.training.task import limits_of
from common.training.trainer import Trainer

logger = logging.getLogger(__name__)

NUM_SAMPLES = 64
"""Samples that are read from each dataset, at even distances. The largest of them fill the batch."""


def dry_run(trainer: Trainer, loader: BatchLoader[Any]) -> None:
    """Runs the largest batch forward and backward if `TRAIN.DRY_RUN` says so, and restores all state.

    Every rank does this for itself, with as much memory allocated as the optimizer will need.

    Args:
        trainer: before `fit`; no gradients exist yet.
        loader: loader of the training data.

    Raises:
        TrainingError: the batch does not fit into memory.
        DataError: a record cannot be read.
    """
    config, device, optimizer = trainer.config, trainer.device, trainer.optimizer
    on_gpu = device.type == "cuda"
    enabled = config.DRY_RUN == "always" or (config.DRY_RUN == "auto" and on_gpu)
    if not enabled or trainer.state.epoch >= config.END_EPOCH:
        return
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    # Without DDP: no collective here, since ranks may have different numbers of microbatches.
    model = distributed.unwrap(trainer.model)
    model.train()
    microbatches = [microbatch for batch in largest_batches(loader.datasets, config) for microbatch in batch]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    moments = 2 if "betas" in optimizer.defaults else 1
    optimizer_memory = [
        torch.empty_like(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and not optimizer.state.get(parameter)
        for _ in range(moments)
    ]
    try:
        with torch.random.fork_rng([device] if on_gpu else []):
            for microbatch in microbatches:
                with oom_context("dry run of the largest batch (TRAIN.DRY_RUN)", microbatch):
                    on_device = microbatch.to(device)
                    with trainer.precision.autocast():
                        outputs = model(on_device)
                    losses = trainer.task.losses(to_float32(outputs), on_device)
                    trainer.precision.backward(trainer.task.total(losses))
    finally:
        del optimizer_memory
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
        for parameter in model.parameters():
            parameter.grad = None
    for microbatch in microbatches:
        logger.info("dry run: a batch of %s fits", describe_shapes(microbatch))
    if on_gpu:
        peak, total = (
            torch.cuda.max_memory_allocated(device),
            torch.cuda.get_device_properties(device).total_memory,
        )
        logger.info("dry run: peak memory %.1f of %.1f GiB", peak / 2**30, total / 2**30)


def largest_batches(
    datasets: Sequence[VisualLinguisticDataset[Any]], train: TrainConfig
) -> list[tuple[Batch, ...]]:
    """Builds batches from copies of the largest samples, split into microbatches.

    With `TRAIN.MAX_TOKENS` or `TRAIN.MAX_REGIONS` the batches are filled up to these limits, once with each dataset
    first.

    Args:
        datasets: training datasets; each one gives as many samples as its entry of `BATCH_IMAGES`.
        train: batch sizes and limits.
    """
    limits = limits_of(train)
    pools = [
        _largest_samples(dataset, source, train.ASPECT_GROUPING) for source, dataset in enumerate(datasets)
    ]
    batches = []
    for first in range(len(pools)) if limits != NO_LIMITS else [0]:
        chosen: list[list[Sample]] = [[] for _ in pools]
        total = MicrobatchSize(0, 0)
        for source in sorted(range(len(pools)), key=lambda source: (source != first, source)):
            while len(chosen[source]) < train.batch_sizes[source]:
                fitting = (s for s in pools[source] if limits.fits(total.plus(MicrobatchSize.of(s))))
                # A sample that exceeds the limits on its own becomes a microbatch of its own.
                sample = next(fitting, None) if any(chosen) else pools[source][0]
                if sample is None:
                    break
                chosen[source].append(sample)
                total = total.plus(MicrobatchSize.of(sample))
        samples = [sample for pool in chosen for sample in pool]
        batches.append(collate_microbatches(samples, datasets[0].batch_type, limits))
    return batches


def _largest_samples(
    dataset: VisualLinguisticDataset[Any], source: int, aspect_grouping: bool
) -> list[Sample]:
    """Reads samples of a dataset, largest first, each padded to the largest size that it can meet in a batch."""
    count = min(NUM_SAMPLES, len(dataset))
    samples: list[Sample] = [
        dataset[ItemKey(0, index * len(dataset) // count, source)] for index in range(count)
    ]
    samples.sort(key=MicrobatchSize.of, reverse=True)
    # With aspect grouping, portrait and landscape images do not share batches.
    is_portrait = [aspect_grouping and s.padded_size[1] < s.padded_size[0] for s in samples]
    largest: dict[bool, tuple[int, int]] = {}
    for sample, portrait in zip(samples, is_portrait, strict=True):
        height, width = largest.get(portrait, (0, 0))
        largest[portrait] = max(height, sample.padded_size[0]), max(width, sample.padded_size[1])
    return [
        dataclasses.replace(sample, padded_size=largest[portrait])
        for sample, portrait in zip(samples, is_portrait, strict=True)
    ]
