"""Metrics and predictions over a whole split: every sample once, on any number of processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from common.batch import Batch
from common.config.fields import Split
from common.data.loader import Loader, batches_of, worker_crash_context
from common.distributed import process_group as distributed
from common.progress import track
from common.training.metrics import Metrics, loss_over
from common.training.precision import Precision, to_float32
from common.training.step_monitor import oom_context
from common.training.task import PredictingTask, Task


def iterate_outputs(
    task: Task[Any, Any, Any],
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    precision: Precision | None,
) -> Iterator[tuple[Any, Batch]]:
    """Runs the model over a split in evaluation mode, and leaves it so; yields outputs and batches on the device."""
    model = distributed.unwrap(model).eval()
    distributed.broadcast_buffers(model)
    precision = precision or Precision(device)
    # Always epoch 0, so that random choices such as pre-training masks are the same in every evaluation.
    batches = batches_of(loader, 0)
    with worker_crash_context(evaluation=loader):
        for batch in track(batches, task.name, len(loader), "batch", disable=not distributed.is_main()):
            moved = batch.to(device)
            with oom_context("evaluation", batch), torch.inference_mode(), precision.autocast():
                outputs = model(moved)
            yield to_float32(outputs), moved


def evaluate(
    task: Task[Any, Any, Any],
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    split: Split = "val",
    precision: Precision | None = None,
) -> dict[str, float]:
    """Returns the metrics of a split over all processes, and the losses where the task validates them.

    Losses are means over the labels of the split, whatever the batches.

    Args:
        task: tells the metrics.
        model: its network, on `device`.
        loader: the part of the split that belongs to this process.
        device: where batches are moved to.
        split: name of the split.
        precision: number format, single precision by default.
    """
    metrics = Metrics(device)
    loggers = task.config.TRAIN.LOSS_LOGGERS if task.validates_losses else ()
    for outputs, batch in iterate_outputs(task, model, loader, device, precision):
        with torch.inference_mode():
            values = task.metrics(outputs, batch, split)
            if loggers:
                losses, counts = task.losses(outputs, batch), task.label_counts(batch)
                none = next(iter(losses.values())).new_zeros(())
                for key, name in loggers:
                    # A loss that the model does not have is 0, however many labels there are.
                    values[name] = loss_over(
                        losses.get(key, none), counts.get(key, 1) if key in losses else 1
                    )
            metrics.update(values)
    return metrics.compute()


def predict(
    task: PredictingTask[Any, Any, Any],
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    precision: Precision | None = None,
) -> list[dict[str, Any]]:
    """Returns one record per sample, in dataset order, on every process. Arguments as in `evaluate`."""
    records: list[tuple[int, dict[str, Any]]] = []
    for outputs, batch in iterate_outputs(task, model, loader, device, precision):
        with torch.inference_mode():
            records += zip(batch.index.tolist(), task.predictions(outputs, batch), strict=True)
    gathered = sorted(
        itertools.chain.from_iterable(distributed.gather_objects(records)), key=lambda entry: entry[0]
    )
    assert [index for index, _ in gathered] == list(range(len(gathered))), "every sample exactly once"
    return [record for _, record in gathered]
