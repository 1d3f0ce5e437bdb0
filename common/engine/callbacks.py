"""What happens around training steps: log lines, progress bar, tensorboard, validation, checkpoints.

Sources: train_eval spec, sections 3.3 to 3.6.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from common.engine import checkpoint, distributed
from common.errors import UsageError

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

    from common.engine.trainer import Trainer

logger = logging.getLogger(__name__)


class Callback:
    """Hooks of a training run, called in the order of the list. Every rank calls all of them.

    Attributes:
        state_key: entry of the checkpoint that holds this callback's state; None without state.
    """

    state_key: str | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        """Before the first epoch; `trainer` knows where the run begins."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before the first batch of an epoch (or the one that a resumed epoch continues with)."""

    def on_batch_end(self, trainer: Trainer) -> None:
        """After every micro batch. Must not wait for the device."""

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Every LOG_FREQUENT micro batches, with the running training metrics over all ranks."""

    def on_validation_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """After a validation, with its metrics over all ranks."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After the last batch of an epoch; `trainer.epoch` is still the one that ended."""

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last epoch, and also when training stops with an error."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""


class Times(NamedTuple):
    """Seconds that the host spent in the phases of one micro batch; a GPU may work on beside it."""

    data: float = 0.0
    transfer: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0
    metric: float = 0.0


