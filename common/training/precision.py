"""Number formats of a run: single precision, TF32, or half with or without loss scaling. Source: train_eval spec, 4.5.

Parameters and optimizer state stay in single precision, and so do losses, metrics and predictions; only the forward
pass of the model computes in half precision, its geometry excepted.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.config.fields import PrecisionName

logger = logging.getLogger(__name__)


ValueT = TypeVar("ValueT")


class Precision:
    """Runs the forward pass, the backward pass and the update in the configured number format.

    Args:
        device: device of the model.
        precision: `TRAIN.PRECISION`. On a CPU, bfloat16 stands in for fp16, with a warning, and tf32 is fp32.
        loss_scale: `TRAIN.FP16_LOSS_SCALE`, a number or "dynamic"; an update that overflows is skipped.

    Attributes:
        scaled: whether the loss is scaled, so that gradients may overflow.
    """

    def __init__(
        self,
        device: torch.device,
        precision: PrecisionName = "fp32",
        loss_scale: float | Literal["dynamic"] = "dynamic",
    ) -> None:
        self._device_type = device.type
        self._half = precision in ("fp16", "bf16")
        self.scaled = precision == "fp16" and device.type == "cuda"
        self._dtype = torch.float16 if self.scaled else torch.bfloat16
        self._fixed_scale = None if loss_scale == "dynamic" else float(loss_scale)
        if precision == "fp16" and device.type == "cpu":
            logger.warning(
                "fp16 (TRAIN.PRECISION, FP16, --fp16) needs a GPU; the CPU computes in bf16 without loss scaling"
            )
        if device.type == "cuda":
            # torch's own default would compute convolutions, but not products, in TF32.
            tf32 = "tf32" if precision == "tf32" else "ieee"
            torch.backends.cuda.matmul.fp32_precision = tf32
            torch.backends.cudnn.conv.fp32_precision = tf32  # type: ignore[attr-defined]
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=self._fixed_scale or 65536.0, enabled=self.scaled
        )

    def autocast(self) -> torch.autocast:
        """Context of the model's forward pass; `single` its outputs."""
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=self._half)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`. One that is not finite makes them nan, on all ranks that share them."""
        seed = torch.where(loss.detach().isfinite(), 1.0, math.nan).to(loss.dtype)
        torch.autograd.backward(self._scaler.scale(loss), seed)

    def update(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        clip_norm: float,
        accepts: Callable[[Tensor], bool] = lambda norm: bool(norm.isfinite()),
    ) -> Tensor:
        """Clips, updates the parameters and sets all gradients to zero.

        Zero, not None: a parameter that once had a gradient keeps momentum and decay (golden trajectories).

        Args:
            optimizer: its learning rates are those of this update.
            model: the network.
            clip_norm: `TRAIN.CLIP_GRAD_NORM`; nothing is clipped at or below zero.
            accepts: whether parameters are updated by a gradient of this norm.

        Returns:
            The 0-dim total norm before clipping, on the device.
        """
        self._scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if accepts(norm):
            if clip_norm > 0:
                nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, norm)
            self._scaler.step(optimizer)
        self._scaler.update(self._fixed_scale)
        optimizer.zero_grad(set_to_none=False)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Returns the loss scale; empty without one."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the loss scale; a run that had none leaves it as configured."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(dict(state))


def to_float32(value: ValueT) -> ValueT:
    """Returns a tensor, or a dataclass of tensors, with half precision turned to single."""
    if isinstance(value, Tensor):
        half = value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: to_float32(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
