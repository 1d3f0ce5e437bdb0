"""Batches from worker processes, in the order of their sampler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from common.batch import Batch, Sample
from common.data.dataset import VisualLinguisticDataset
from common.data.parts import NO_LIMITS, Limits, PartsCollator
from common.data.sampling import EpochBatches, ItemKey, JointBatches
from common.errors import UserError

BatchT = TypeVar("BatchT", bound=Batch)


class _Guarded(Dataset[Any]):
    """Returns a user's error instead of raising it: torch would bury it in a traceback string."""

    def __init__(self, datasets: Sequence[VisualLinguisticDataset[Any]]) -> None:
        self.datasets = datasets

    def __getitems__(self, keys: list[ItemKey]) -> list[Sample] | UserError:
        try:
            return [self.datasets[key.source][key] for key in keys]
        except UserError as error:
            return error


class BatchLoader(DataLoader[BatchT]):
    """A `DataLoader` whose worker errors arrive as they were raised.

    It yields batches, or with limits the parts of each batch.
    """

    @property
    def datasets(self) -> Sequence[VisualLinguisticDataset[Any]]:
        """What it reads from."""
        assert isinstance(self.dataset, _Guarded)
        return self.dataset.datasets

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the reference to torch's iterator stays inside
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                # A new one: raised itself, it and this frame would hold each other, and with them the workers.
                raise type(batch)(*batch.args)
            yield batch


def build_loader(
    datasets: Sequence[VisualLinguisticDataset[Any]],
    batches: EpochBatches | JointBatches,
    *,
    batch_type: type[BatchT],
    num_workers: int,
    pin_memory: bool,
    limits: Limits = NO_LIMITS,
) -> BatchLoader[BatchT]:
    """Builds the loader of a dataset, or of several for joint batches.

    Workers live as long as the loader. Call `batches.set_epoch` before each iteration; the epoch travels with
    the keys. The global generator of torch is not touched.

    Args:
        datasets: items by key, by the source of the key.
        batches: the batches of this process.
        batch_type: class of the batches.
        num_workers: worker processes; 0 reads in this process.
        pin_memory: page-locked batches for copies that do not block; without effect where CUDA is absent.
        limits: of the parts that each batch then comes in, as a tuple.
    """
    return BatchLoader(
        _Guarded(datasets),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=PartsCollator(batch_type, limits),
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),
    )
