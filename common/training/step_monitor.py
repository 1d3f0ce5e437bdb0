"""What happens around training steps: log lines, progress bar, validation, checkpoints.

Sources: train_eval spec, sections 3.3 to 3.6.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    pass
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from common.batch import Batch, Lengths, Record
from common.errors import TrainingError


class Times(NamedTuple):
    """Seconds that the host spent in the phases of one micro batch; a GPU may work on beside it."""

    data: float = 0.0
    transfer: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
    metric: float = 0.0


class Stopwatch:
    """Adds up the phases of a micro batch."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._times = Times()

    def lap(self, phase: str, tell: Callable[[str], None], done: str) -> None:
        """Adds the time since the last lap to a phase, and tells what was done."""
        tell(done)
        last, self._last = self._last, time.perf_counter()
        self._times = self._times._replace(**{phase: getattr(self._times, phase) + self._last - last})

    def take(self) -> Times:
        """Returns the times since the last call."""
        times, self._times = self._times, Times()
        return times


@contextmanager
def oom_context(where: str, batch: Batch) -> Iterator[None]:
    """Says which batch the memory was too small for.

    Raises:
        TrainingError: in place of the allocator's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"{where}: out of memory with a batch of {shapes(batch)}. In training, lower TRAIN.MAX_TOKENS or "
            "TRAIN.MAX_REGIONS (0 is no limit), or BATCH_IMAGES with a higher GRAD_ACCUMULATE_STEPS; else BATCH_IMAGES "
            f"or SCALES. {error}"
        ) from error


def shapes(record: Record, prefix: str = "") -> str:
    """Shapes of all tensors of a record on one line; of lengths, how many and the largest."""
    parts = []
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        value: Any = getattr(record, field.name)
        if isinstance(value, Lengths):
            parts.append(f"{prefix}{field.name} {len(value)} up to {value.longest}")
        elif isinstance(value, Record):
            parts.append(shapes(value, f"{prefix}{field.name}."))
        elif isinstance(value, Tensor):
            parts.append(f"{prefix}{field.name} {tuple(value.shape)}")
    return ", ".join(parts)
