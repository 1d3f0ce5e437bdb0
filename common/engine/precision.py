"""Number formats of a run: single precision, or half with loss scaling. Source: train_eval spec, 4.5.

Parameters and optimizer state stay in single precision; only the forward pass computes in half precision.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

logger = logging.getLogger(__name__)


class Precision:
    """Runs the forward pass, the backward pass and the update in the configured number format.

    Args:
        device: device of the model.
        fp16: `TRAIN.FP16`; on a CPU bfloat16 without loss scaling stands in, with a warning.
        loss_scale: `TRAIN.FP16_LOSS_SCALE`, a number or "dynamic"; an update that overflows is skipped.
    """

    def __init__(
        self, device: torch.device, fp16: bool = False, loss_scale: float | Literal["dynamic"] = "dynamic"
    ) -> None:
        self._device_type = device.type
        self._dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
        self._fp16 = fp16
        self._fixed_scale = None if loss_scale == "dynamic" else float(loss_scale)
        if fp16 and device.type == "cpu":
            logger.warning(
                "TRAIN.FP16: float16 needs a GPU; the CPU computes in bfloat16 without loss scaling"
            )
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=self._fixed_scale or 65536.0, enabled=fp16 and device.type == "cuda"
        )

    def autocast(self) -> torch.autocast:
        """Context of the forward pass and the losses."""
        return torch.autocast(self._device_type, dtype=self._dtype, enabled=self._fp16)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`."""
        torch.autograd.backward(self._scaler.scale(loss))

    def update(self, optimizer: Optimizer, model: nn.Module, clip_norm: float) -> Tensor | None:
        """Clips, updates the parameters and sets all gradients to zero.

        Zero, not None: a parameter that once had a gradient keeps momentum and decay (golden trajectories).

        Args:
            optimizer: its learning rates are those of this update.
            model: the network.
            clip_norm: `TRAIN.CLIP_GRAD_NORM`; nothing is clipped at or below zero.

        Returns:
            The 0-dim total norm before clipping, on the device; None without clipping.
        """
        norm = None
        if clip_norm > 0:
            self._scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
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
