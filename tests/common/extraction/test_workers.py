import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from common.errors import DataError, UserError
from common.extraction.workers import results_in_order
from tests.common.extraction.workers import Squares, fails, interrupted
from tests.world import ROOT

CPU = torch.device("cpu")


def test_one_device_is_this_process():
    results = list(results_in_order(iter(range(3)), Squares, [CPU]))
    assert results == [(number * number, "cpu", os.getpid()) for number in range(3)]
    with pytest.raises(DataError, match="nothing works on cpu"):
        list(results_in_order([1], fails, [CPU]))


@pytest.mark.dist
def test_several_processes_share_the_work_in_order(caplog):
    devices = [torch.device("cpu"), torch.device("cpu", 0)]
    results = list(results_in_order(iter(range(9)), Squares, devices))
    assert [square for square, _, _ in results] == [number * number for number in range(9)]
    assert {device for _, device, _ in results} == {"cpu", "cpu:0"}
    assert len({process for _, _, process in results} | {os.getpid()}) == 3
    assert caplog.messages == ["five"]


@pytest.mark.dist
def test_errors_of_processes_are_heard():
    for work, make, message in (
        ([1, 13], Squares, "13 is bad"),
        ([1], fails, "nothing works on cpu"),
        ([1, 99, 2, 3], Squares, "a process was killed, perhaps because memory was out"),
    ):
        with pytest.raises(UserError, match=message):
            list(results_in_order(work, make, [CPU, CPU]))


@pytest.mark.dist
def test_a_ctrl_c_is_not_for_the_processes_which_share_the_threads():
    threads, blocked = torch.get_num_threads(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    torch.set_num_threads(10)  # no machine has five of itself
    try:
        assert list(results_in_order([1, 2, 3], interrupted, [CPU, CPU])) == [5, 5, 5]
    finally:
        torch.set_num_threads(threads)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked  # here it is heard


def test_processes_that_cannot_be_started(monkeypatch):
    def submit(*_):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    with pytest.raises(UserError, match=r"cannot start a process \(Resource .*\): use fewer --processes"):
        list(results_in_order([1], Squares, [CPU, CPU]))


ENDLESS = """
import sys, torch
from common.extraction.workers import results_in_order
from tests.common.extraction.workers import endless
if __name__ == "__main__":
    list(results_in_order([sys.argv[1]] * 2, endless, [torch.device("cpu")] * 2))
"""


@pytest.mark.dist
def test_processes_end_with_their_parent(tmp_path):
    (tmp_path / "main.py").write_text(ENDLESS)
    (tmp_path / "at").mkdir()
    command = [sys.executable, tmp_path / "main.py", tmp_path / "at"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    deadline = time.monotonic() + 60
    with subprocess.Popen(command, env=environment, start_new_session=True) as started:
        while len(os.listdir(tmp_path / "at")) < 2 and time.monotonic() < deadline:
            assert started.poll() is None
            time.sleep(0.01)
        started.kill()
    left = list(map(int, os.listdir(tmp_path / "at")))
    assert len(left) == 2
    try:
        while left and time.monotonic() < deadline:
            left = [process for process in left if runs(process)]
            time.sleep(0.01)
        assert left == []
    finally:
        for process in left:
            os.kill(process, signal.SIGKILL)


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
