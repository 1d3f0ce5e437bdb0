"""How far a run is: the numbers of epochs, micro batches and updates."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)


class Progress:
    """The place of a run between two micro batches.

    Args:
        epoch: the first epoch, from 0.
        accumulate: micro batches per update; the last group of an epoch may be smaller.

    Attributes:
        epoch: the current epoch.
        finished: micro batches finished in it.
        batches: micro batches per epoch.
    """

    def __init__(self, epoch: int, accumulate: int) -> None:
        self.epoch, self.finished, self.batches = epoch, 0, 1
        self._accumulate = self._accumulated = accumulate

    @property
    def global_step(self) -> int:
        """Number of the last micro batch since epoch 0, counted from 0; -1 before the first."""
        return self.batches * self.epoch + self.finished - 1

    @property
    def updates(self) -> int:
        """Updates since epoch 0, whether made or left out; known between two of them."""
        return updates_per_epoch(self.batches, self._accumulate) * self.epoch + updates_per_epoch(
            self.finished, self._accumulate
        )

    @property
    def update(self) -> int:
        """Number of the update, from 1, that the next micro batch contributes to."""
        return updates_per_epoch(self.batches, self._accumulate) * self.epoch + (
            self.finished // self._accumulate + 1
        )

    @property
    def where(self) -> str:
        """The next micro batch, for people."""
        return (
            f"epoch {self.epoch}, batch {self.finished} (step {self.global_step + 1}, update {self.update})"
        )

    def group(self) -> tuple[int, bool]:
        """Size of the accumulation group of the next micro batch, and whether it is the last one of it."""
        first = self.finished - self.finished % self._accumulate
        size = min(self._accumulate, self.batches - first)
        return size, self.finished + 1 == first + size

    def place(self) -> dict[str, int]:
        """Returns what `restore` takes."""
        return {
            "epoch": self.epoch,
            "batch": self.finished,
            "batches": self.batches,
            "accumulate": self._accumulate,
        }

    def restore(self, place: Mapping[str, int], epoch: int) -> None:
        """Goes to a saved place; `epoch` where it does not tell."""
        self.epoch, self.finished = place.get("epoch", epoch), place.get("batch", 0)
        self.batches = place.get("batches", 1)
        self._accumulated = place.get("accumulate", self._accumulate)

    def enter(self, batches: int) -> None:
        """Finds the place among `batches` per epoch: other processes or batches make another number.

        It is the first of an accumulation group.
        """
        before, now = (self.batches, self._accumulated), (batches, self._accumulate)
        if self.finished and before != now:
            place = self.finished * batches // self.batches
            place -= place % self._accumulate if place < batches else 0
            logger.warning(
                "an epoch had %d batches, %d per update, now %d, %d per update: going on at batch %d",
                *before,
                *now,
                place,
            )
            self.finished = place
        self.batches, self._accumulated = now


def updates_per_epoch(batches: int, accumulate: int) -> int:
    """Updates per epoch: the last group of an epoch may be smaller."""
    return -(-batches // accumulate)