class Speedometer(Callback):
    """Writes the reference's log line every LOG_FREQUENT micro batches.

    Args:
        samples: samples per micro batch, of all ranks together.
        frequent: micro batches per line.
        batches: micro batches per epoch.
        epochs: epochs of the run.
        rank: shown in front of each line; None with a single process.
        clock: seconds.
    """

    def __init__(
        self,
        samples: int,
        frequent: int,
        batches: int,
        epochs: int,
        rank: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._samples = samples
        self._frequent = frequent
        self._batches = batches
        self._epochs = epochs
        self._head = "" if rank is None else f"Rank[{rank:3d}]"
        self._clock = clock
        self._epoch: int | None = None
        self._epochs_started = 0
        self._window: list[Times] = []
        self._tic = 0.0

    def on_batch_end(self, trainer: Trainer) -> None:
        """Notes the times."""
        self.tick(trainer.epoch, trainer.times)

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Writes the line."""
        logger.info("%s", self.line(trainer.finished - 1, values))

    def tick(self, epoch: int, times: Times) -> None:
        """Takes the times of one micro batch; a new epoch begins a new window."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._epochs_started += 1
            self._window.clear()
            self._tic = 0.0
        self._window.append(times)

    def line(self, batch: int, values: Mapping[str, float]) -> str:
        """Returns the line after `batch` (from 0); except after the first of an epoch, a new window begins.

        As in the reference, the first window of an epoch also holds the times of the batch before it.
        """
        metrics = "".join(f"{name}={value:f},\t" for name, value in values.items())
        head, metrics = f"{self._head}Epoch[{self._epoch}] Batch [{batch}]", metrics and f"\tTrain-{metrics}"
        now, tic, self._tic = self._clock(), self._tic, self._clock()
        if not tic:
            return f"{head}\tSpeed: - samples/sec ETA: - d - h - m{metrics}"
        speed = self._frequent * self._samples / max(now - tic, 1e-9)
        means = [sum(column) / self._frequent for column in zip(*self._window, strict=True)]
        self._window.clear()
        phases = " ".join(
            f"{name}: {mean:.3f}"
            for name, mean in zip(("Data", "Tran", "F", "B", "O", "M"), means, strict=True)
        )
        eta = self._eta(batch, speed)
        rate = f"{speed:.2f} samples/s ETA: {eta}" if metrics else f"{speed:.2f} ETA: {eta} samples/s"
        return f"{head}\tSpeed: {rate}\t{phases}{metrics}"

    def _eta(self, batch: int, speed: float) -> str:
        left = (self._epochs - self._epochs_started) * self._batches + self._batches - batch
        minutes = int(left * self._samples / speed / 60)
        return f"{minutes // 1440} d {minutes // 60 % 24:2d} h {minutes % 60:2d} m"


class ProgressBar(Callback):
    """A bar over the batches of each epoch, on a terminal only."""

    def __init__(self) -> None:
        self._shown = distributed.is_main() and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._redirect: AbstractContextManager[None] | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        """Sends log lines past the bar."""
        if self._shown:
            self._redirect = logging_redirect_tqdm()
            self._redirect.__enter__()

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Opens the bar."""
        if self._shown:
            self._bar = tqdm(
                total=trainer.batches, initial=trainer.finished, desc=f"Epoch {trainer.epoch}", leave=False
            )

    def on_batch_end(self, trainer: Trainer) -> None:
        """Moves it."""
        if self._bar is not None:
            self._bar.update()

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Closes it."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_end(self, trainer: Trainer) -> None:
        """Closes the bar and gives the log back."""
        self.on_epoch_end(trainer)
        if self._redirect is not None:
            self._redirect.__exit__(None, None, None)


class TensorBoard(Callback):
    """Writes the reference's scalars from rank 0 (spec section 3.3).

    Loss and gradient norm of every micro batch wait on the device until the next log line.

    Args:
        folder: folder of the event files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._waiting: list[tuple[str, int, Tensor]] = []

    def on_train_start(self, trainer: Trainer) -> None:
        """Opens the event file; what an interrupted run wrote beyond this point is hidden."""
        if distributed.is_main():
            from tensorboardX import SummaryWriter

            try:
                self._writer = SummaryWriter(str(self._folder), purge_step=trainer.global_step + 1)
            except OSError as error:
                raise UsageError(
                    f"--log-dir: {self._folder}: cannot write there: {error.strerror}"
                ) from error

    def on_batch_end(self, trainer: Trainer) -> None:
        """Writes the rates and keeps loss and norm for later."""
        if self._writer is None:
            return
        step = trainer.global_step
        if trainer.grad_norm is not None:
            self._waiting.append(("grad-para/Total-Norm", step, trainer.grad_norm))
        for i, group in enumerate(trainer.optimizer.param_groups):
            self._writer.add_scalar(f"Initial-LR/Group_{i}", group["initial_lr"], step)
            self._writer.add_scalar(f"LR/Group_{i}", group["lr"], step)
        self._waiting.append(("Train-Loss", step, trainer.loss))

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Writes what waited, and the running metrics."""
        self._flush()
        self._write("Train", values, trainer.global_step)

    def on_validation_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Writes the validation metrics at step epoch + 1."""
        self._write("Val", values, trainer.epoch + 1)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Writes what waited."""
        self._flush()

    def on_train_end(self, trainer: Trainer) -> None:
        """Closes the file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _write(self, kind: str, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}-{name}", value, step)

    def _flush(self) -> None:
        if self._writer is None or not self._waiting:
            return
        numbers = torch.stack([value.float() for _, _, value in self._waiting]).tolist()
        for (tag, step, _), number in zip(self._waiting, numbers, strict=True):
            self._writer.add_scalar(tag, number, step)
        self._waiting.clear()
        self._writer.flush()


class ValidationMonitor(Callback):
    """Validates after every `frequent` epochs and remembers the best result (spec section 3.5).

    Args:
        evaluate: runs a validation on all ranks.
        metric: the value that decides which epoch is best; the earliest of equal ones is, nan never is.
        frequent: `VAL_FREQUENT`.
    """

    state_key = "validation_monitor"

    def __init__(self, evaluate: Callable[[], Mapping[str, float]], metric: str, frequent: int = 1) -> None:
        self._evaluate = evaluate
        self._metric = metric
        self._frequent = frequent
        self.best_epoch = -1
        self.best_val = -1.0

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Validates."""
        if (trainer.epoch + 1) % self._frequent:
            return
        values = self._evaluate()
        self._judge(trainer.epoch, values)
        trainer.schedule.after_validation(values.get(self._metric, float("nan")))
        trainer.notify("on_validation_end", values)

    def _judge(self, epoch: int, values: Mapping[str, float]) -> None:
        if self._metric not in values:
            logger.warning("validation has no metric %s: no best checkpoint can be chosen", self._metric)
        elif values[self._metric] > self.best_val:
            self.best_val, self.best_epoch = values[self._metric], epoch
            logger.info("New Best Val %s: %s, Epoch: %d", self._metric, self.best_val, epoch)
        logger.info(
            "Epoch[%d] \tVal-%s", epoch, "".join(f"{name}={value:f},\t" for name, value in values.items())
        )
        self.log_best()

    def log_best(self) -> None:
        """Writes the best result so far."""
        logger.info("Best Val %s: %s, Epoch: %d", self._metric, self.best_val, self.best_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the best result."""
        return {"best_epoch": self.best_epoch, "best_val": self.best_val}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the best result."""
        self.best_epoch, self.best_val = int(state["best_epoch"]), float(state["best_val"])
        self.log_best()


class Checkpointing(Callback):
    """Writes `{prefix}-{epoch:04d}.model` and, independently, `{prefix}-best.model` (spec section 3.6).

    Args:
        folder: output folder.
        prefix: `MODEL_PREFIX`.
        frequent: `CHECKPOINT_FREQUENT`, in epochs.
        monitor: tells which epoch is best; stands before this callback in the list.
        extra: further entries of the file.
    """

    def __init__(
        self, folder: Path, prefix: str, frequent: int, monitor: ValidationMonitor, extra: Mapping[str, Any]
    ) -> None:
        self._folder = folder
        self._prefix = prefix
        self._frequent = frequent
        self._monitor = monitor
        self._extra = extra

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Saves."""
        due = (trainer.epoch + 1) % self._frequent == 0
        best = self._monitor.best_epoch == trainer.epoch
        if not (due or best):
            return
        state = {**trainer.state_dict(), **self._extra}
        if distributed.is_main():
            self._write(trainer, state, due=due, best=best)
        distributed.barrier()  # what follows may read the files

    def _write(self, trainer: Trainer, state: Mapping[str, Any], *, due: bool, best: bool) -> None:
        path = checkpoint.epoch_file(self._folder, self._prefix, trainer.epoch)
        best_path = checkpoint.best_file(self._folder, self._prefix)
        if due:
            checkpoint.write(state, path)
        if best and due:
            checkpoint.link(path, best_path)
        elif best:
            checkpoint.write(state, best_path)
        if best:
            logger.info("Save new best model to %s.", best_path)
