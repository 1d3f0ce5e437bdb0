"""The training loop. It knows a task only through the `Task` contract."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from common.batch import Batch
from common.data.loader import Loader, epoch_batches
from common.distributed import process_group as distributed
from common.distributed.stall_detection import StallDetector
from common.errors import CheckpointError, Stopped
from common.models.pretrained import load_state
from common.training import checkpoint
from common.training.callbacks import Callback
from common.training.metrics import Metrics, loss_meter
from common.training.nonfinite import NonFiniteGuard, check_finite
from common.training.optim import Schedule
from common.training.precision import Precision, to_float32
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
        for batch in epoch_batches(loader, self.state.epoch, self.state.batch):
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


def steps_per_epoch(num_batches: int, accumulate: int) -> int:
    """Returns the optimizer steps of an epoch. The last accumulation group of an epoch may be smaller."""
    return -(-num_batches // accumulate)


class TrainState:
    """Counts epochs, batches and optimizer steps.

    Args:
        epoch: first epoch, counted from 0.
        accumulate: batches per optimizer step (`TRAIN.GRAD_ACCUMULATE_STEPS`).

    Attributes:
        epoch: current epoch.
        batch: batches that are done in this epoch, which is also the index of the next one.
        batches_per_epoch: known once training has started.
    """

    def __init__(self, epoch: int, accumulate: int) -> None:
        self.epoch, self.batch, self.batches_per_epoch = epoch, 0, 1
        self._accumulate = self._saved_accumulate = accumulate

    @property
    def global_batch(self) -> int:
        """Index of the last batch since epoch 0, the x axis in TensorBoard; -1 before the first."""
        return self.batches_per_epoch * self.epoch + self.batch - 1

    @property
    def num_steps(self) -> int:
        """Optimizer steps since epoch 0, including skipped ones. Defined between two steps."""
        return self._steps_before_epoch + steps_per_epoch(self.batch, self._accumulate)

    @property
    def next_step(self) -> int:
        """Number, from 1, of the optimizer step that the next batch contributes to."""
        return self._steps_before_epoch + self.batch // self._accumulate + 1

    @property
    def _steps_before_epoch(self) -> int:
        return steps_per_epoch(self.batches_per_epoch, self._accumulate) * self.epoch

    def accumulation_group(self) -> tuple[int, bool]:
        """Returns the number of batches in the next batch's accumulation group, and whether it is the last one."""
        first = self.batch - self.batch % self._accumulate
        size = min(self._accumulate, self.batches_per_epoch - first)
        return size, self.batch + 1 == first + size

    def __str__(self) -> str:
        return f"epoch {self.epoch}, batch {self.batch}, step {self.next_step}"

    def state_dict(self) -> dict[str, int]:
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "batches": self.batches_per_epoch,
            "accumulate": self._accumulate,
        }

    def load_state_dict(self, state: Mapping[str, int], default_epoch: int) -> None:
        """Restores `state_dict`. `default_epoch` is for checkpoints of the reference, which have no position."""
        self.epoch, self.batch = state.get("epoch", default_epoch), state.get("batch", 0)
        self.batches_per_epoch = state.get("batches", 1)
        self._saved_accumulate = state.get("accumulate", self._accumulate)

    def align_to_loader(self, num_batches: int) -> None:
        """Converts a restored position to an epoch of `num_batches` batches.

        Another number of processes, batch size or accumulation changes the number of batches per epoch. Training then
        continues at the same fraction of the epoch, rounded down to the start of an accumulation group.
        """
        saved, current = (self.batches_per_epoch, self._saved_accumulate), (num_batches, self._accumulate)
        if self.batch and saved != current:
            batch = self.batch * num_batches // self.batches_per_epoch
            if batch < num_batches:
                batch -= batch % self._accumulate
            logger.warning(
                "an epoch had %d batches, %d per step; now %d, %d per step: resuming at batch %d",
                *saved,
                *current,
                batch,
            )
            self.batch = batch
        self.batches_per_epoch, self._saved_accumulate = current


class LossScaler:
    """Turns means over the labels of a microbatch into their share of the mean over all labels of a batch.

    DDP averages gradients over ranks with equal weights. Ranks and microbatches have different numbers of labels, so
    each loss is weighted by its fraction of the global label count, times the world size. The all-reduce of the counts
    starts here and overlaps with the forward pass; `scale` waits for it.

    Args:
        label_counts: label counts by loss name, for each microbatch of this rank. Names and their order are equal on
            all ranks.
        eps: what each loss adds to its label count before it divides; 0 if missing.
        device: device of the model.
    """

    def __init__(
        self,
        label_counts: Sequence[Mapping[str, Tensor | int]],
        eps: Mapping[str, float],
        device: torch.device,
    ) -> None:
        self._is_identity = not distributed.is_distributed() and len(label_counts) == 1
        if self._is_identity:
            return
        self._names = list(label_counts[0])
        # torch.full fills on the device; torch.tensor would copy from the host and synchronize.
        flat = [
            count.to(device, torch.float32)
            if isinstance(count, Tensor)
            else torch.full((), count, dtype=torch.float32, device=device)
            for counts in label_counts
            for count in counts.values()
        ]
        self._local = torch.stack(flat).view(len(label_counts), len(self._names))
        self._eps = torch.stack([torch.full((), eps.get(name, 0.0), device=device) for name in self._names])
        self._total = self._local.sum(0)
        self._work = dist.all_reduce(self._total, async_op=True) if distributed.is_distributed() else None

    def scale(self, losses: Mapping[str, Tensor], microbatch: int) -> dict[str, Tensor]:
        """Scales the losses of microbatch number `microbatch` of this rank.

        The scaled losses of all microbatches add up, and their average over the ranks is the mean over all labels.
        """
        if self._is_identity:
            return dict(losses)
        if self._work is not None:
            self._work.wait()
        weights = (
            (self._local[microbatch] + self._eps)
            * distributed.world_size()
            / (self._total.clamp(min=1) + self._eps)
        )
        by_name = dict(zip(self._names, weights.unbind(), strict=True))
        return {name: loss * by_name[name] for name, loss in losses.items()}
