import os
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.config.schema import ExperimentConfig
from common.distributed import process_group as distributed
from common.distributed.stall_detection import RankState, StallDetector, stalled_ranks
from common.training.callbacks import Checkpointing, ValidationMonitor
from tests.common.distributed.processes import run_distributed

IDLE, ACTIVE = 9.0, 0.1


def state(progress, idle=IDLE, excused=False):
    return RankState(progress, idle, "a step", excused, 0)


@pytest.mark.parametrize(
    ("states", "silent", "expected"),
    [
        pytest.param([state([0, 2]), state([0, 1])], set(), [1], id="behind"),
        pytest.param([state([0, 1]), state([0, 1])], set(), [0, 1], id="all"),
        pytest.param([state([0, 9]), state([0, 1], ACTIVE)], set(), [], id="behind but active"),
        pytest.param([state([0, 2]), state([0, 1], excused=True)], set(), [], id="behind but excused"),
        pytest.param(
            [state([1, 0]), state([0, 9])], set(), [1], id="more heartbeats before a synchronized one"
        ),
        pytest.param([state([0, 1]), state([0, 1], excused=True)], {1}, [1], id="silent although excused"),
        pytest.param([state([0, 1]), state([0, 2])], {1}, [1], id="silent ahead of an idle rank"),
        pytest.param([state([0, 1], ACTIVE), state([0, 2])], {1}, [], id="silent ahead of an active rank"),
    ],
)
def test_stalled_ranks_are_the_last_ones(states, silent, expected):
    assert stalled_ranks(dict(enumerate(states)), silent, 1.0) == expected


def messages(stall):
    """Runs `stall(rank, detector)` between two heartbeats and returns the first message of this rank."""
    said = []
    with StallDetector(0.8, said.append) as detector:
        detector.first_step_done()
        detector.heartbeat("a step")
        stall(distributed.rank(), detector)
        distributed.barrier()
        detector.heartbeat("another step", synchronized=True)
        distributed.barrier()
    return said[:1]


def sleeps(rank, detector):
    if rank == 0:
        detector.heartbeat("a step that rank 1 never does")
    time.sleep(1.6 * rank)


def has_more_microbatches(rank, detector):
    if rank == 0:
        detector.heartbeat("a step that rank 1 never does")
    for _ in range(3 * rank):
        detector.keep_alive("a microbatch")
    time.sleep(1.6 * rank)


def works(rank, detector):
    if rank == 0:
        detector.heartbeat("a step that rank 1 never does")
    for _ in range(8 * rank):
        time.sleep(0.2)
        detector.keep_alive("a microbatch")


def freezes(rank, detector):
    """Rank 1 freezes as a whole while both ranks are excused."""
    with detector.paused():
        _, pid = distributed.gather_objects(os.getpid())
        if rank == 1:
            time.sleep(0.3)  # publishes that it is excused
            os.kill(pid, signal.SIGSTOP)
        else:
            time.sleep(2)
            os.kill(pid, signal.SIGCONT)


def saves(rank, detector):
    """Rank 0 waits for rank 1 as soon as it has written a checkpoint."""
    time.sleep(1.6 * rank)
    monitor = ValidationMonitor(dict, "Acc")
    checkpointing = Checkpointing(Path(tempfile.mkdtemp()), ExperimentConfig(), monitor, {})
    trainer = SimpleNamespace(
        monitor=SimpleNamespace(stall_detector=detector),
        state=SimpleNamespace(epoch=0),
        state_dict=lambda epoch_ended: {},
        notify=lambda hook: None,
    )
    checkpointing.on_stop(trainer)


def all_messages():
    return [messages(stall) for stall in (sleeps, has_more_microbatches, works, freezes, saves)]


@pytest.mark.dist
def test_stall_detector_names_the_stalled_rank(tmp_path):
    by_rank = run_distributed(all_messages, tmp_path)
    head = "no progress for more than 0.8 s (STALL_SECONDS): rank 1 stalled after "
    step = [head + "a step"]
    assert by_rank[0] == [step, [head + "a microbatch"], [], step, step]


def test_stall_detector_does_nothing_with_a_single_process():
    with StallDetector(1e-9, pytest.fail) as detector:
        detector.first_step_done()
        detector.heartbeat("a step")
