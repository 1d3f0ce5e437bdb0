"""Handling of losses and gradients that are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from common.distributed import process_group as distributed
from common.errors import TrainingError
from common.training.step_monitor import LossRecord

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_SKIPS = 20
"""More skipped optimizer steps in a row than this are a broken run."""


class NonFiniteGuard:
    """Decides from the gradient norm whether an optimizer step is taken.

    A loss that is not finite makes the norm NaN on all ranks (`Precision.backward`), so all ranks decide alike.
    Policy `raise` ends the run. On a GPU the norm is then read one step late, so that no step waits for the device;
    the bad step is taken, but never saved. Policy `skip` skips the step, and so does a scaled loss whose gradient
    overflows, whatever the policy. Both wait for the device once per step.

    Args:
        policy: `TRAIN.ON_NONFINITE`.
        model: the model. Running statistics of its batch norms are restored when a step is skipped.
        device: device of the model.
        scaled: whether the loss is scaled, so that gradients may overflow.

    Attributes:
        num_skipped: optimizer steps skipped since the start of training.
    """

    def __init__(
        self,
        policy: Literal["raise", "skip"],
        model: nn.Module,
        device: torch.device,
        scaled: bool = False,
    ) -> None:
        self.num_skipped = 0
        self._policy = policy
        self._scaled = scaled
        self._reads_late = device.type == "cuda" and policy == "raise" and not scaled
        self._consecutive = 0
        self._pending: tuple[Tensor, torch.cuda.Event, Sequence[LossRecord]] | None = None
        # Every forward pass updates the running statistics, also one whose step is skipped.
        can_skip = policy == "skip" or scaled
        modules = model.modules() if can_skip else ()
        norms = [module for module in modules if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        self._statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self.start()

    def start(self) -> None:
        """Takes the present batch-norm statistics as those before the next step."""
        self._snapshot = [buffer.clone() for buffer in self._statistics]

    def should_step(self, grad_norm: Tensor, records: Sequence[LossRecord]) -> bool:
        """Returns whether to take the optimizer step. Collective.

        Args:
            grad_norm: () norm of the gradient, equal on all ranks.
            records: losses of the microbatches of this step, for the message.

        Raises:
            TrainingError: policy `raise`, or too many skipped steps in a row. Names losses and records of all ranks.
        """
        if self._reads_late:
            self.flush()
            finite = grad_norm.isfinite().to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._pending = finite, event, records
            return True
        if grad_norm.isfinite():
            self._consecutive = 0
            self.start()
            return True
        self._skip_or_raise(records)
        for buffer, saved in zip(self._statistics, self._snapshot, strict=True):
            buffer.copy_(saved)
        return False

    def flush(self) -> None:
        """Checks the step whose norm has not been read yet. Collective; call it before anything is saved.

        Raises:
            TrainingError: that step was not finite.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            finite, event, records = pending
            event.synchronize()
            if not finite:
                self._skip_or_raise(records)

    def _skip_or_raise(self, records: Sequence[LossRecord]) -> None:
        rank = f"rank {distributed.rank()}, " if distributed.is_distributed() else ""
        local = []
        for record in records:
            losses = {name: float(loss) for name, loss in record.losses.items()}
            values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
            text = f"{rank}{record.where}: {values}; records {', '.join(record.record_ids)}"
            local.append((text, all(map(math.isfinite, losses.values()))))
        reports = [report for reports in distributed.gather_objects(local) for report in reports]
        bad = [text for text, is_finite in reports if not is_finite]
        self.num_skipped += 1
        self._consecutive += 1
        if self._scaled and not bad and self._consecutive <= MAX_CONSECUTIVE_SKIPS:
            where = records[-1].where
            logger.info("%s: the gradient overflowed, step skipped (%d so far)", where, self.num_skipped)
            return
        what = "the loss is not finite" if bad else "the gradient is not finite"
        message = f"{what} in\n" + "\n".join(f"  {text}" for text in bad or [text for text, _ in reports])
        if self._policy == "skip" and self._consecutive <= MAX_CONSECUTIVE_SKIPS:
            logger.warning(
                "%s\nstep skipped (%d so far; TRAIN.ON_NONFINITE: skip)", message, self.num_skipped
            )
            return
        hint = "check these records, lower TRAIN.LR, or skip such steps with TRAIN.ON_NONFINITE: skip"
        if self._consecutive > MAX_CONSECUTIVE_SKIPS:
            hint = f"{self._consecutive} steps in a row were not finite, so skipping more will not help"
        raise TrainingError(f"{message}\n{hint}")


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Checks weights before they are saved.

    Raises:
        TrainingError: names the first weight that is not finite.
    """
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise TrainingError(
            f"{len(bad)} of {len(state)} weights are not finite, for example {bad[0]}; they are not saved. "
            "Resume from the last checkpoint with a lower TRAIN.LR"
        )
