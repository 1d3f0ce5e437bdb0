"""Which items form which batch, on which process: a function of (seed, epoch) alone.

The order of an epoch is fixed globally and then dealt out, so that all processes make equally many steps, and
a step of R processes with b items each trains on the same items as a step of one process with R * b. It is computed
piece by piece: a hundred million items cost no memory, and a run resumes anywhere at once.
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
    """What samplers yield and datasets take; the epoch is part of it, as randomness depends on it.

    Attributes:
        epoch: number of the pass over its dataset.
        index: place in it.
        source: which of several datasets, 0 for the first or only one.
    """

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a key
    source: int = 0


def item_rng(seed: int, epoch: int, index: int, source: int = 0) -> random.Random:
    """Returns the generator of one item in one epoch, whatever worker or process reads it."""
    return random.Random(f"{seed}/{epoch}/{index}" + (f"/{source}" if source else ""))


def permuted(places: NDArray[np.int64], num_items: int, rng: random.Random) -> NDArray[np.int64]:
    """Returns what stands at some places of a random permutation of 0 .. num_items - 1, int64 as `places`.

    A Feistel network permutes the next power of four; what falls beyond `num_items` goes through it again.
    """
    half = np.uint64(max(1, ((num_items - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    keys = np.array([rng.getrandbits(64) for _ in range(ROUNDS)], dtype=np.uint64)
    values = places.astype(np.uint64)
    beyond = np.ones(len(values), dtype=bool)
    while beyond.any():
        left, right = values[beyond] >> half, values[beyond] & low
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & low)
        values[beyond] = left << half | right
        beyond = values >= num_items
    return values.astype(np.int64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scrambles 64-bit numbers (the finisher of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def aspect_groups(widths: Sequence[float], heights: Sequence[float]) -> list[int]:
    """Returns 0 for pictures at least as wide as high, else 1."""
    return [int(width < height) for width, height in zip(widths, heights, strict=True)]


def grouped_batches(
    order: NDArray[np.int64], groups: Sequence[int], batch_size: int
) -> list[NDArray[np.int64]]:
    """Cuts an order into batches whose items share a group (data spec 7.3).

    Every group keeps its order and ends with a possibly short batch; batches follow the place of their first
    item.
    """
    group_of = np.asarray(groups)[order]
    batches = []
    for group in np.unique(group_of):
        places = np.flatnonzero(group_of == group)
        batches += [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    batches.sort(key=lambda places: int(places[0]))
    return [order[places] for places in batches]


class EpochBatches(Sampler[list[ItemKey]]):
    """The batches of this process in the current epoch.

    Without groups, step j of all processes together covers a consecutive piece of the global order, and the
    last piece is split evenly. With groups, batches are cut globally and dealt out in turn.

    Args:
        num_items: length of the dataset.
        batch_size: items per batch and process.
        shuffle: whether each epoch has an order of its own; else dataset order.
        seed: RNG_SEED.
        rank: this process.
        world_size: number of processes.
        groups: group of every item, when a batch must not mix groups.
        pad: repeat items (with groups: batches) of the epoch's begin where a last step has fewer than there are
            processes, so that all have equally many batches. Off for evaluation: every item exactly once over all
            processes.
        source: which of several datasets the items belong to.
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
        assert num_items > 0, "a dataset has items"
        assert batch_size > 0, "a batch has items"
        assert 0 <= rank < world_size, "ranks count from 0"
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
        """Selects the epoch that the next iteration walks through, and its first batch (to resume inside)."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Batches of this process in a whole epoch: equal for all epochs, and for all processes if padded."""
        if self.groups is not None:
            sizes = np.unique(np.asarray(self.groups), return_counts=True)[1]
            count = int(np.sum(-(-sizes // self.batch_size)))
            return len(range(0 if self.pad else self.rank, count, self.world_size))
        full, rest = divmod(self.num_items, self.batch_size * self.world_size)
        return full + bool(rest and (self.pad or rest > self.rank))

    def __iter__(self) -> Iterator[list[ItemKey]]:
        return self.batches(self.epoch, self.start_batch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[ItemKey]]:
        """Yields the batches of an epoch from number `start` on."""
        pieces = self._pieces(epoch, start) if self.groups is None else self._dealt(epoch, start, self.groups)
        for piece in pieces:
            yield [ItemKey(epoch, index, self.source) for index in piece.tolist()]

    def _order(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """What stands at some places of the global order of an epoch."""
        if not self.shuffle:
            return places
        return permuted(places, self.num_items, item_rng(self.seed, epoch, -1, self.source))

    def _pieces(self, epoch: int, start: int) -> Iterator[NDArray[np.int64]]:
        total, step = self.num_items, self.batch_size * self.world_size
        if self.pad and 0 < total % step < self.world_size:  # every process has an item in every step
            total += self.world_size - total % step
        for first in range(start * step, total, step):
            places = np.array_split(np.arange(first, min(first + step, total)), self.world_size)[self.rank]
            if len(places):
                yield self._order(epoch, places % self.num_items)

    def _dealt(self, epoch: int, start: int, groups: Sequence[int]) -> Iterator[NDArray[np.int64]]:
        order = self._order(epoch, np.arange(self.num_items))
        batches = grouped_batches(order, groups, self.batch_size)
        if self.pad:
            batches += [batches[i % len(batches)] for i in range(-len(batches) % self.world_size)]
        yield from batches[self.rank :: self.world_size][start:]


class JointBatches(Sampler[list[ItemKey]]):
    """Joint batches of several datasets (data spec 7.5): the first one defines the epoch.

    In training the others go round and round beside it, each in epochs of its own. Where they stand is a function
    of the steps made, so that a resumed run continues all of them. In evaluation (`pad` is off) all are taken
    once, and a batch may lack parts when one of them is at its end.

    Args:
        parts: the batches of each dataset, for the same process.
    """

    def __init__(self, parts: Sequence[EpochBatches]) -> None:
        assert len({part.pad for part in parts}) == 1, "all parts train, or all are evaluated"
        self.parts = parts
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Selects the epoch that the next iteration walks through, and its first batch (to resume inside)."""
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Joint batches of this process in an epoch."""
        return len(self.parts[0]) if self.parts[0].pad else max(map(len, self.parts))

    def __iter__(self) -> Iterator[list[ItemKey]]:
        epoch, start = self.epoch, self.start_batch
        steps = len(self) * epoch + start
        first, *others = self.parts
        joint: Iterator[tuple[list[ItemKey], ...]]
        if first.pad:
            joint = zip(
                first.batches(epoch, start), *(_endless(part, steps) for part in others), strict=False
            )
        else:
            joint = itertools.zip_longest(*(part.batches(epoch, start) for part in self.parts), fillvalue=[])
        for batches in joint:
            yield [key for batch in batches for key in batch]


def _endless(part: EpochBatches, steps: int) -> Iterator[list[ItemKey]]:
    """The batches of one pass after the other, `steps` batches after the beginning."""
    epoch, start = divmod(steps, len(part))
    while True:
        yield from part.batches(epoch, start)
        epoch, start = epoch + 1, 0
