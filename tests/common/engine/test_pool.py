import os

import pytest
import torch

from common.engine.pool import results_in_order
from common.errors import DataError, UserError
from tests.common.engine.workers import Squares, fails

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
