"""Which items form which batch, on which process: a function of (seed, epoch) alone.

The order of an epoch is fixed globally and then dealt out, so that all processes make equally many steps, and
a step of R processes with b items each trains on the same items as a step of one process with R * b.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class ItemKey(NamedTuple):
    """What samplers yield and datasets take; the epoch is part of it, as randomness depends on it."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a key


def item_rng(seed: int, epoch: int, index: int) -> random.Random:
    """Returns the generator of one item in one epoch, whatever worker or process reads it."""
    return random.Random(f"{seed}/{epoch}/{index}")


def epoch_order(num_items: int, *, shuffle: bool, seed: int, epoch: int) -> NDArray[np.int64]:
    """Returns the global order of an epoch, (num_items,) int64."""
    if not shuffle:
        return np.arange(num_items)
    return np.random.default_rng(item_rng(seed, epoch, -1).getrandbits(64)).permutation(num_items)


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
        pad: repeat items (with groups: batches) of the epoch's begin, so that all processes have equally many
            batches. Off for evaluation: every item exactly once over all processes.
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
        order = epoch_order(self.num_items, shuffle=self.shuffle, seed=self.seed, epoch=self.epoch)
        epoch = self.epoch
        batches = self._pieces(order) if self.groups is None else self._dealt(order, self.groups)
        for place, batch in enumerate(batches):
            if place >= self.start_batch:
                yield [ItemKey(epoch, index) for index in batch.tolist()]

    def _pieces(self, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        if self.pad:
            order = np.resize(order, -(-len(order) // self.world_size) * self.world_size)
        step = self.batch_size * self.world_size
        for start in range(0, len(order), step):
            batch = np.array_split(order[start : start + step], self.world_size)[self.rank]
            if len(batch):
                yield batch

    def _dealt(self, order: NDArray[np.int64], groups: Sequence[int]) -> Iterator[NDArray[np.int64]]:
        batches = grouped_batches(order, groups, self.batch_size)
        if self.pad:
            batches += [batches[i % len(batches)] for i in range(-len(batches) % self.world_size)]
        yield from batches[self.rank :: self.world_size]
