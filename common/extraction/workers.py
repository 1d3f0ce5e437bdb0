"""Work that several processes share, each with a device of its own; results come in the order of the work."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from logging.handlers import QueueHandler, QueueListener
from typing import Any, ClassVar, TypeVar

import torch

from common.errors import UserError

WorkT = TypeVar("WorkT")


ResultT = TypeVar("ResultT")


Worker = Callable[[Any], Any]


MakeWorker = Callable[[torch.device], Worker]


def results_in_order(
    work: Iterable[Any], make_worker: MakeWorker, devices: Sequence[torch.device]
) -> Iterator[Any]:
    """Yields the result of every piece of work, in their order.

    Args:
        work: taken as far as processes are free; it is sent to them, and so are results.
        make_worker: makes what does the work on a device; sent to the processes.
        devices: one process works on each; a single one is this process.

    Raises:
        UserError: what a worker raises; or a process was killed or cannot be started.
    """
    if len(devices) == 1:
        yield from map(make_worker(devices[0]), work)
        return
    with _processes(make_worker, devices) as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for piece in work:
                waiting.append(_submit(pool, piece))
                # Results that wait take memory.
                if len(waiting) > 2 * len(devices):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process was killed, perhaps because memory was out: use fewer --processes; the same command "
                "continues"
            ) from error


@contextmanager
def _processes(make_worker: MakeWorker, devices: Sequence[torch.device]) -> Iterator[ProcessPoolExecutor]:
    """Starts a process for each device; what they log is logged here."""
    context = multiprocessing.get_context("spawn")
    unused, messages = context.SimpleQueue(), context.Queue()
    for device in devices:
        unused.put(str(device))
    threads = max(1, torch.get_num_threads() // len(devices))
    listener = QueueListener(messages, *logging.getLogger().handlers)
    listener.start()
    pool = ProcessPoolExecutor(
        len(devices), context, _Process.start, (make_worker, unused, messages, threads)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        listener.stop()


def _submit(pool: ProcessPoolExecutor, piece: Any) -> Future[Any]:
    # Processes start here, and inherit that Ctrl-C, which the whole group gets, is not for them: this one ends them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_Process.work, piece)
    except OSError as error:
        raise UserError(f"cannot start a process ({error.strerror}): use fewer --processes") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process:
    """What one of the processes holds."""

    make_worker: ClassVar[MakeWorker]
    device: ClassVar[torch.device]
    worker: ClassVar[Worker | None] = None

    @classmethod
    def start(cls, make_worker: MakeWorker, unused: Any, messages: Any, threads: int) -> None:
        """Prepares the process; what may fail waits for its first work, so that its error is heard."""
        threading.Thread(target=_end_with_parent, daemon=True).start()
        logging.getLogger().addHandler(QueueHandler(messages))
        torch.set_num_threads(threads)
        cls.make_worker, cls.device = make_worker, torch.device(unused.get())

    @classmethod
    def work(cls, piece: Any) -> Any:
        """Does a piece of work."""
        if cls.worker is None:
            cls.worker = cls.make_worker(cls.device)
        return cls.worker(piece)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
