"""The reference's scalars for tensorboard, in files that are complete wherever a run is killed."""

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


class ScalarFile:
    """An event file. tensorboardX's `SummaryWriter` writes from a thread that no flush waits for; this one does not.

    Args:
        folder: made if need be.
        first_step: what other files of the folder have from there on is hidden.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Two runs may start in the same second, which is in the name.
        self._file = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, tag: str, value: float, step: int) -> None:
        """Adds a point."""
        self._write(step=step, summary=scalar(tag, value))

    def _write(self, **content: object) -> None:
        self._file.write_event(Event(wall_time=time.time(), **content))

    def flush(self) -> None:
        """Waits until all points are on the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()


class TensorBoard(Callback):
    """Writes the reference's scalars from rank 0 (spec section 3.3).

    Loss and gradient norm of every micro batch wait on the device until the next log line.

    Args:
        folder: folder of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: ScalarFile | None = None
        self._losses: list[tuple[int, Tensor]] = []
        self._norms: list[tuple[int, Tensor]] = []

    def on_train_start(self, trainer: Trainer) -> None:
        """Opens the event file; what an interrupted run wrote beyond this point is hidden."""
        if distributed.is_main():
            try:
                self._writer = ScalarFile(self._folder, trainer.global_step + 1)
            except OSError as error:
                raise UsageError(
                    f"--log-dir: {self._folder}: cannot write there: {error.strerror}"
                ) from error

    def on_batch_end(self, trainer: Trainer) -> None:
        """Writes the rates and keeps loss and norm for later."""
        step = trainer.global_step
        self._losses.append((step, trainer.loss))
        if self._writer is None:
            return
        if trainer.grad_norm is not None:
            self._norms.append((step, trainer.grad_norm))
        for i, group in enumerate(trainer.optimizer.param_groups):
            self._writer.add(f"Initial-LR/Group_{i}", group["initial_lr"], step)
            self._writer.add(f"LR/Group_{i}", group["lr"], step)

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Writes what waited, and the running metrics."""
        self._flush()
        self._write("Train", values, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Writes the validation metrics at step epoch + 1."""
        self._write("Val", values, trainer.epoch + 1)

    def on_save(self, trainer: Trainer) -> None:
        """Writes what waited: a resumed run begins after it."""
        self._flush()

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Writes what waited."""
        self._flush()

    def on_train_end(self, trainer: Trainer) -> None:
        """Closes the file; after an error the other ranks may not be there for their part of the last losses."""
        if not distributed.is_distributed():
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _write(self, kind: str, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add(f"{kind}-{name}", value, step)

    def _flush(self) -> None:
        """Writes what waited. Collective: a rank's loss is its share of that of all, times their number."""
        shares = distributed.gather_objects(_numbers(self._losses))
        losses = torch.tensor(shares, dtype=torch.float64).mean(0).tolist()
        if self._writer is not None:
            for tag, points, values in (
                ("Train-Loss", self._losses, losses),
                ("grad-para/Total-Norm", self._norms, _numbers(self._norms)),
            ):
                for (step, _), value in zip(points, values, strict=True):
                    self._writer.add(tag, value, step)
            self._writer.flush()
        self._losses.clear()
        self._norms.clear()


def _numbers(points: Sequence[tuple[int, Tensor]]) -> list[float]:
    """Waits for the device once."""
    return torch.stack([value.double() for _, value in points]).tolist() if points else []
