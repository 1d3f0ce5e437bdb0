"""Diagnostics of a training step: phase times, stall detection, out-of-memory messages, losses for error reports."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.batch import Batch, Lengths, Record
from common.distributed.stall_detection import StallDetector
from common.errors import TrainingError


class PhaseTimes(NamedTuple):
    """Seconds that the host spends in the phases of one batch. A GPU may still be working on them."""

    data: float = 0.0
    transfer: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
    metric: float = 0.0


_ACTIVITIES = {
    "data": "reading a batch",
    "transfer": "moving a batch to the device",
    "forward": "a forward pass",
    "backward": "a backward pass",
    "optimizer": "an optimizer step",
    "metric": "updating the metrics",
}


class LossRecord(NamedTuple):
    """Losses of one microbatch, for the report about values that are not finite."""

    where: str
    record_ids: tuple[str, ...]
    losses: Mapping[str, Tensor]


class StepMonitor:
    """Observes a training step so that the step itself contains nothing but training.

    Args:
        stall_detector: hears of the progress of this rank.
    """

    def __init__(self, stall_detector: StallDetector) -> None:
        self.stall_detector = stall_detector
        self._last = time.perf_counter()
        self._times = PhaseTimes()
        self._loss_records: list[LossRecord] = []
        self._where = ""
        self._synchronized = True

    def start_epoch(self) -> None:
        """Restarts the clock, so that validation does not count as reading data."""
        self._last, self._times = time.perf_counter(), PhaseTimes()

    def record(self, phase: str) -> None:
        """Adds the time since the last call to `phase` and reports progress to the stall detector."""
        # Ranks may have different numbers of microbatches. Only what all of them do counts as progress.
        if self._synchronized:
            self.stall_detector.heartbeat(_ACTIVITIES[phase])
        else:
            self.stall_detector.keep_alive(_ACTIVITIES[phase])
        last, self._last = self._last, time.perf_counter()
        self._times = self._times._replace(**{phase: getattr(self._times, phase) + self._last - last})

    @contextmanager
    def batch(self, where: str, batch: Batch) -> Iterator[None]:
        """Names the batch if memory runs out inside."""
        self._where = where
        with oom_context(where, batch):
            yield

    @contextmanager
    def microbatch(self, index: int, count: int, batch: Batch) -> Iterator[None]:
        """Names the microbatch if memory runs out inside; only the last one of a batch counts as progress."""
        outer = self._where
        if count > 1:
            self._where += f", microbatch {index + 1} of {count}"
        self._synchronized = index + 1 == count
        try:
            with oom_context(self._where, batch):
                yield
        finally:
            self._where, self._synchronized = outer, True

    def record_losses(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Keeps the losses of the current microbatch until the optimizer step, without copying them to the host."""
        values = {name: loss.detach() for name, loss in losses.items()}
        self._loss_records.append(LossRecord(self._where, batch.record_ids, values))

    def pop_loss_records(self) -> list[LossRecord]:
        """Returns the losses since the last call."""
        records, self._loss_records = self._loss_records, []
        return records

    def end_batch(self) -> PhaseTimes:
        """Returns the phase times of the batch."""
        self.stall_detector.first_step_done()
        times, self._times = self._times, PhaseTimes()
        return times


@contextmanager
def oom_context(where: str, batch: Batch) -> Iterator[None]:
    """Replaces an out-of-memory error by one that describes the batch.

    Raises:
        TrainingError: memory ran out inside.
    """
    try:
        yield
    except RuntimeError as error:
        # The CPU allocator raises a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"{where}: out of memory with a batch of {describe_shapes(batch)}. In training, lower TRAIN.MAX_TOKENS or "
            "TRAIN.MAX_REGIONS (0 is no limit), or lower BATCH_IMAGES and raise GRAD_ACCUMULATE_STEPS; otherwise lower "
            f"BATCH_IMAGES or SCALES. {error}"
        ) from error


def describe_shapes(record: Record, prefix: str = "") -> str:
    """Returns the shapes of all tensors of a record on one line; for lengths, their number and maximum."""
    parts = []
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        value: Any = getattr(record, field.name)
        if isinstance(value, Lengths):
            parts.append(f"{prefix}{field.name} {len(value)} up to {value.longest}")
        elif isinstance(value, Record):
            parts.append(describe_shapes(value, f"{prefix}{field.name}."))
        elif isinstance(value, Tensor):
            parts.append(f"{prefix}{field.name} {tuple(value.shape)}")
    return ", ".join(parts)
