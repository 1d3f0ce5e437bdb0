"""Position of a training run: epochs, batches and optimizer steps."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)


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
