"""Signals that end a run: it is saved at the next place where that can be done, and says so by its exit status."""

from __future__ import annotations

import os
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

REQUEUE_STATUS = os.EX_TEMPFAIL
"""Exit status (75) of a run that SIGTERM or SIGUSR1 ended: started again, it goes on where it was."""


INTERRUPT_STATUS = 130
"""Exit status of a run that SIGINT (Ctrl-C) ended."""


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


# A launcher passes the terminal's Ctrl-C on to processes that already have it.
SAME_KEYPRESS = 1.0


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A signal ended the run; what it had done is saved.

    Args:
        number: the signal.
        resumable: whether the same command, started again, goes on where it was.

    Attributes:
        exit_status: status of the process.
    """

    def __init__(self, number: int, resumable: bool = True) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = REQUEUE_STATUS if resumable and number != signal.SIGINT else 128 + number


class GracefulShutdown:
    """Takes SIGTERM, SIGUSR1 and SIGINT while it is entered.

    Outside of `deferred` there is nothing to save and they end the run at once. Inside they are noted, until the
    run comes to `check`; only a second SIGINT ends it unsaved.

    Args:
        resumable: whether the same command, started again, goes on where it was.

    Attributes:
        asked: the signal that came, 0 without one.
    """

    def __init__(self, resumable: bool = True) -> None:
        self.asked = 0
        self._goes_on = resumable
        self._ends = False
        self._since = 0.0
        self._deferred = False
        self._agree = distributed.AsyncMax()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._take) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Notes signals only; who runs inside calls `check` where the run can be saved."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        again = self.asked and time.monotonic() - self._since > SAME_KEYPRESS
        if number == signal.SIGINT and (again or not self._deferred):
            raise KeyboardInterrupt
        if self._ends:
            return  # it is ending
        if not self._deferred:
            self._end(number)
        if not self.asked:
            self.asked, self._since = number, time.monotonic()

    def check(self) -> None:
        """Ends the run if any rank has been asked to. Collective, and never waits for another rank.

        With several processes, all learn of a signal one call late.

        Raises:
            Stopped: on all ranks in the same call.
        """
        if number := self._agree(self.asked):
            self._end(number)

    def check_now(self) -> None:
        """As `check`, but waits for all ranks and knows at once."""
        if number := max(distributed.gather_objects(self.asked)):
            self._end(number)

    def _end(self, number: int) -> NoReturn:
        self._ends = True
        raise Stopped(number, self._goes_on)


class Interruptible:
    """A loader whose batches end early when a signal comes; then the loop over it raises `Stopped` on all ranks.

    Args:
        loader: the batches of this process; every rank may have another number of them.
        stop: the signals.
        beat: called for each batch, and with True after the last.
    """

    def __init__(
        self, loader: BatchLoader[Any], stop: GracefulShutdown, beat: Callable[[str, bool], None]
    ) -> None:
        self.batch_sampler = loader.batch_sampler
        self._loader = loader
        self._stop = stop
        self._beat = beat

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if self._stop.asked:
                break
            self._beat("a batch of validation", False)
            yield batch
        self._beat("the last batch of validation", True)
        self._stop.check_now()


def ignore_signals(worker: int) -> None:
    """Lets a loader's worker survive a signal to the whole process group: its batches are needed until the end.

    The second SIGTERM, or the end of the main process, ends it.
    """

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, once)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
