"""What happens around training steps: log lines, progress bar, validation, checkpoints."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.schema import ExperimentConfig
from common.distributed import process_group as distributed
from common.progress import Progress
from common.training import checkpoint
from common.training.step_monitor import PhaseTimes

if TYPE_CHECKING:
    from common.training.trainer import Trainer


import os
from typing import TYPE_CHECKING

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from torch import Tensor

from common.errors import UsageError

if TYPE_CHECKING:
    from common.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Callback:
    """Hooks of a training run. Every rank calls all of them, in the order of the list.

    Attributes:
        state_key: checkpoint entry that holds this callback's state; None if it has none.
    """

    state_key: str | None = None

    def on_train_start(self, trainer: Trainer) -> None:
        """Before the first epoch. `trainer.state` is where the run starts or resumes."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before the first batch of an epoch, or the first one of a resumed epoch."""

    def on_batch_end(self, trainer: Trainer) -> None:
        """After every batch. Must not wait for the device."""

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Every `LOG_FREQUENT` batches, with the training metrics over all ranks."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After an optimizer step and the log line of its last batch. The run can be saved or stopped here."""

    def on_stop(self, trainer: Trainer) -> None:
        """When a signal has stopped the run, after an optimizer step or during validation."""

    def on_save(self, trainer: Trainer) -> None:
        """Before a checkpoint is written. Write pending output: a resumed run starts after it."""

    def on_validation_end(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """After a validation, with its metrics over all ranks."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """After the last batch of an epoch. `trainer.state.epoch` is still the epoch that ended."""

    def on_train_end(self, trainer: Trainer) -> None:
        """After the last epoch, and also when training stops with an error."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Speedometer(Callback):
    """Writes the reference's log line every `LOG_FREQUENT` batches.

    Args:
        batch_size: samples per batch over all ranks.
        frequent: batches per line.
        batches_per_epoch: batches per epoch.
        num_epochs: epochs of the run.
        rank: shown at the start of each line; None with a single process.
        clock: returns seconds.
    """

    def __init__(
        self,
        batch_size: int,
        frequent: int,
        batches_per_epoch: int,
        num_epochs: int,
        rank: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._batch_size = batch_size
        self._frequent = frequent
        self._batches_per_epoch = batches_per_epoch
        self._num_epochs = num_epochs
        self._head = "" if rank is None else f"Rank[{rank:3d}]"
        self._clock = clock
        self._epoch: int | None = None
        self._epochs_started = 0
        self._window: list[PhaseTimes] = []
        self._tic = 0.0

    def on_batch_end(self, trainer: Trainer) -> None:
        self.tick(trainer.state.epoch, trainer.times)

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        logger.info("%s", self.line(trainer.state.batch - 1, values))

    def tick(self, epoch: int, times: PhaseTimes) -> None:
        """Adds the phase times of one batch. A new epoch starts a new window."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._epochs_started += 1
            self._window.clear()
            self._tic = 0.0
        self._window.append(times)

    def line(self, batch: int, values: Mapping[str, float]) -> str:
        """Returns the line after `batch` (from 0) and starts a new window, except after the first batch of an epoch.

        As in the reference, the first window of an epoch also holds the times of the batch before it.
        """
        metrics = "".join(f"{name}={value:f},\t" for name, value in values.items())
        head, metrics = f"{self._head}Epoch[{self._epoch}] Batch [{batch}]", metrics and f"\tTrain-{metrics}"
        now, tic, self._tic = self._clock(), self._tic, self._clock()
        if not tic:
            return f"{head}\tSpeed: - samples/sec ETA: - d - h - m{metrics}"
        speed = self._frequent * self._batch_size / max(now - tic, 1e-9)
        means = [sum(column) / self._frequent for column in zip(*self._window, strict=True)]
        self._window.clear()
        labels = ("Data", "Tran", "F", "B", "O", "M")
        phases = " ".join(f"{label}: {mean:.3f}" for label, mean in zip(labels, means, strict=True))
        epochs_left = self._num_epochs - self._epochs_started
        batches_left = (epochs_left + 1) * self._batches_per_epoch - batch
        minutes = int(batches_left * self._batch_size / speed / 60)
        eta = f"{minutes // 1440} d {minutes // 60 % 24:2d} h {minutes % 60:2d} m"
        rate = f"{speed:.2f} samples/s ETA: {eta}" if metrics else f"{speed:.2f} ETA: {eta} samples/s"
        return f"{head}\tSpeed: {rate}\t{phases}{metrics}"


class ProgressBar(Callback):
    """Shows a bar over the batches of each epoch, on a terminal only."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def on_epoch_start(self, trainer: Trainer) -> None:
        state = trainer.state
        self._progress = Progress(
            state.batches_per_epoch,
            f"Epoch {state.epoch}",
            "batch",
            initial=state.batch,
            log=False,  # the log has the lines of Speedometer
            disable=not distributed.is_main(),
        )

    def on_batch_end(self, trainer: Trainer) -> None:
        if self._progress is not None:
            self._progress.update()

    def on_epoch_end(self, trainer: Trainer) -> None:
        if self._progress is not None:
            self._progress.close()

    def on_train_end(self, trainer: Trainer) -> None:
        self.on_epoch_end(trainer)


class ValidationMonitor(Callback):
    """Validates after every `frequent` epochs and remembers the best result.

    Args:
        evaluate: runs a validation on all ranks.
        metric: the metric that selects the best epoch. The first of equal epochs is the best; NaN never is.
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
        epoch = trainer.state.epoch
        if (epoch + 1) % self._frequent:
            return
        values = self._evaluate()
        if self._metric not in values:
            logger.warning("validation has no metric %s: no best checkpoint can be selected", self._metric)
        elif values[self._metric] > self.best_val:
            self.best_val, self.best_epoch = values[self._metric], epoch
            logger.info("New Best Val %s: %s, Epoch: %d", self._metric, self.best_val, epoch)
        text = "".join(f"{name}={value:f},\t" for name, value in values.items())
        logger.info("Epoch[%d] \tVal-%s", epoch, text)
        self._log_best()
        trainer.schedule.after_validation(values.get(self._metric, float("nan")))
        trainer.notify("on_validation_end", values)

    def _log_best(self) -> None:
        logger.info("Best Val %s: %s, Epoch: %d", self._metric, self.best_val, self.best_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"best_epoch": self.best_epoch, "best_val": self.best_val}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best_epoch, self.best_val = int(state["best_epoch"]), float(state["best_val"])
        self._log_best()


class Checkpointing(Callback):
    """Writes the checkpoints of a run, and stops it after a signal.

    `{prefix}-{epoch:04d}.model` after an epoch and, independently, `{prefix}-best.model`; `{prefix}-latest.model`
    every `CHECKPOINT_STEPS` optimizer steps and when a signal stops the run.

    Args:
        folder: output folder.
        config: MODEL_PREFIX, CHECKPOINT_FREQUENT, CHECKPOINT_STEPS and CHECKPOINT_KEEP.
        monitor: knows the best epoch; must come before this callback in the list.
        extra: further entries of the checkpoint.
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

    def on_step_end(self, trainer: Trainer) -> None:
        self._check_stop()
        if self._config.CHECKPOINT_STEPS and trainer.state.num_steps % self._config.CHECKPOINT_STEPS == 0:
            self._save(trainer, [self._latest])

    def on_stop(self, trainer: Trainer) -> None:
        self._save(trainer, [self._latest])
        hint = "" if self._config.TRAIN.resumable else " with TRAIN.AUTO_RESUME=true"
        logger.info("Saved %s. Rerun the same command%s to resume.", self._latest, hint)

    def on_epoch_end(self, trainer: Trainer) -> None:
        epoch = trainer.state.epoch
        due = (epoch + 1) % self._config.CHECKPOINT_FREQUENT == 0
        is_best = self._monitor.best_epoch == epoch
        paths = []
        # The best file first. If a kill left only the epoch's file, resuming would not repeat the validation.
        if is_best:
            paths.append(checkpoint.best_file(self._folder, self._prefix))
        if due:
            paths.append(checkpoint.epoch_file(self._folder, self._prefix, epoch))
            if self._config.CHECKPOINT_STEPS or self._latest.exists():
                paths.append(self._latest)
        if paths:
            self._save(trainer, paths, epoch_ended=True)
        if is_best:
            logger.info("Save new best model to %s.", paths[0])

    def _save(self, trainer: Trainer, paths: Sequence[Path], epoch_ended: bool = False) -> None:
        """Writes the first file and links the others to it. Collective."""
        trainer.notify("on_save")
        state = {**trainer.state_dict(epoch_ended), **self._extra}
        if distributed.is_main():
            # Only the writing may take long; a rank that waits for others in here would hide a lost machine.
            with trainer.monitor.stall_detector.paused():
                # Link only a file that this process wrote: an older one may be damaged, and its predecessor in use.
                if self._latest in paths and self._wrote_latest:
                    checkpoint.link(self._latest, checkpoint.previous_file(self._folder, self._prefix))
                checkpoint.write(state, paths[0])
                for path in paths[1:]:
                    checkpoint.link(paths[0], path)
                self._wrote_latest |= self._latest in paths
                epoch = trainer.state.epoch
                if checkpoint.epoch_file(self._folder, self._prefix, epoch) in paths:
                    checkpoint.prune(self._folder, self._prefix, self._config.CHECKPOINT_KEEP, epoch)
        trainer.monitor.stall_detector.heartbeat("writing a checkpoint")
        distributed.barrier()  # whatever comes next may read the files


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
            raise UsageError(f"--log-dir: {self._folder}: not writable: {error.strerror}") from error

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
