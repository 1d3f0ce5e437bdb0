"""Optimizers, parameter groups and learning-rate schedules; see `docs/training.md`."""

from __future__ import annotations

import bisect
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from common.config.sections import TrainConfig
from common.errors import ConfigError

logger = logging.getLogger(__name__)


class AdamW(Optimizer):
    """AdamW as the reference computes it, with multi-tensor (foreach) kernels.

    `torch.optim.AdamW` differs in two ways that visibly change the first steps: it adds `eps` after the bias correction
    of the second moment, and applies weight decay before the update.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the square root of the second moment, before the bias correction.
        weight_decay: multiplied by the learning rate and applied after the update.
        correct_bias: whether to correct the bias of moments that start at zero.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        options = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, {"lr": lr, **options})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # Foreach kernels need equal step, device and dtype; usually that is the whole group.
            buckets: dict[Any, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self._state_of(parameter)
                    state["step"] += 1
                    buckets[state["step"], parameter.device, parameter.dtype].append(parameter)
            for (step, _, _), parameters in buckets.items():
                self._update(parameters, step, group)
        return loss

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state

    def _update(self, parameters: list[Tensor], step: int, group: Mapping[str, Any]) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means = [self.state[parameter]["exp_avg"] for parameter in parameters]
        squares = [self.state[parameter]["exp_avg_sq"] for parameter in parameters]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        rate = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step) if group["correct_bias"] else lr
        torch._foreach_addcdiv_(parameters, means, roots, value=-rate)
        if group["weight_decay"] > 0:
            torch._foreach_add_(parameters, parameters, alpha=-lr * group["weight_decay"])


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], lr_mult: Sequence[tuple[str, float]], base_lr: float
) -> list[dict[str, Any]]:
    """Splits parameters by name: one group per `TRAIN.LR_MULT` entry, then the rest.

    Args:
        parameters: by their names in checkpoints; frozen ones stay in their group.
        lr_mult: pairs of a substring of the name and a factor.
        base_lr: learning rate for the effective batch size.

    Raises:
        ConfigError: a parameter matches two entries.
    """
    members: dict[str, list[nn.Parameter]] = {key: [] for key, _ in lr_mult}
    rest: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        keys = [key for key in members if key in name]
        if len(keys) > 1:
            raise ConfigError(
                f"TRAIN.LR_MULT: the parameter {name} matches both {keys[0]!r} and {keys[1]!r}; "
                "make them disjoint"
            )
        (members[keys[0]] if keys else rest).append(parameter)
    for key, matches in members.items():
        if not matches:
            # Not an error: one yaml file also serves models without that part, such as a blind one.
            logger.warning(
                "TRAIN.LR_MULT: no parameter name contains %r; an example is %s",
                key,
                next(iter(parameters), "(the model has none)"),
            )
    groups = [{"params": members[key], "lr": base_lr * factor} for key, factor in lr_mult]
    groups.append({"params": rest, "lr": base_lr})
    for group in groups:
        group["initial_lr"] = group["lr"]
    return groups


def effective_batch_size(train: TrainConfig, processes: int) -> int:
    """Returns the samples per optimizer step: processes x samples per batch of all datasets x accumulated batches."""
    return processes * sum(train.batch_sizes) * train.GRAD_ACCUMULATE_STEPS


def build_optimizer(train: TrainConfig, parameters: Mapping[str, nn.Parameter], processes: int) -> Optimizer:
    """Builds `TRAIN.OPTIMIZER` with the groups of `TRAIN.LR_MULT` and the base learning rate `LR` x batch size.

    Args:
        train: the TRAIN section.
        parameters: by their names in checkpoints.
        processes: number of processes.
    """
    groups = parameter_groups(parameters, train.LR_MULT, train.LR * effective_batch_size(train, processes))
    if train.OPTIMIZER == "SGD":
        return torch.optim.SGD(groups, momentum=train.MOMENTUM, weight_decay=train.WD)
    if train.OPTIMIZER == "Adam":
        return Adam(groups, weight_decay=train.WD)
    return AdamW(groups, weight_decay=train.WD)


def triangle_factor(step: int, warmup: int, total: int) -> float:
    """Linear warmup over `warmup` steps, then linear decay to zero at step `total`. Steps count from 1."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (total - step) / max(1, total - warmup))


