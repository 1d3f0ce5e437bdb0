"""Base of all datasets: access by (epoch, index), random generators, and the handling of bad records."""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Literal, TypeVar

from torch.utils.data import Dataset

from common.batch import Batch, Sample
from common.data.samplers import ItemKey, item_rng
from common.errors import DataError, UserError

logger = logging.getLogger(__name__)

SampleT = TypeVar("SampleT", bound=Sample)

OnBadData = Literal["raise", "skip"]

MAX_BAD_FRACTION = 0.01
# Minimum number of reads before the fraction of bad records is checked (or one pass over a smaller dataset).
MIN_READS = 1000


class VisualLinguisticDataset(Dataset[SampleT], ABC, Generic[SampleT]):
    """Maps `ItemKey` to `Sample`. Subclasses read one record.

    Args:
        seed: RNG_SEED. All randomness of an item is a function of seed, epoch and index.
        on_bad_data: `raise` stops at the first invalid record. `skip` replaces it by the next valid one, with one
            warning per record, and stops when more than 1 % of the records that this process (each loader worker is
            one) has read were invalid.

    Attributes:
        batch_type: batch class of the samples.
    """

    batch_type: ClassVar[type[Batch]] = Batch

    def __init__(self, *, seed: int, on_bad_data: OnBadData = "raise") -> None:
        self.seed = seed
        self.on_bad_data = on_bad_data
        self._reads = 0
        self._failures = 0
        self._reported: set[int] = set()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def record_id(self, index: int) -> str:
        """Returns the id by which users know the record."""

    @abstractmethod
    def load(self, index: int, rng: random.Random) -> SampleT:
        """Reads one item. All random decisions use `rng`.

        Raises:
            DataError: the record or one of its files is invalid.
        """

    def describe(self, index: int) -> tuple[str, Sequence[str]]:
        """Returns the image path of an item and the class names of its regions; empty if unknown."""
        return "", ()

    def groups(self) -> Sequence[int] | None:
        """Returns the aspect group of every item (0 if width >= height), or None if sizes are unknown."""
        return None

    def __getitem__(self, key: ItemKey) -> SampleT:
        """Reads an item; under the `skip` policy the next valid one.

        Raises:
            DataError: names dataset, index and record id.
        """
        index = key.index
        while True:
            self._reads += 1
            try:
                return self.load(index, item_rng(self.seed, key.epoch, index, key.source))
            except Exception as error:
                where = f"{type(self).__name__} item {index} (record {self.record_id(index)})"
                if not isinstance(error, UserError):
                    raise RuntimeError(f"{where}: {type(error).__name__}: {error}") from error
                if self.on_bad_data == "raise":
                    raise DataError(f"{where}: {error}") from error
                self._count_failure(index, f"{where}: {error}")
            index = (index + 1) % len(self)

    def _count_failure(self, index: int, message: str) -> None:
        self._failures += 1
        num_reads = max(self._reads, min(len(self), MIN_READS))
        if self._failures > MAX_BAD_FRACTION * num_reads:
            raise DataError(
                f"{message}; {self._failures} of {self._reads} records were bad, more than the "
                f"{MAX_BAD_FRACTION:.0%} that DATASET.ON_BAD_DATA: skip allows: repair the data"
            )
        if index not in self._reported:
            self._reported.add(index)
            logger.warning("%s; using the next valid record instead (DATASET.ON_BAD_DATA: skip)", message)
