"""What happens around training steps: log lines, progress bar, validation, checkpoints.

Sources: train_eval spec, sections 3.3 to 3.6.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from common.config.schema import ExperimentConfig
from common.distributed import process_group as distributed
from common.training import checkpoint

if TYPE_CHECKING:
    from common.training.trainer import Trainer

from common.training.step_monitor import Times

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

    def on_update_end(self, trainer: Trainer) -> None:
        """After an update and the log line of its last micro batch: the run can be saved here, or stopped."""

    def on_stop(self, trainer: Trainer) -> None:
        """When a callback has stopped the run by `Stopped`: after an update, or in a validation."""

    def on_save(self, trainer: Trainer) -> None:
        """Before a checkpoint is written; what waits for the device has to be written first."""

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
    """Writes the checkpoints of a run (spec section 3.6), and stops it when a signal says so.

    `{prefix}-{epoch:04d}.model` after an epoch and, independently, `{prefix}-best.model`; `{prefix}-latest.model`
    every `steps` updates and where a signal stops the run.

    Args:
        folder: output folder.
        config: MODEL_PREFIX, CHECKPOINT_FREQUENT, CHECKPOINT_STEPS and CHECKPOINT_KEEP.
        monitor: tells which epoch is best; stands before this callback in the list.
        extra: further entries of the file.
        check_stop: raises `Stopped` when the run has to end.
    """

    def __init__(
        self,
        folder: Path,
        config: ExperimentConfig,
        monitor: ValidationMonitor,
        extra: Mapping[str, Any],
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._config = config
        self._monitor = monitor
        self._extra = extra
        self._check_stop = check_stop
        self._prefix = config.MODEL_PREFIX
        self._latest = checkpoint.latest_file(folder, self._prefix)
        self._wrote_latest = False

    def on_update_end(self, trainer: Trainer) -> None:
        """Saves the latest state, or stops."""
        self._check_stop()
        if self._config.CHECKPOINT_STEPS and trainer.updates % self._config.CHECKPOINT_STEPS == 0:
            self._save(trainer, [self._latest])

    def on_stop(self, trainer: Trainer) -> None:
        """Saves the latest state."""
        self._save(trainer, [self._latest])
        resumable = self._config.TRAIN.resumable
        hint = "started again" if resumable else "started again with TRAIN.AUTO_RESUME=true"
        logger.info("Saved as %s; %s, the run goes on from there.", self._latest, hint)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Saves."""
        due = (trainer.epoch + 1) % self._config.CHECKPOINT_FREQUENT == 0
        best = self._monitor.best_epoch == trainer.epoch
        # The best one first: were it missing after a kill, the epoch behind it would not be run again.
        paths = [checkpoint.best_file(self._folder, self._prefix)] * best
        paths += [checkpoint.epoch_file(self._folder, self._prefix, trainer.epoch)] * due
        if not paths:
            return
        if due and (self._config.CHECKPOINT_STEPS or self._latest.exists()):
            paths.append(self._latest)
        self._save(trainer, paths, epoch_ended=True)
        if best:
            logger.info("Save new best model to %s.", paths[0])

    def _save(self, trainer: Trainer, paths: Sequence[Path], epoch_ended: bool = False) -> None:
        """Writes the first file and links the others to it. Collective."""
        trainer.notify("on_save")
        state = {**trainer.state_dict(epoch_ended), **self._extra}
        if distributed.is_main():
            with trainer.watchdog.paused():
                self._write(state, paths)
                if checkpoint.epoch_file(self._folder, self._prefix, trainer.epoch) in paths:
                    keep = self._config.CHECKPOINT_KEEP
                    checkpoint.prune(self._folder, self._prefix, keep, trainer.epoch)
        trainer.watchdog.heartbeat("writing a checkpoint")
        distributed.barrier()  # what follows may read the files

    def _write(self, state: Mapping[str, Any], paths: Sequence[Path]) -> None:
        # Only what this process wrote: a file found may be damaged, and its predecessor the one in use.
        if self._latest in paths and self._wrote_latest:
            checkpoint.link(self._latest, checkpoint.previous_file(self._folder, self._prefix))
        checkpoint.write(state, paths[0])
        for path in paths[1:]:
            checkpoint.link(paths[0], path)
        self._wrote_latest |= self._latest in paths