def step_factor(
    step: int,
    milestones: Sequence[int],
    gamma: float,
    warmup: int = 0,
    warmup_factor: float = 1 / 3,
    warmup_method: Literal["linear", "constant"] = "linear",
) -> float:
    """Decays by `gamma` at each milestone, after a warmup from `warmup_factor`. Steps count from 1.

    Args:
        step: number of the optimizer step.
        milestones: ascending steps, each of which adds one decay.
        gamma: decay factor.
        warmup: warmup steps.
        warmup_factor: factor at the start of the warmup.
        warmup_method: linear increase to 1, or constant.
    """
    ramp = 1.0
    if step < warmup:
        done = step / warmup if warmup_method == "linear" else 0.0
        ramp = warmup_factor * (1 - done) + done
    return ramp * gamma ** bisect.bisect_right(milestones, step)


class Schedule:
    """Sets the learning rate of every group to `initial_lr * factor(step)`.

    The rate is set right before an optimizer step and depends on the step number only. So resuming is exact, and the
    groups hold the rate of the last step when it is logged or saved. Before the first step it is `factor(0)`.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self._optimizer = optimizer
        self._factor = factor
        self.apply(0)

    def apply(self, step: int) -> None:
        """Sets the learning rates of optimizer step `step`, counted from 1."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self._factor(step)

    def after_validation(self, value: float) -> None:
        """Receives a validation result. Only the plateau schedule uses it."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


_PLATEAU_COUNTERS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class PlateauSchedule(Schedule):
    """Decays the learning rates when the validation metric stops improving."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        super().__init__(optimizer, lambda step: 1.0)
        self._plateau = ReduceLROnPlateau(
            optimizer, mode="max", factor=gamma, patience=1, threshold=1e-4, cooldown=2
        )

    def apply(self, step: int) -> None:
        """Keeps the rates that the last validation set."""

    def after_validation(self, value: float) -> None:
        """Decays the rates if this value and the one before were no better than the best. Ignores NaN."""
        if math.isfinite(value):
            self._plateau.step(value)

    def state_dict(self) -> dict[str, Any]:
        rates = [(group["lr"], group["initial_lr"]) for group in self._optimizer.param_groups]
        counters = {name: getattr(self._plateau, name) for name in _PLATEAU_COUNTERS}
        return {"rates": rates, "counters": counters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`. If the configured rate has changed, it gets the same decay."""
        if state:
            vars(self._plateau).update(state["counters"])
            for group, (lr, saved_initial_lr) in zip(
                self._optimizer.param_groups, state["rates"], strict=True
            ):
                initial_lr = group["initial_lr"]
                is_same = initial_lr == saved_initial_lr
                group["lr"] = lr if is_same else initial_lr * lr / saved_initial_lr


def build_schedule(train: TrainConfig, optimizer: Optimizer, steps_per_epoch: float) -> Schedule:
    """Builds `TRAIN.LR_SCHEDULE`.

    Args:
        train: the TRAIN section.
        optimizer: its groups have an `initial_lr`.
        steps_per_epoch: converts milestones and end from epochs to steps.
    """
    warmup = train.WARMUP_STEPS if train.WARMUP else 0
    if train.LR_SCHEDULE == "plateau":
        return PlateauSchedule(optimizer, train.LR_FACTOR)
    if train.LR_SCHEDULE == "triangle":
        total = int(train.END_EPOCH * steps_per_epoch)
        return Schedule(optimizer, partial(triangle_factor, warmup=warmup, total=total))
    factor = partial(
        step_factor,
        milestones=[int(epoch * steps_per_epoch) for epoch in train.LR_STEP],
        gamma=train.LR_FACTOR,
        warmup=warmup,
        warmup_factor=train.WARMUP_FACTOR,
        warmup_method=train.WARMUP_METHOD,
    )
    return Schedule(optimizer, factor)
