import logging

import pytest
import torch
from torch import nn

from common.engine.precision import Precision

CPU = torch.device("cpu")


def step(precision, clip_norm=-1.0):
    parameter = nn.Parameter(torch.tensor([3.0]))
    model = nn.ParameterList([parameter])
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    precision.backward(parameter.square().sum())
    norm = precision.update(optimizer, model, clip_norm)
    return parameter, norm


def test_an_update_sets_gradients_to_zero_and_keeps_them():
    parameter, norm = step(Precision(CPU))
    assert parameter.item() == pytest.approx(2.4)
    assert parameter.grad.item() == 0
    assert norm.item() == 6


def test_clipping_returns_the_norm_before_it():
    parameter, norm = step(Precision(CPU), clip_norm=1.0)
    assert norm.item() == 6
    assert parameter.item() == pytest.approx(2.9, abs=1e-5)


def test_single_precision_does_not_cast():
    with Precision(CPU).autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_half_precision_on_a_cpu_is_bfloat16_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        precision = Precision(CPU, "fp16")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "bfloat16" in caplog.text
    with precision.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    assert precision.state_dict() == {}
    assert step(precision)[0].item() == pytest.approx(2.4)


@pytest.mark.gpu
@pytest.mark.parametrize(("scale", "after"), [(128.0, 128.0), ("dynamic", 32768.0)])
def test_an_overflow_skips_the_update(scale, after):
    precision = Precision(torch.device("cuda"), "fp16", loss_scale=scale)
    parameter = nn.Parameter(torch.tensor([3.0], device="cuda"))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    precision.backward(parameter.sum() * float("inf"))
    precision.update(optimizer, nn.ParameterList([parameter]), 1.0)
    assert parameter.item() == 3
    assert precision.state_dict()["scale"] == after
    precision.backward(parameter.sum())
    precision.update(optimizer, nn.ParameterList([parameter]), -1.0)
    assert parameter.item() == pytest.approx(2.9)
