"""Graceful shutdown on SIGTERM, SIGUSR1 and SIGINT: save at the end of the step and exit with a documented status."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from common.batch import Batch
from common.data.loader import BatchLoader
from common.distributed import process_group as distributed
from common.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

# Seconds. Ctrl-C in a terminal reaches every process; a launcher forwards it to them once more.
SAME_KEYPRESS = 1.0


class GracefulShutdown:
    """Context manager that handles SIGTERM, SIGUSR1 and SIGINT.

    A signal raises at once, except inside `deferred`: there it is only recorded, and `check` raises where the run can
    be saved. A second SIGINT always ends the run at once.

    Args:
        resumable: whether the same command resumes the run.

    Attributes:
        received_signal: the first signal received inside `deferred`; 0 if none.
    """

    def __init__(self, resumable: bool = True) -> None:
        self.received_signal = 0
        self._resumable = resumable
        self._received_at = 0.0
        self._deferred = False
        self._stopping = False
        self._max_over_ranks = distributed.AsyncMax()
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Records signals instead of raising. The code inside must call `check` regularly."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        repeated = self.received_signal and time.monotonic() - self._received_at > SAME_KEYPRESS
        if number == signal.SIGINT and (repeated or not self._deferred):
            raise KeyboardInterrupt
        if self._stopping:
            return
        if not self._deferred:
            self._stop(number)
        if not self.received_signal:
            self.received_signal, self._received_at = number, time.monotonic()

    def check(self) -> None:
        """Raises if any rank has received a signal. Collective, but no rank waits for another.

        With several processes a signal takes effect one call later, in the same call on every rank.

        Raises:
            Stopped: any rank has received a signal.
        """
        if number := self._max_over_ranks(self.received_signal):
            self._stop(number)

    def check_now(self) -> None:
        """Like `check`, but synchronizes all ranks, so that a signal takes effect in this call."""
        if number := max(distributed.gather_objects(self.received_signal)):
            self._stop(number)

    def _stop(self, number: int) -> NoReturn:
        self._stopping = True
        raise Stopped(number, self._resumable)


class InterruptibleLoader:
    """Wraps a validation loader so that a signal ends the iteration early and raises `Stopped` on every rank.

    Args:
        loader: the batches of this rank; ranks may have different numbers of them.
        shutdown: receives the signals.
        heartbeat: called as `heartbeat(activity, synchronized)` for every batch and after the last one.
    """

    def __init__(
        self, loader: BatchLoader[Any], shutdown: GracefulShutdown, heartbeat: Callable[[str, bool], None]
    ) -> None:
        self.batch_sampler = loader.batch_sampler
        self._loader = loader
        self._shutdown = shutdown
        self._heartbeat = heartbeat

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if self._shutdown.received_signal:
                break
            self._heartbeat("a batch of validation", False)
            yield batch
        # All ranks meet here, whether or not they have seen a signal and however many batches they had. Raising
        # inside the loop would leave the other ranks in the collective that reduces the metrics.
        self._heartbeat("the last batch of validation", True)
        self._shutdown.check_now()


def ignore_signals(worker_id: int) -> None:
    """Worker init function: lets a data worker survive a signal to the whole process group.

    The main process still needs its batches up to the end of the step. A second SIGTERM, or the end of the main
    process, ends the worker.
    """

    def ignore_once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_once)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
