"""Precision of a run: float32, TF32, or half precision with or without loss scaling.

Parameters and optimizer state stay in float32, and so do losses, metrics and predictions. Only the model's forward
pass computes in half precision, except for its geometry.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.config.fields import PrecisionName

logger = logging.getLogger(__name__)


ValueT = TypeVar("ValueT")


class Precision:
    """Runs forward pass, backward pass and optimizer step in the configured precision.

    Args:
        device: device of the model.
        precision: `TRAIN.PRECISION`. On a CPU, bfloat16 replaces fp16, with a warning, and tf32 is fp32.
        loss_scale: `TRAIN.FP16_LOSS_SCALE`, a number or "dynamic".

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
            # PyTorch's default computes convolutions in TF32, but matrix products in float32.
            tf32 = "tf32" if precision == "tf32" else "ieee"
            torch.backends.cuda.matmul.fp32_precision = tf32
            torch.backends.cudnn.conv.fp32_precision = tf32  # type: ignore[attr-defined]
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=self._fixed_scale or 65536.0, enabled=self.scaled
        )

    def autocast(self) -> torch.autocast:
        """Context of the model's forward pass. Pass its outputs to `to_float32`."""
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=self._half)

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradients of `loss`.

        A loss that is not finite makes all gradients NaN. DDP spreads them to all ranks, which then decide alike.
        """
        seed = torch.where(loss.detach().isfinite(), 1.0, math.nan).to(loss.dtype)
        torch.autograd.backward(self._scaler.scale(loss), seed)

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Divides the gradients by the loss scale; call it before gradients are measured or clipped."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Updates the parameters, unless unscaled gradients overflowed."""
        self._scaler.step(optimizer)

    def update_scale(self) -> None:
        """Adjusts the loss scale after a step, taken or skipped. A fixed scale stays."""
        self._scaler.update(self._fixed_scale)

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the loss scale. A checkpoint without one leaves it as configured."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(dict(state))


def to_float32(value: ValueT) -> ValueT:
    """Converts half-precision tensors, also inside of dataclasses, to float32."""
    if isinstance(value, Tensor):
        half = value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: to_float32(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value
