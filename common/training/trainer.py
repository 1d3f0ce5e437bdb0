"""The training loop. It knows a task only through the `Task` contract."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.batch import Batch
from common.data.loader import Loader, batches_of
from common.distributed import process_group as distributed
from common.distributed.signals import Stopped
from common.distributed.watchdog import StallDetector
from common.errors import CheckpointError
from common.models.pretrained import load_state
from common.training import checkpoint
from common.training.callbacks import Callback
from common.training.loss_scaling import LossScaler
from common.training.metrics import Metrics, loss_meter
from common.training.nonfinite import NonFiniteGuard, check_finite
from common.training.optim import Schedule
from common.training.precision import Precision, to_float32
from common.training.state import TrainState
from common.training.step_monitor import PhaseTimes, StepMonitor
from common.training.task import AnyTask

logger = logging.getLogger(__name__)


class Trainer:
    """Trains a model for the epochs of the `TRAIN` section; see `docs/training.md`.

    An optimizer step averages the gradients of `TRAIN.GRAD_ACCUMULATE_STEPS` batches; the last group of an epoch may
    be smaller. A batch goes through the model as one or more microbatches. Losses, norms and metrics stay on the
    device until a log line needs them, so no step waits for the device.

    Args:
        task: losses, metrics and configuration.
        model: the model, on `device`; wrapped in DDP if several processes train.
        optimizer: its parameter groups have an `initial_lr`.
        schedule: sets their learning rates.
        device: device that batches are moved to.
        callbacks: called in this order.
        precision: float32 by default.
        stall_detector: hears of the progress of this rank.

    Attributes:
        state: position of the run.
        loss: () loss of the last batch, not divided by the number of accumulated batches.
        grad_norm: () gradient norm before clipping, if the last batch ended a step and clipping is on.
        times: phase times of the last batch.
        metrics: training metrics of this epoch.
        guard: handles losses and gradients that are not finite.
    """

    loss: Tensor
    grad_norm: Tensor | None
    times: PhaseTimes

    def __init__(
        self,
        task: AnyTask,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        device: torch.device | str = "cpu",
        callbacks: Sequence[Callback] = (),
        precision: Precision | None = None,
        stall_detector: StallDetector | None = None,
    ) -> None:
        self.task = task
        self.config = task.config.TRAIN
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.device = torch.device(device)
        self.callbacks = callbacks
        self.precision = precision or Precision(self.device)
        self.state = TrainState(self.config.BEGIN_EPOCH, self.config.GRAD_ACCUMULATE_STEPS)
        self.monitor = StepMonitor(stall_detector or StallDetector(0))
        self.guard = NonFiniteGuard(self.config.ON_NONFINITE, model, self.device, self.precision.scaled)
        self.metrics = Metrics(self.device)
        self.grad_norm = None

    def fit(self, loader: Loader) -> None:
        """Trains until `TRAIN.END_EPOCH`.

        Args:
            loader: yields batches, or tuples of microbatches; equally many on every rank.

        Raises:
            Stopped: a signal ended the run, after `on_stop`.
            TrainingError: see `NonFiniteGuard`; or a batch does not fit into memory.
        """
        self.state.align_to_loader(len(loader))
        self.guard.start()
        # Restore the learning rate before the first logged batch of a resumed run.
        self.schedule.apply(self.state.num_steps - self.guard.num_skipped)
        try:
            self.notify("on_train_start")
            while self.state.epoch < self.config.END_EPOCH:
                logger.info("PROGRESS: %.2f%%", 100 * self.state.epoch / self.config.END_EPOCH)
                self.train_epoch(loader)
                self.state.epoch, self.state.batch = self.state.epoch + 1, 0
        except Stopped:
            self.notify("on_stop")
            raise
        finally:
            self.notify("on_train_end")

    def train_epoch(self, loader: Loader) -> None:
        """Trains on the batches that are left of the current epoch."""
        if self.state.batch == 0:
            self.metrics.reset()
        self.model.train()
        self.notify("on_epoch_start")
        self.monitor.start_epoch()
        for batch in batches_of(loader, self.state.epoch, self.state.batch):
            microbatches = (batch,) if isinstance(batch, Batch) else batch
            _, ends_step = self.state.accumulation_group()
            with self.monitor.batch(str(self.state), microbatches[-1]):
                self.train_batch(microbatches)
            self.times = self.monitor.end_batch()
            self.state.batch += 1
            self.notify("on_batch_end")
            if (self.state.batch - 1) % self.task.config.LOG_FREQUENT == 0:
                self.notify("on_log", self.metrics.compute())
            if ends_step:
                self.notify("on_step_end")
        self.guard.flush()
        self.notify("on_epoch_end")

    def train_batch(self, microbatches: Sequence[Batch]) -> None:
        """Runs forward and backward on a batch and, if it ends an accumulation group, takes the optimizer step."""
        group_size, ends_step = self.state.accumulation_group()
        self.monitor.record("data")
        microbatches = [microbatch.to(self.device) for microbatch in microbatches]
        self.monitor.record("transfer")
        label_counts = [self.task.label_counts(microbatch) for microbatch in microbatches]
        scaler = LossScaler(label_counts, self.task.label_count_eps, self.device)
        losses: dict[str, Tensor] = {}
        for index, microbatch in enumerate(microbatches):
            # DDP reduces gradients in the last backward pass of a step only.
            reduces = ends_step and index + 1 == len(microbatches)
            with (
                self.monitor.microbatch(index, len(microbatches), microbatch),
                distributed.no_sync(self.model, active=not reduces),
            ):
                with self.precision.autocast():
                    outputs = self.model(microbatch)
                outputs = to_float32(outputs)
                scaled = scaler.scale(self.task.losses(outputs, microbatch), index)
                loss = self.task.total(scaled)
                self.monitor.record("forward")
                self.precision.backward(loss / group_size)
                self.monitor.record("backward")
                self.monitor.record_losses(microbatch, scaled)
                with torch.no_grad():
                    self.metrics.update(self.task.metrics(outputs, microbatch, "train"))
                for name, value in scaled.items():
                    losses[name] = losses[name] + value.detach() if name in losses else value.detach()
                self.monitor.record("metric")
        self.loss = self.task.total(losses)
        self.grad_norm = self.optimizer_step() if ends_step else None
        self.monitor.record("optimizer")
        self.metrics.update(
            {name: loss_meter(losses, key, self.loss) for key, name in self.config.LOSS_LOGGERS}
        )
        self.monitor.record("metric")

    def optimizer_step(self) -> Tensor | None:
        """Clips the gradients and updates the parameters, unless the gradients are not finite.

        Returns:
            () gradient norm before clipping, on the device; None if clipping is off.
        """
        # Skipped steps do not advance the schedule.
        self.schedule.apply(self.state.next_step - self.guard.num_skipped)
        self.precision.unscale_gradients(self.optimizer)
        grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        clips = self.config.CLIP_GRAD_NORM > 0
        if self.guard.should_step(norm, self.monitor.pop_loss_records()):
            if clips:
                nn.utils.clip_grads_with_norm_(self.model.parameters(), self.config.CLIP_GRAD_NORM, norm)
            self.precision.step(self.optimizer)
        self.precision.update_scale()
        # Zero instead of None: as in the reference, a parameter that once had a gradient keeps its momentum and
        # weight decay.
        self.optimizer.zero_grad(set_to_none=False)
        return norm if clips else None

    def notify(self, hook: str, *args: Any) -> None:
        """Calls one hook of every callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *args)

    def state_dict(self, epoch_ended: bool = False) -> dict[str, Any]:
        """Returns everything that a resumed run needs. Collective: every rank calls it after an optimizer step.

        Args:
            epoch_ended: resume with the next epoch. Otherwise resume in this one, even if only its validation is left.

        Raises:
            TrainingError: a weight is not finite.
        """
        self.guard.flush()
        weights = checkpoint.model_state(self.model, self.task.state_dict_names)
        check_finite(weights)
        state = {
            "state_dict": weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.precision.state_dict(),
            "rng": distributed.gather_objects(checkpoint.rng_state()),
            **self.state.state_dict(),
            **({"epoch": self.state.epoch + 1, "batch": 0} if epoch_ended else {}),
            "resumed": self.config.BEGIN_EPOCH if self.config.RESUME else None,
            "global_step": self.state.global_batch + 1,
            "skipped": self.guard.num_skipped,
            "metrics": {} if epoch_ended else self.metrics.state_dict(),
        }
        callbacks = [callback for callback in self.callbacks if callback.state_key]
        return state | {str(callback.state_key): callback.state_dict() for callback in callbacks}

    def load_state_dict(self, state: Mapping[str, Any], source: str, epoch: int) -> None:
        """Restores a checkpoint of this project or of the reference.

        Args:
            state: content of the file.
            source: its path, for messages.
            epoch: epoch to resume with if the file has no position, as those of the reference.

        Raises:
            CheckpointError: the file belongs to another model or optimizer.
        """
        if missing := [key for key in ("state_dict", "optimizer") if key not in state]:
            raise CheckpointError(
                f"{source}: not a training checkpoint: it has no {' and no '.join(missing)}"
            )
        load_state(distributed.unwrap(self.model), state["state_dict"], self.task.state_dict_names, source)
        checkpoint.load_optimizer(self.optimizer, state["optimizer"], source)
        self.schedule.load_state_dict(state.get("schedule", {}))
        self.precision.load_state_dict(state.get("scaler", {}))
        self.metrics.load_state_dict(state.get("metrics", {}))
        self.state.load_state_dict(state, epoch)
        self.guard.num_skipped = state.get("skipped", 0)
        for callback in self.callbacks:
            if callback.state_key and callback.state_key in state:
                callback.load_state_dict(state[callback.state_key])
        rng_states = state.get("rng", [])
        if distributed.rank() < len(rng_states):
            checkpoint.load_rng_state(rng_states[distributed.rank()])
