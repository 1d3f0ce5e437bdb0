"""The training loop; it knows a task only through the `Task` contract. Source: train_eval spec, 3.2."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.batch import Batch
from common.config.sections import TrainConfig
from common.data.loader import Loader, batches_of
from common.distributed import process_group as distributed
from common.distributed.signals import Stopped
from common.distributed.watchdog import StallDetector
from common.errors import CheckpointError
from common.models.pretrained import load_state
from common.training import checkpoint
from common.training.callbacks import Callback
from common.training.loss_scaling import global_label_weights
from common.training.metrics import Metrics, loss_meter
from common.training.nonfinite import Guard, Statistics, check_finite
from common.training.optim import Schedule
from common.training.precision import Precision, to_float32
from common.training.state import Progress
from common.training.step_monitor import Stopwatch, Times, oom_context
from common.training.task import Task

logger = logging.getLogger(__name__)


Share = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Trainer(Progress):
    """Trains a model for the epochs of `TRAIN`, one micro batch after the other.

    An update averages the gradients of `GRAD_ACCUMULATE_STEPS` micro batches; the last group of an epoch may
    be smaller. No step waits for the device: losses, norms and metrics stay there until a log line.

    Args:
        task: losses, metrics and configuration.
        model: its network, on `device`; wrapped when several processes train.
        optimizer: its groups have an `initial_lr`.
        schedule: sets their rates.
        device: where batches are moved to.
        callbacks: called in this order.
        precision: number format; single precision by default.
        watchdog: is told of every phase of a step.

    Attributes:
        loss: 0-dim loss of the last micro batch, not divided by the accumulation.
        grad_norm: 0-dim norm before clipping, if the last micro batch ended an update and clipping is on.
        times: of the last micro batch.
        metrics: running training metrics.
        guard: leaves out updates that are not finite, or ends the run.
    """

    loss: Tensor
    grad_norm: Tensor | None
    times: Times

    def __init__(
        self,
        task: Task[Any, Any, Any],
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        device: torch.device | str = "cpu",
        callbacks: Sequence[Callback] = (),
        precision: Precision | None = None,
        watchdog: StallDetector | None = None,
    ) -> None:
        self.train: TrainConfig = task.config.TRAIN
        super().__init__(self.train.BEGIN_EPOCH, self.train.GRAD_ACCUMULATE_STEPS)
        self.task = task
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.device = torch.device(device)
        self.callbacks = callbacks
        self.precision = precision or Precision(self.device)
        self.watchdog = watchdog or StallDetector(0)
        self.guard = Guard(self.train.ON_NONFINITE, self.device, self.precision.scaled)
        self.metrics = Metrics(self.device)

        self.grad_norm = None

    def notify(self, hook: str, *args: Any) -> None:
        """Calls one hook of every callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *args)

    def fit(self, loader: Loader) -> None:
        """Trains until `END_EPOCH`.

        Args:
            loader: equally many batches on every rank.

        Raises:
            Stopped: a callback ended the run, after `on_stop`.
            TrainingError: see `Guard`; or a batch does not fit into memory.
        """
        self.enter(len(loader))
        # What a log shows before the first update of a resumed run.
        self.schedule.apply(self.updates - self.guard.skipped)
        try:
            self.notify("on_train_start")
            while self.epoch < self.train.END_EPOCH:
                logger.info("PROGRESS: %.2f%%", 100 * self.epoch / self.train.END_EPOCH)
                self._run_epoch(loader)
                self.epoch, self.finished = self.epoch + 1, 0
        except Stopped:
            self.notify("on_stop")
            raise
        finally:
            self.notify("on_train_end")

    def _run_epoch(self, loader: Loader) -> None:
        if self.finished == 0:
            self.metrics.reset()
        self.model.train()
        self._statistics = Statistics(self.model)
        self.notify("on_epoch_start")
        watch = Stopwatch()
        for batch in batches_of(loader, self.epoch, self.finished):
            updated = self.group()[1]
            parts = (batch,) if isinstance(batch, Batch) else batch
            with oom_context(self.where, parts[-1]):
                self._micro_step(parts, watch)
            self.times = watch.take()
            self.finished += 1
            self.watchdog.first_step_done()
            self.notify("on_batch_end")
            if (self.finished - 1) % self.task.config.LOG_FREQUENT == 0:
                self.notify("on_log", self.metrics.compute())
            if updated:
                self.notify("on_update_end")
        self.guard.settle()
        self.notify("on_epoch_end")

    def _micro_step(self, parts: Sequence[Batch], watch: Stopwatch) -> None:
        """Forward and backward of one part after the other and, at the end of a group, the update."""
        beat, is_last = self.watchdog.heartbeat, self.group()[1]
        watch.lap("data", beat, "reading a batch")
        parts = [part.to(self.device) for part in parts]
        watch.lap("transfer", beat, "moving a batch")
        counts = [self.task.label_counts(part) for part in parts]
        share = global_label_weights(counts, self.task.label_count_eps, self.device)
        found = []
        for number, part in enumerate(parts):
            ends = number + 1 == len(parts)
            place = f", part {number + 1} of {len(parts)}" if len(parts) > 1 else ""
            with (
                oom_context(self.where + place, part),
                distributed.no_sync(self.model, active=not (is_last and ends)),
            ):
                tell = beat if ends else self.watchdog.keep_alive
                found.append(self._part(part, partial(share, number), partial(watch.lap, tell=tell)))
            self.guard.note(self.where + place, part, found[-1])
        losses = {name: torch.stack([each[name] for each in found]).sum() for name in found[0]}
        self.loss, self.grad_norm = self.task.total(losses), None
        if is_last:
            self._update()
        watch.lap("optimizer", beat, "an update")
        self.metrics.update(
            {name: loss_meter(losses, key, self.loss) for key, name in self.train.LOSS_LOGGERS}
        )
        watch.lap("metric", beat, "the metrics of a batch")

    def _part(self, part: Batch, share: Share, lap: Callable[..., None]) -> dict[str, Tensor]:
        """Forward and backward; returns the losses, scaled so that those of all parts add up."""
        with self.precision.autocast():
            outputs = self.model(part)
        outputs = to_float32(outputs)
        losses = share(self.task.losses(outputs, part))
        loss = self.task.total(losses)
        lap("forward", done="a forward pass")
        self.precision.backward(loss / self.group()[0])
        lap("backward", done="a backward pass")
        with torch.no_grad():
            self.metrics.update(self.task.metrics(outputs, part, "train"))
        lap("metric", done="the metrics of a part")
        return {name: value.detach() for name, value in losses.items()}

    def _update(self) -> None:
        # Updates that were left out do not move the schedule.
        self.schedule.apply(self.update - self.guard.skipped)
        clip = self.train.CLIP_GRAD_NORM
        skipped = self.guard.skipped
        norm = self.precision.update(self.optimizer, self.model, clip, self.guard.accepts)
        if self.guard.skipped > skipped:
            self._statistics.restore()
        self._statistics.keep()
        self.grad_norm = norm if clip > 0 else None

    def state_dict(self, epoch_ended: bool = False) -> dict[str, Any]:
        """Returns everything that a resumed run needs. Collective: every rank calls it after an update.

        Args:
            epoch_ended: go on with the next epoch; else this one, also when only its validation is left.

        Raises:
            TrainingError: the weights are not worth saving.
        """
        self.guard.settle()
        weights = checkpoint.model_state(self.model, self.task.state_dict_names)
        check_finite(weights)
        state = {
            "state_dict": weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.precision.state_dict(),
            "rng": distributed.gather_objects(checkpoint.rng_state()),
            **self.place(),
            **({"epoch": self.epoch + 1, "batch": 0} if epoch_ended else {}),
            "resumed": self.train.BEGIN_EPOCH if self.train.RESUME else None,
            "global_step": self.global_step + 1,
            "skipped": self.guard.skipped,
            "metrics": {} if epoch_ended else self.metrics.state_dict(),
        }
        return state | {
            callback.state_key: callback.state_dict() for callback in self.callbacks if callback.state_key
        }

    def load_state_dict(self, state: Mapping[str, Any], source: str, epoch: int) -> None:
        """Continues from a checkpoint, also from one of the reference implementation.

        Args:
            state: content of the file.
            source: its name for messages.
            epoch: the epoch to begin with, where the file does not tell.

        Raises:
            CheckpointError: the file belongs to another model or optimizer.
        """
        if missing := [key for key in ("state_dict", "optimizer") if key not in state]:
            raise CheckpointError(
                f"{source}: not a training checkpoint, it has no {' and no '.join(missing)}"
            )
        load_state(distributed.unwrap(self.model), state["state_dict"], self.task.state_dict_names, source)
        checkpoint.load_optimizer(self.optimizer, state["optimizer"], source)
        self.schedule.load_state_dict(state.get("schedule", {}))
        self.precision.load_state_dict(state.get("scaler", {}))
        self.metrics.load_state_dict(state.get("metrics", {}))
        self.restore(state, epoch)
        self.guard.skipped = state.get("skipped", 0)
        for callback in self.callbacks:
            if callback.state_key and callback.state_key in state:
                callback.load_state_dict(state[callback.state_key])
        streams = state.get("rng", [])
        if distributed.rank() < len(streams):
            checkpoint.load_rng_state(streams[distributed.rank()])
