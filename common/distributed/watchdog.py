"""Finds the process that stalls while all others wait for it, and ends the run with its name."""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from common.distributed import process_group as distributed

logger = logging.getLogger(__name__)


STALL_STATUS = 1


_NO_STORE = "the process that keeps the store (torchrun or rank 0) does not answer"


class StallDetector:
    """A thread of every process that publishes how far it is, and reads the others when its own does not move.

    Whoever waits is further than who is waited for, so the one that is least far has stalled, unless it is excused.
    One that does not even publish any more has stalled whatever it was at. With a single process it does nothing.

    Args:
        seconds: `STALL_SECONDS`; 0 turns it off.
        end: ends the process with a message.
    """

    def __init__(self, seconds: float, end: Callable[[str], object] | None = None) -> None:
        self._seconds = seconds if distributed.is_distributed() else 0
        self._end = end or _end
        self._place = [0, 0]
        self._what = "the start"
        self._since = time.monotonic()
        # The first step may load, compile and tune.
        self._excused, self._patient = 1, True
        self._stop = threading.Event()
        self._looks = 0
        self._numbers = itertools.count()
        self._threads = [
            threading.Thread(target=target, name="watchdog", daemon=True)
            for target in (self._watch, self._watch_store)
        ]
        self._seen: dict[int, tuple[str, float]] = {}

    def __enter__(self) -> StallDetector:
        if self._seconds:
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            limit = timedelta(seconds=max(self._seconds / 4, 1))
            # A connection of its own: one that another thread waits on would answer late.
            store = TCPStore(host, port, is_master=False, timeout=limit)
            # torchrun keeps its store when it starts the processes anew.
            self._store = PrefixStore(f"watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}", store)
            self._publish()
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self._seconds / 4)

    def heartbeat(self, what: str, arrived: bool = False) -> None:
        """Says that this process has moved on.

        Args:
            what: what it has just done.
            arrived: whether it has come to a place where all ranks meet after a different number of beats.
        """
        self._place = [self._place[0] + 1, 0] if arrived else [self._place[0], self._place[1] + 1]
        self.keep_alive(what)

    def keep_alive(self, what: str) -> None:
        """Says that this process works, on something that other ranks may not have to do: it is no further."""
        self._what, self._since = what, time.monotonic()

    def first_step_done(self) -> None:
        """Ends the patience with the first step."""
        if self._patient:
            self._patient = False
            self._excused -= 1
            if self._seconds:
                self._publish()  # who freezes right after it is known to be past the start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Allows what is done inside any time, as for writing a large file; nothing inside waits for other ranks."""
        self._excused += 1
        try:
            yield
        finally:
            self._excused -= 1
            self._since = time.monotonic()

    def _waited(self) -> float:
        return time.monotonic() - self._since

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds / 8):
            waited = self._waited()
            try:
                self._publish()
                stalled = self._stalled() if waited > self._seconds / 2 else ""
            except (RuntimeError, ValueError):
                continue  # the other thread counts
            self._looks += 1
            if stalled and waited > self._seconds:
                self._report(stalled)

    def _watch_store(self) -> None:
        """Notices that the other thread has no answer: no timeout of its own covers a store which is frozen."""
        looks = silent = 0
        while not self._stop.wait(self._seconds / 8):
            silent = silent + 1 if looks == self._looks else 0
            looks = self._looks
            if silent > 4 and self._waited() > self._seconds:
                self._report(_NO_STORE)

    def _report(self, stalled: str) -> None:
        if not self._stop.is_set():
            self._end(f"no progress for more than {self._seconds:g} s (STALL_SECONDS): {stalled}")

    def _publish(self) -> None:
        # Never twice the same: that is how the others know that this process lives.
        state = [self._place, round(self._waited(), 3), self._what, bool(self._excused), next(self._numbers)]
        self._store.set(str(distributed.rank()), json.dumps(state))

    def _stalled(self) -> str:
        """Names the least far ranks if none of them moves or is excused, before others those that publish nothing."""
        ranks = range(distributed.world_size())
        if not self._store.check([str(rank) for rank in ranks]):
            return ""  # a process has not come to its loop yet
        now = time.monotonic()
        states: dict[int, list[Any]] = {}
        for rank in ranks:
            text = self._store.get(str(rank)).decode()
            states[rank] = json.loads(text)
            if self._seen.get(rank, ("", 0.0))[0] != text:
                self._seen[rank] = text, now
        first = min(state[0] for state in states.values())
        behind = {rank for rank, state in states.items() if state[0] == first}
        # A process that is frozen as a whole, or whose machine is gone, publishes nothing new.
        frozen = {rank for rank in ranks if now - self._seen[rank][1] > self._seconds / 3}
        moving = any(states[rank][3] or states[rank][1] <= self._seconds / 2 for rank in behind)
        stalled = behind & frozen or (set() if moving else frozen or behind)
        return ", ".join(f"rank {rank} stalled after {states[rank][2]}" for rank in sorted(stalled))


def _end(message: str) -> NoReturn:
    """Ends the process though its main thread waits in a collective."""
    sys.stderr.write(f"error: {message}; all processes end\n")
    sys.stderr.flush()
    logging.shutdown()
    os._exit(STALL_STATUS)
