"""Metrics and predictions of a whole split: every sample once, on any number of processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from common.batch import Batch
from common.config.fields import Split
from common.data.loader import Loader, epoch_batches, worker_crash_context
from common.distributed import process_group as distributed
from common.progress import track
from common.training.metrics import Metrics, loss_over
from common.training.precision import Precision, to_float32
from common.training.step_monitor import oom_context
from common.training.task import AnyPredictingTask, AnyTask


def iterate_outputs(
    task: AnyTask, model: nn.Module, loader: Loader, device: torch.device, precision: Precision | None
) -> Iterator[tuple[Any, Batch]]:
    """Runs the model in evaluation mode and yields float32 outputs with their batches, on the device. Collective."""
    # Without DDP: ranks may have different numbers of batches, and DDP may communicate in every forward pass.
    model = distributed.unwrap(model).eval()
    distributed.broadcast_buffers(model)
    precision = precision or Precision(device)
    # Always epoch 0, so that random choices such as pre-training masks are the same in every evaluation.
    batches = epoch_batches(loader, 0)
    with worker_crash_context(evaluation=loader):
        for batch in track(batches, task.name, len(loader), "batch", disable=not distributed.is_main()):
            on_device = batch.to(device)
            with oom_context("evaluation", batch), torch.inference_mode(), precision.autocast():
                outputs = model(on_device)
            yield to_float32(outputs), on_device


def evaluate(
    task: AnyTask,
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    split: Split = "val",
    precision: Precision | None = None,
) -> dict[str, float]:
    """Returns the metrics of a split, and its losses if the task validates them. Collective.

    Losses are means over all labels of the split, so they do not depend on the batch size.

    Args:
        task: defines metrics and losses.
        model: the model, on `device`; left in evaluation mode.
        loader: the batches of this rank.
        device: device that batches are moved to.
        split: the split.
        precision: float32 by default.
    """
    metrics = Metrics(device)
    loggers = task.config.TRAIN.LOSS_LOGGERS if task.validates_losses else ()
    for outputs, batch in iterate_outputs(task, model, loader, device, precision):
        with torch.inference_mode():
            values = task.metrics(outputs, batch, split)
            if loggers:
                losses, counts = task.losses(outputs, batch), task.label_counts(batch)
                zero = next(iter(losses.values())).new_zeros(())
                for key, name in loggers:
                    # As in the reference, a loss that the model does not have is reported as 0.
                    loss, count = (losses[key], counts.get(key, 1)) if key in losses else (zero, 1)
                    values[name] = loss_over(loss, count)
            metrics.update(values)
    # One all-reduce at the end: a rank without batches takes part in it.
    return metrics.compute()


def predict(
    task: AnyPredictingTask,
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    precision: Precision | None = None,
) -> list[dict[str, Any]]:
    """Returns one record per sample in dataset order, on every rank. Collective; arguments as in `evaluate`."""
    records: list[tuple[int, dict[str, Any]]] = []
    for outputs, batch in iterate_outputs(task, model, loader, device, precision):
        with torch.inference_mode():
            records += zip(batch.index.tolist(), task.predictions(outputs, batch), strict=True)
    gathered = itertools.chain.from_iterable(distributed.gather_objects(records))
    in_order = sorted(gathered, key=lambda entry: entry[0])
    assert [index for index, _ in in_order] == list(range(len(in_order))), "every sample exactly once"
    return [record for _, record in in_order]
