"""A step never waits for its device: it neither reads a tensor nor makes one of Python's numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from common.distributed import process_group as distributed
from common.training.trainer import LossScaler
from tests.pretrain.test_model import CASES, mixed, thin_task

WAITING = {
    *(torch.tensor, torch.as_tensor, Tensor.new_tensor),  # copies from memory that is not page-locked
    *(Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
    *(torch.nonzero, Tensor.nonzero, torch.unique, Tensor.unique, torch.masked_select, Tensor.masked_select),
}


class Watch(TorchFunctionMode):
    """Notes calls that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        waits = function in WAITING
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            waits = any(isinstance(place, Tensor) and place.dtype == torch.bool for place in places)
        if function in (torch.repeat_interleave, Tensor.repeat_interleave):
            waits = "output_size" not in (kwargs or {})
        if waits:
            self.found.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: torch.tensor(1.0),
        lambda x: x.new_tensor([1.0]),
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: torch.repeat_interleave(x, torch.ones_like(x).long()),
    ],
)
def test_waiting_is_noticed(wait):
    values = torch.ones(3)
    with Watch() as watch:
        wait(values)
    assert watch.found


@CASES
def test_a_step_of_one_of_several_processes(name, changes, pixels, monkeypatch):
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    work = SimpleNamespace(wait=lambda: None)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda total, async_op: work)
    task, inputs = thin_task(name, *changes), mixed(pixels)
    model = task.build_model()
    with Watch() as watch:
        scaler = LossScaler([task.label_counts(inputs)], task.label_count_eps, torch.device("cpu"))
        outputs = model(inputs)
        task.total(scaler.scale(task.losses(outputs, inputs), 0)).backward()
        task.metrics(outputs, inputs, "train")
    assert not watch.found
