"""The reference's TensorBoard scalars."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from torch import Tensor

from common.distributed import process_group as distributed
from common.errors import UsageError
from common.training.callbacks import Callback

if TYPE_CHECKING:
    from common.training.trainer import Trainer


class TensorBoard(Callback):
    """Writes scalars from rank 0.

    Losses and gradient norms of batches stay on the device until the next log line.

    `EventsWriter` is used directly. `SummaryWriter` hands events to a thread that its `flush` does not wait for, so a
    killed run could lose points that precede its last checkpoint.

    Args:
        folder: folder of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: EventsWriter | None = None
        self._losses: list[tuple[int, Tensor]] = []
        self._norms: list[tuple[int, Tensor]] = []

    def on_train_start(self, trainer: Trainer) -> None:
        if not distributed.is_main():
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # The name holds the second of the start. The process id tells apart two runs of one second.
            self._file = EventsWriter(str(self._folder / "events"), filename_suffix=f".{os.getpid()}")
            # Hides what an interrupted run wrote beyond the step at which this one resumes.
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(
                Event(wall_time=time.time(), step=trainer.state.global_batch + 1, session_log=start)
            )
        except OSError as error:
            raise UsageError(f"--log-dir: {self._folder}: cannot write there: {error.strerror}") from error

    def on_batch_end(self, trainer: Trainer) -> None:
        step = trainer.state.global_batch
        self._losses.append((step, trainer.loss))
        if self._file is None:
            return
        if trainer.grad_norm is not None:
            self._norms.append((step, trainer.grad_norm))
        for i, group in enumerate(trainer.optimizer.param_groups):
            self._add(f"Initial-LR/Group_{i}", group["initial_lr"], step)
            self._add(f"LR/Group_{i}", group["lr"], step)

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        self._flush()
        for name, value in values.items():
            self._add(f"Train-{name}", value, trainer.state.global_batch)

    def on_validation_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._add(f"Val-{name}", value, trainer.state.epoch + 1)

    def on_save(self, trainer: Trainer) -> None:
        self._flush()

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._flush()

    def on_train_end(self, trainer: Trainer) -> None:
        # After an error, other ranks may not take part in the collective of the last losses.
        if not distributed.is_distributed():
            self._flush()
        if self._file is not None:
            self._file.close()

    def _add(self, tag: str, value: float, step: int) -> None:
        if self._file is not None:
            self._file.write_event(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))

    def _flush(self) -> None:
        """Writes pending losses and norms. Collective."""
        # Per-rank losses are scaled by the world size, so their mean is the global loss.
        losses = torch.tensor(distributed.gather_objects(_to_floats(self._losses)), dtype=torch.float64).mean(
            0
        )
        for (step, _), loss in zip(self._losses, losses.tolist(), strict=True):
            self._add("Train-Loss", loss, step)
        for (step, _), norm in zip(self._norms, _to_floats(self._norms), strict=True):
            self._add("grad-para/Total-Norm", norm, step)
        if self._file is not None:
            self._file.flush()
        self._losses.clear()
        self._norms.clear()


def _to_floats(points: Sequence[tuple[int, Tensor]]) -> list[float]:
    """Copies all values to the host at once."""
    return torch.stack([value.double() for _, value in points]).tolist() if points else []
