"""Batches from worker processes, in the order of their sampler."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from common.batch import Batch, Sample
from common.data.collate import NO_LIMITS, Limits, MicrobatchCollator
from common.data.dataset import VisualLinguisticDataset
from common.data.samplers import EpochBatches, ItemKey, JointBatches
from common.errors import DataError, UserError

BatchT = TypeVar("BatchT", bound=Batch)


class _ErrorReturningDataset(Dataset[Any]):
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
        assert isinstance(self.dataset, _ErrorReturningDataset)
        return self.dataset.datasets

    def dead_workers(self, seconds: float) -> list[BaseProcess]:
        """Returns the workers that have ended, after waiting so long for one."""
        workers: list[BaseProcess] = list(getattr(self._iterator, "_workers", ()))
        wait([worker.sentinel for worker in workers], seconds if workers else 0)
        return [worker for worker in workers if worker.exitcode is not None]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the reference to torch's iterator stays inside
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                # A new one: raised itself, it and this frame would hold each other, and with them the workers.
                raise type(batch)(*batch.args)
            yield batch


@contextmanager
def worker_crash_context(**loaders: object) -> Iterator[None]:
    """Says which loader has lost a worker: that may show anywhere, as a torn connection or as torch's own error.

    Args:
        loaders: by the name of their data; only those of class `BatchLoader` have workers.

    Raises:
        DataError: in place of the error that follows from the end of a worker.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        for name, loader in loaders.items():
            for worker in loader.dead_workers(1.0) if isinstance(loader, BatchLoader) else ():
                status = worker.exitcode or 0
                how = signal.Signals(-status).name if status < 0 else f"status {status}"
                raise DataError(
                    f"a process that reads the {name} data (pid {worker.pid}) ended with {how}; if nobody killed it, "
                    "the machine has run out of memory: lower NUM_WORKERS_PER_GPU or ask for more memory"
                ) from error
        raise


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
        _ErrorReturningDataset(datasets),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=MicrobatchCollator(batch_type, limits),
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        # Python 3.14 would start them from a server that a signal to the process group ends, and copy the data sets.
        multiprocessing_context="fork" if num_workers > 0 and sys.platform == "linux" else None,
        generator=torch.Generator(),
    )


class Loader(Protocol):
    """The batches of an epoch, or the parts of each: a data loader, or simply a list."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


def batches_of(loader: Loader, epoch: int, start: int = 0) -> Iterable[Any]:
    """Returns the batches of an epoch from number `start` on.

    A loader whose `batch_sampler` has `set_epoch` skips without reading; other loaders repeat the same epoch.
    """
    set_epoch: Callable[[int, int], None] | None = getattr(
        getattr(loader, "batch_sampler", None), "set_epoch", None
    )
    if set_epoch is None:
        return itertools.islice(loader, start, None)
    set_epoch(epoch, start)
    return loader
