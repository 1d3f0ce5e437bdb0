"""Metrics and predictions over a whole split: every sample once, on any number of processes."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common.batch import Batch
from common.config_types import Split
from common.data.loader import explained_workers
from common.engine import distributed
from common.engine.guard import explained_memory
from common.engine.metrics import Metrics, loss_over
from common.engine.precision import Precision, single
from common.engine.task import PredictingTask, Task
from common.engine.trainer import Loader, batches_of


def outputs_of(
    task: Task[Any, Any, Any],
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    precision: Precision | None,
) -> Iterator[tuple[Any, Batch]]:
    """Runs the model over a split in evaluation mode, and leaves it so; yields outputs and batches on the device."""
    model = distributed.unwrap(model).eval()
    distributed.share_buffers(model)
    precision = precision or Precision(device)
    shown = distributed.is_main() and sys.stderr.isatty()
    # Epoch 0 always: random decisions of a validation item (masks of pre-training) stay the same.
    shown_batches = tqdm(
        batches_of(loader, 0), total=len(loader), desc=task.name, leave=False, disable=not shown
    )
    with explained_workers(evaluation=loader):
        for batch in shown_batches:
            moved = batch.to(device)
            with explained_memory("evaluation", batch), torch.inference_mode(), precision.autocast():
                outputs = model(moved)
            yield single(outputs), moved


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
    for outputs, batch in outputs_of(task, model, loader, device, precision):
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
    for outputs, batch in outputs_of(task, model, loader, device, precision):
        with torch.inference_mode():
            records += zip(batch.index.tolist(), task.predictions(outputs, batch), strict=True)
    gathered = sorted(
        itertools.chain.from_iterable(distributed.gather_objects(records)), key=lambda entry: entry[0]
    )
    assert [index for index, _ in gathered] == list(range(len(gathered))), "every sample exactly once"
    return [record for _, record in gathered]
