"""Batch samplers: the batches of every rank as a function of (seed, epoch).

The order of an epoch is global. All ranks take equally many steps, and a step of R ranks with b items each uses the
same items as a step of one rank with R * b items. The order is computed piece by piece, so it needs no memory per
item, and a run can resume at any batch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

ROUNDS = 6


class ItemKey(NamedTuple):
    """Key of an item. It contains the epoch, since randomness depends on it.

    Attributes:
        epoch: number of the pass over the dataset.
        index: index in the dataset.
        source: index of the dataset, if there are several.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # shadows tuple.index on purpose
    source: int = 0


def item_rng(seed: int, epoch: int, index: int, source: int = 0) -> random.Random:
    """Returns the random generator of an item in an epoch, on any worker or rank."""
    return random.Random(f"{seed}/{epoch}/{index}" + (f"/{source}" if source else ""))


def permutation_entries(
    positions: NDArray[np.int64], num_items: int, rng: random.Random
) -> NDArray[np.int64]:
    """Returns the entries at some positions of a random permutation of 0 .. num_items - 1.

    A balanced Feistel network is a bijection on the next power of four. Values outside `num_items` go through it again
    (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). So any piece of a permutation of
    millions of items is computed without storing it.

    Args:
        positions: (n,) int64.
        num_items: length of the permutation.
        rng: draws the round keys.
    """
    half = np.uint64(max(1, ((num_items - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = np.array([rng.getrandbits(64) for _ in range(ROUNDS)], dtype=np.uint64)
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & low
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & low)
        values[outside] = left << half | right
        outside = values >= num_items
    return values.astype(np.int64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mixes 64-bit integers (finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def aspect_groups(widths: Sequence[float], heights: Sequence[float]) -> list[int]:
    """Returns 0 for images with width >= height, else 1."""
    return [int(width < height) for width, height in zip(widths, heights, strict=True)]


def grouped_batches(
    order: NDArray[np.int64], groups: Sequence[int], batch_size: int
) -> list[NDArray[np.int64]]:
    """Splits an order into batches of one group each.

    Every group keeps its order and may end with a short batch. Batches are sorted by the position of their first item.
    """
    group_of = np.asarray(groups)[order]
    batches = []
    for group in np.unique(group_of):
        positions = np.flatnonzero(group_of == group)
        batches += [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    batches.sort(key=lambda positions: int(positions[0]))
    return [order[positions] for positions in batches]


class EpochBatches(Sampler[list[ItemKey]]):
    """Batches of this rank in the current epoch.

    Without groups, batch j of all ranks together covers a consecutive piece of the global order, and the last piece is
    split evenly. With groups, batches are formed globally and dealt round-robin.

    Args:
        num_items: length of the dataset.
        batch_size: items per batch and rank.
        shuffle: whether each epoch has its own order; otherwise dataset order.
        seed: RNG_SEED.
        rank: this rank.
        world_size: number of ranks.
        groups: group of every item, if a batch must not mix groups.
        pad: repeat items (with groups: batches) from the start of the epoch if the last batch has fewer items than
            ranks, so that all ranks have equally many batches. Off for evaluation: every item exactly once over all
            ranks.
        source: index of the dataset.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[int] | None = None,
        pad: bool = True,
        source: int = 0,
    ) -> None:
        assert num_items > 0, "the dataset is empty"
        assert batch_size > 0, "batch_size must be positive"
        assert 0 <= rank < world_size, "rank must be in [0, world_size)"
        assert groups is None or len(groups) == num_items, "one group per item"
        self.num_items = num_items
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.groups = groups
        self.pad = pad
        self.source = source
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Selects the epoch of the next iteration, and its first batch (to resume inside an epoch)."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Number of batches of this rank in an epoch: equal for all epochs, and for all ranks if padded."""
        if self.groups is not None:
            sizes = np.unique(np.asarray(self.groups), return_counts=True)[1]
            count = int(np.sum(-(-sizes // self.batch_size)))
            return len(range(0 if self.pad else self.rank, count, self.world_size))
        full, rest = divmod(self.num_items, self.batch_size * self.world_size)
        return full + bool(rest and (self.pad or rest > self.rank))

    def __iter__(self) -> Iterator[list[ItemKey]]:
        return self.batches(self.epoch, self.start_batch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[ItemKey]]:
        """Yields the batches of an epoch from index `start` on."""
        if self.groups is None:
            batches = self._consecutive_batches(epoch, start)
        else:
            batches = self._grouped_batches(epoch, start, self.groups)
        for batch in batches:
            yield [ItemKey(epoch, index, self.source) for index in batch.tolist()]

    def _order(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.shuffle:
            return positions
        return permutation_entries(positions, self.num_items, item_rng(self.seed, epoch, -1, self.source))

    def _consecutive_batches(self, epoch: int, start: int) -> Iterator[NDArray[np.int64]]:
        total, step = self.num_items, self.batch_size * self.world_size
        if self.pad and 0 < total % step < self.world_size:
            # Every rank needs an item in the last batch.
            total += self.world_size - total % step
        for first in range(start * step, total, step):
            positions = np.array_split(np.arange(first, min(first + step, total)), self.world_size)[self.rank]
            if len(positions):
                yield self._order(epoch, positions % self.num_items)

    def _grouped_batches(self, epoch: int, start: int, groups: Sequence[int]) -> Iterator[NDArray[np.int64]]:
        order = self._order(epoch, np.arange(self.num_items))
        batches = grouped_batches(order, groups, self.batch_size)
        if self.pad:
            batches += [batches[i % len(batches)] for i in range(-len(batches) % self.world_size)]
        yield from batches[self.rank :: self.world_size][start:]


class JointBatches(Sampler[list[ItemKey]]):
    """Joint batches of several datasets. The first one defines the epoch.

    In training the other datasets repeat in epochs of their own. Their position is a function of the number of batches,
    so that a resumed run continues all of them. In evaluation (`pad` is off) all are read once, and a batch may lack a
    dataset that has ended.

    Args:
        samplers: the batches of each dataset, for the same rank.
    """

    def __init__(self, samplers: Sequence[EpochBatches]) -> None:
        assert len({sampler.pad for sampler in samplers}) == 1, "all datasets train, or all are evaluated"
        self.samplers = samplers
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Selects the epoch of the next iteration, and its first batch (to resume inside an epoch)."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Number of joint batches of this rank in an epoch."""
        return len(self.samplers[0]) if self.samplers[0].pad else max(map(len, self.samplers))

    def __iter__(self) -> Iterator[list[ItemKey]]:
        epoch, start = self.epoch, self.start_batch
        num_batches = len(self) * epoch + start
        first, *others = self.samplers
        joint: Iterator[tuple[list[ItemKey], ...]]
        if first.pad:
            joint = zip(
                first.batches(epoch, start),
                *(_endless(sampler, num_batches) for sampler in others),
                strict=False,
            )
        else:
            joint = itertools.zip_longest(
                *(sampler.batches(epoch, start) for sampler in self.samplers), fillvalue=[]
            )
        for batches in joint:
            yield [key for batch in batches for key in batch]


def _endless(sampler: EpochBatches, num_batches: int) -> Iterator[list[ItemKey]]:
    """Yields the batches of epoch after epoch, without the first `num_batches`."""
    epoch, start = divmod(num_batches, len(sampler))
    while True:
        yield from sampler.batches(epoch, start)
        epoch, start = epoch + 1, 0
