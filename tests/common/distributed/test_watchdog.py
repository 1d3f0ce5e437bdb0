import contextlib
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.config.schema import ExperimentConfig
from common.distributed import process_group as distributed
from common.distributed.watchdog import StallDetector
from common.training.callbacks import Checkpointing, ValidationMonitor
from tests.common.distributed.processes import run_distributed


def watched(stall):
    """What each of two ranks says, and that of a run in which `stall(rank, watchdog)` is between two beats."""
    said = []
    with StallDetector(0.8, said.append) as watchdog:
        watchdog.first_step_done()
        watchdog.heartbeat("a step")
        stall(distributed.rank(), watchdog)
        distributed.barrier()
        watchdog.heartbeat("another step", arrived=True)
        distributed.barrier()
    return said[:1]


def sleeps(rank, watchdog):
    if rank == 0:
        watchdog.heartbeat("what rank 1 never does")
    time.sleep(1.6 * rank)


def works(rank, watchdog):
    """Rank 1 is far behind and gets on."""
    if rank == 0:
        for _ in range(20):
            watchdog.heartbeat("a step")
    for _ in range(8 * rank):
        time.sleep(0.2)
        watchdog.heartbeat("a step")


def writes(rank, watchdog):
    if rank == 0:
        watchdog.heartbeat("a step")
    with watchdog.paused() if rank == 1 else contextlib.nullcontext():
        time.sleep(1.6 * rank)


def has_fewer(rank, watchdog):
    """Rank 0 has validated and waits; rank 1 has more batches, and stalls."""
    if rank == 0:
        watchdog.heartbeat("the last batch", arrived=True)
    for _ in range(3 * rank):
        watchdog.heartbeat("a batch")
    time.sleep(1.6 * rank)


def has_more_parts(rank, watchdog):
    """Rank 0 has been through its only part and waits; rank 1 stalls in its fourth of five."""
    if rank == 0:
        watchdog.heartbeat("a pass")
    for _ in range(3 * rank):
        watchdog.keep_alive("a part")
    time.sleep(1.6 * rank)


def vanishes(rank, watchdog):
    """The machine of rank 1 is gone at a moment when both may take any time."""
    watchdog._publish()
    if rank == 1:
        watchdog._publish = lambda: None
    with watchdog.paused():
        time.sleep(2)


def saves(rank, watchdog):
    """Rank 0 waits for rank 1 as soon as it has written a checkpoint."""
    time.sleep(1.6 * rank)
    monitor = ValidationMonitor(dict, "Acc")
    checkpointing = Checkpointing(Path(tempfile.mkdtemp()), ExperimentConfig(), monitor, {})
    checkpointing.on_stop(
        SimpleNamespace(watchdog=watchdog, epoch=0, state_dict=lambda ended: {}, notify=lambda hook: None)
    )


def everything():
    return [watched(stall) for stall in (sleeps, works, writes, has_fewer, has_more_parts, vanishes, saves)]


@pytest.mark.dist
def test_who_has_stalled(tmp_path):
    said = run_distributed(everything, tmp_path)
    stalled = "no progress for more than 0.8 s (STALL_SECONDS): rank 1 stalled after "
    step = [stalled + "a step"]
    assert said[0] == [step, [], [], [stalled + "a batch"], [stalled + "a part"], step, step]


def test_a_single_process_needs_none():
    with StallDetector(0.01, pytest.fail) as watchdog:
        watchdog.first_step_done()
        time.sleep(0.05)
        watchdog.heartbeat("a step")
