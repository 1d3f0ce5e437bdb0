"""What stops a run before it does harm: numbers that are not finite, and no memory for a batch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from common.batch import Batch
from common.distributed import process_group as distributed
from common.errors import TrainingError

logger = logging.getLogger(__name__)


MAX_CONSECUTIVE_SKIPS = 20
"""Updates in a row that may be left out; more are not an accident."""


class _MicroStep(NamedTuple):
    where: str
    record_ids: tuple[str, ...]
    losses: Mapping[str, Tensor]


class _Report(NamedTuple):
    """A micro step as other ranks may read it."""

    rank: int
    where: str
    losses: dict[str, float]
    record_ids: tuple[str, ...]

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, self.losses.values()))

    def __str__(self) -> str:
        losses = ", ".join(f"{name} {value:g}" for name, value in self.losses.items())
        head = f"rank {self.rank}, " if distributed.is_distributed() else ""
        return f"{head}{self.where}: {losses}; records {', '.join(self.record_ids)}"


class Guard:
    """Judges every update by the norm of its gradient, which a loss that is not finite makes nan on all ranks.

    `raise` ends the run. On a GPU the norm is then read one update late, so that no step waits for the device:
    the update that is already made is never saved. `skip` leaves the update out. So do overflows of a scaled
    loss, whatever the policy. Both wait for the device once in an update.

    Args:
        policy: `TRAIN.ON_NONFINITE`.
        device: of the model.
        scaled: whether the loss is scaled, so that its gradient may overflow.

    Attributes:
        skipped: updates left out since the beginning of training.
    """

    def __init__(self, policy: Literal["raise", "skip"], device: torch.device, scaled: bool = False) -> None:
        self.skipped = 0
        self._policy = policy
        self._scaled = scaled
        self._late = device.type == "cuda" and policy == "raise" and not scaled
        self._in_a_row = 0
        self._group: list[_MicroStep] = []
        self._waiting: tuple[Tensor, torch.cuda.Event, list[_MicroStep]] | None = None

    def note(self, where: str, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Remembers a micro step of the coming update, for the message."""
        values = {name: loss.detach() for name, loss in losses.items()}
        self._group.append(_MicroStep(where, batch.record_ids, values))

    def accepts(self, norm: Tensor) -> bool:
        """Tells whether the update may be made. Collective.

        Args:
            norm: 0-dim norm of the gradient, equal on all ranks.

        Raises:
            TrainingError: see `TRAIN.ON_NONFINITE`; names steps, losses and records.
        """
        group, self._group = self._group, []
        if self._late:
            self.settle()
            finite, event = norm.isfinite().to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._waiting = finite, event, group
            return True
        if norm.isfinite():
            self._in_a_row = 0
            return True
        self._refuse(group)
        return False

    def settle(self) -> None:
        """Judges the update that was read late. Collective; comes before anything is saved."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            finite, event, group = waiting
            event.synchronize()
            if not finite:
                self._refuse(group)

    def _refuse(self, group: Sequence[_MicroStep]) -> None:
        own = [
            _Report(
                distributed.rank(),
                step.where,
                {name: float(loss) for name, loss in step.losses.items()},
                step.record_ids,
            )
            for step in group
        ]
        reports = [report for rank in distributed.gather_objects(own) for report in rank]
        wrong = [report for report in reports if not report.is_finite]
        self.skipped += 1
        self._in_a_row += 1
        overflow = self._scaled and not wrong
        if overflow and self._in_a_row <= MAX_CONSECUTIVE_SKIPS:
            logger.info(
                "%s: the gradient overflowed, update left out (%d so far)", reports[-1].where, self.skipped
            )
            return
        what = "the loss is not finite" if wrong else "the gradient is not finite"
        text = f"{what} in\n" + "\n".join(f"  {report}" for report in wrong or reports)
        if self._policy == "skip" and self._in_a_row <= MAX_CONSECUTIVE_SKIPS:
            logger.warning("%s\nupdate left out (%d so far; TRAIN.ON_NONFINITE: skip)", text, self.skipped)
            return
        hint = "check these records, lower TRAIN.LR, or leave such updates out with TRAIN.ON_NONFINITE: skip"
        if self._in_a_row > MAX_CONSECUTIVE_SKIPS:
            hint = f"the last {self._in_a_row} updates were left out, so another batch is no help"
        raise TrainingError(f"{text}\n{hint}")


class Statistics:
    """What batch norms that train have counted before an update: a forward pass changes it, whatever comes of it.

    Args:
        model: in the mode of training.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        self._values = [value for norm in norms if norm.training for value in norm.buffers()]
        self.keep()

    def keep(self) -> None:
        """Takes the present values."""
        self._kept = [value.clone() for value in self._values]

    def restore(self) -> None:
        """Goes back to those of the last `keep`."""
        for value, kept in zip(self._values, self._kept, strict=True):
            value.copy_(kept)


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuses weights that nobody should save.

    Raises:
        TrainingError: names the first weights that are not finite.
    """
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise TrainingError(
            f"{len(bad)} of {len(state)} weights are not finite, {bad[0]} for one; they are not saved. "
            "Go on from the last checkpoint with a lower TRAIN.LR"
        )
