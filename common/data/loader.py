"""Data loaders with worker processes."""

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
from common.data.collate import NO_LIMITS, MicrobatchCollator, MicrobatchLimits
from common.data.dataset import VisualLinguisticDataset
from common.data.samplers import EpochBatches, ItemKey, JointBatches
from common.errors import DataError, UserError

BatchT = TypeVar("BatchT", bound=Batch)


class _ErrorReturningDataset(Dataset[Any]):
    """Returns a `UserError` instead of raising it: PyTorch would turn it into a traceback string."""

    def __init__(self, datasets: Sequence[VisualLinguisticDataset[Any]]) -> None:
        self.datasets = datasets

    def __getitems__(self, keys: list[ItemKey]) -> list[Sample] | UserError:
        try:
            return [self.datasets[key.source][key] for key in keys]
        except UserError as error:
            return error


class BatchLoader(DataLoader[BatchT]):
    """A `DataLoader` that re-raises worker errors with their type.

    Yields batches, or tuples of microbatches if limits are set.
    """

    @property
    def datasets(self) -> Sequence[VisualLinguisticDataset[Any]]:
        assert isinstance(self.dataset, _ErrorReturningDataset)
        return self.dataset.datasets

    def dead_workers(self, seconds: float) -> list[BaseProcess]:
        """Returns the workers that have exited, after waiting up to `seconds` for one."""
        workers: list[BaseProcess] = list(getattr(self._iterator, "_workers", ()))
        wait([worker.sentinel for worker in workers], seconds if workers else 0)
        return [worker for worker in workers if worker.exitcode is not None]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the reference to torch's iterator stays inside
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                # Raise a copy: the original keeps a reference cycle that would keep the workers alive.
                raise type(batch)(*batch.args)
            yield batch


@contextmanager
def worker_crash_context(**loaders: object) -> Iterator[None]:
    """Replaces the error that follows from the death of a worker: it may be a broken connection or an error of PyTorch.

    Args:
        loaders: loaders by the name of their data; only `BatchLoader` has workers.

    Raises:
        DataError: a worker has exited.
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
                    "the machine has run out of memory: lower NUM_WORKERS_PER_GPU or request more memory"
                ) from error
        raise


def build_loader(
    datasets: Sequence[VisualLinguisticDataset[Any]],
    batches: EpochBatches | JointBatches,
    *,
    batch_type: type[BatchT],
    num_workers: int,
    pin_memory: bool,
    limits: MicrobatchLimits = NO_LIMITS,
) -> BatchLoader[BatchT]:
    """Builds the loader of a dataset, or of several datasets with joint batches.

    Workers live as long as the loader. Call `batches.set_epoch` before each iteration; keys carry the epoch. The global
    generator of PyTorch is not used.

    Args:
        datasets: datasets, indexed by the source of a key.
        batches: batches of this rank.
        batch_type: class of the batches.
        num_workers: worker processes; 0 reads in this process.
        pin_memory: whether to pin batches for asynchronous copies; ignored without CUDA.
        limits: maximum size of a microbatch.
    """
    return BatchLoader(
        _ErrorReturningDataset(datasets),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=MicrobatchCollator(batch_type, limits),
        pin_memory=pin_memory and torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        # The default of Python 3.14, a fork server, dies by a signal to the process group and copies datasets.
        multiprocessing_context="fork" if num_workers > 0 and sys.platform == "linux" else None,
        generator=torch.Generator(),
    )


class Loader(Protocol):
    """Yields the batches of an epoch: a data loader or a list."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


def epoch_batches(loader: Loader, epoch: int, start: int = 0) -> Iterable[Any]:
    """Returns the batches of an epoch from index `start` on.

    A `batch_sampler` with `set_epoch` skips batches without reading them. Other loaders repeat the same epoch.
    """
    set_epoch: Callable[[int, int], None] | None = getattr(
        getattr(loader, "batch_sampler", None), "set_epoch", None
    )
    if set_epoch is None:
        return itertools.islice(loader, start, None)
    set_epoch(epoch, start)
    return loader
