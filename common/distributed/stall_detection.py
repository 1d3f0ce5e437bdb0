"""Detects the rank that stalls while all others wait for it, and ends the run with its number."""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, NoReturn

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from common.distributed import process_group as distributed

STALL_STATUS = 1

_STORE_SILENT = "the process that keeps the store (torchrun or rank 0) does not answer"


class RankState(NamedTuple):
    """What a rank publishes in the store.

    Attributes:
        progress: number of synchronized heartbeats, then of other heartbeats since. Compares like a version number.
        idle: seconds since the last sign of life.
        activity: the last thing that the rank has done.
        excused: whether the rank may take any time at the moment.
        sequence: makes two publications differ, which shows that the process is alive.
    """

    progress: list[int]
    idle: float
    activity: str
    excused: bool
    sequence: int


class StallDetector:
    """Context manager that runs a watching thread on every rank. It does nothing with a single process.

    Every rank publishes its progress in a store, and looks at the other ranks when it makes none itself. A rank
    blocked in a collective has made more progress than the rank it waits for; the rank with the least progress is
    reported as stalled, unless it is excused. A rank that publishes nothing any more has stalled in any case.

    Args:
        seconds: `STALL_SECONDS`, time without progress; 0 turns detection off.
        on_stall: ends the process with a message.
    """

    def __init__(self, seconds: float, on_stall: Callable[[str], object] | None = None) -> None:
        self._seconds = seconds if distributed.is_distributed() else 0
        self._on_stall = on_stall or _exit_process
        self._progress = [0, 0]
        self._activity = "the start"
        self._last_sign = time.monotonic()
        # The first step may load data, compile and tune kernels.
        self._excuses, self._in_first_step = 1, True
        self._closed = threading.Event()
        self._store_answers = 0
        self._sequence = itertools.count()
        # For each rank its last publication, and when this rank first saw it.
        self._last_seen: dict[int, tuple[str, float]] = {}
        self._threads = [
            threading.Thread(target=target, name="stall detection", daemon=True)
            for target in (self._watch_ranks, self._watch_store)
        ]

    def __enter__(self) -> StallDetector:
        if self._seconds:
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            timeout = timedelta(seconds=max(self._seconds / 4, 1))
            # A connection of its own: a connection on which another thread waits would answer late.
            store = TCPStore(host, port, is_master=False, timeout=timeout)
            # torchrun keeps its store when it restarts the processes; a prefix hides the old progress.
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
            self._store = PrefixStore(f"stall_detection/{attempt}", store)
            self._publish()
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(self._seconds / 4)

    def heartbeat(self, activity: str, synchronized: bool = False) -> None:
        """Reports progress.

        Args:
            activity: what this rank has just done.
            synchronized: whether all ranks get here, after possibly different numbers of heartbeats.
        """
        synchronized_count, count = self._progress
        self._progress = [synchronized_count + 1, 0] if synchronized else [synchronized_count, count + 1]
        self.keep_alive(activity)

    def keep_alive(self, activity: str) -> None:
        """Reports work that other ranks may not have to do: a sign of life, but no progress."""
        self._activity, self._last_sign = activity, time.monotonic()

    def first_step_done(self) -> None:
        """Ends the unlimited time for the first step."""
        if self._in_first_step:
            self._in_first_step = False
            self._excuses -= 1
            if self._seconds:
                # Publish now: a rank that freezes before its next publication must not count as excused.
                self._publish()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Allows any time, for example to write a large file. The code inside must not wait for other ranks."""
        self._excuses += 1
        try:
            yield
        finally:
            self._excuses -= 1
            self._last_sign = time.monotonic()

    def _idle(self) -> float:
        return time.monotonic() - self._last_sign

    def _watch_ranks(self) -> None:
        while not self._closed.wait(self._seconds / 8):
            idle = self._idle()
            try:
                self._publish()
                stalled = self._stalled_ranks() if idle > self._seconds / 2 else ""
            except (RuntimeError, ValueError):
                continue  # no answer: left to the thread that watches the store
            self._store_answers += 1
            if stalled and idle > self._seconds:
                self._report(stalled)

    def _watch_store(self) -> None:
        """Notices that the store does not answer the other thread. A frozen store does not trigger its timeout."""
        answers = silent_ticks = 0
        while not self._closed.wait(self._seconds / 8):
            silent_ticks = silent_ticks + 1 if answers == self._store_answers else 0
            answers = self._store_answers
            if silent_ticks > 4 and self._idle() > self._seconds:
                self._report(_STORE_SILENT)

    def _report(self, stalled: str) -> None:
        if not self._closed.is_set():
            self._on_stall(f"no progress for more than {self._seconds:g} s (STALL_SECONDS): {stalled}")

    def _publish(self) -> None:
        state = RankState(
            self._progress, round(self._idle(), 3), self._activity, self._excuses > 0, next(self._sequence)
        )
        self._store.set(str(distributed.rank()), json.dumps(state))

    def _stalled_ranks(self) -> str:
        """Describes the stalled ranks; empty if there are none."""
        ranks = range(distributed.world_size())
        if not self._store.check([str(rank) for rank in ranks]):
            return ""  # a rank has not entered its loop yet
        now = time.monotonic()
        states: dict[int, RankState] = {}
        for rank in ranks:
            text = self._store.get(str(rank)).decode()
            states[rank] = RankState(*json.loads(text))
            if self._last_seen.get(rank, ("", 0.0))[0] != text:
                self._last_seen[rank] = text, now
        silent = {rank for rank in ranks if now - self._last_seen[rank][1] > self._seconds / 3}
        stalled = stalled_ranks(states, silent, self._seconds / 2)
        return ", ".join(f"rank {rank} stalled after {states[rank].activity}" for rank in stalled)


def stalled_ranks(states: Mapping[int, RankState], silent: Set[int], max_idle: float) -> list[int]:
    """Decides which ranks have stalled.

    Args:
        states: what each rank has published last.
        silent: ranks that publish nothing new: the process is frozen, or its machine is gone.
        max_idle: seconds after which a rank is idle.
    """
    least = min(state.progress for state in states.values())
    behind = {rank for rank, state in states.items() if state.progress == least}
    # What a silent rank has published last, even that it is excused, is out of date.
    if behind & silent:
        return sorted(behind & silent)
    if any(states[rank].excused or states[rank].idle <= max_idle for rank in behind):
        return []
    return sorted(silent or behind)


def _exit_process(message: str) -> NoReturn:
    """Ends the process although its main thread waits in a collective, which no exception could interrupt."""
    sys.stderr.write(f"error: {message}; all processes end\n")
    sys.stderr.flush()
    logging.shutdown()
    os._exit(STALL_STATUS)
