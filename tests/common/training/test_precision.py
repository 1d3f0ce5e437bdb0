from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from common.config.sections import TrainConfig
from common.training.precision import Precision, to_float32

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
    assert "fp16 (TRAIN.PRECISION, FP16, --fp16) needs a GPU; the CPU computes in bf16" in caplog.text
    with precision.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    assert precision.state_dict() == {}
    assert step(precision)[0].item() == pytest.approx(2.4)


def test_bfloat16_needs_no_warning_and_no_scale(caplog):
    precision = Precision(CPU, "bf16")
    assert not caplog.records
    with precision.autocast():
        outputs = nn.Linear(2, 2)(torch.ones(1, 2))
    assert outputs.dtype == torch.bfloat16
    assert (precision.scaled, precision.state_dict()) == (False, {})


@dataclass
class Outputs:
    logits: torch.Tensor
    labels: torch.Tensor
    absent: torch.Tensor | None = None


def test_outputs_are_turned_to_single_precision():
    outputs = to_float32(Outputs(torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)))
    assert (outputs.logits.dtype, outputs.labels.dtype, outputs.absent) == (torch.float32, torch.int64, None)
    assert to_float32(torch.ones(1).half()).dtype == torch.float32
    assert to_float32("text") == "text"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_reaches_every_gradient(loss):
    parameter = nn.Parameter(torch.ones(2))
    Precision(CPU).backward(parameter.sum() + loss)
    assert parameter.grad.isnan().all()


def test_an_update_that_is_not_accepted_changes_nothing():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    precision = Precision(CPU)
    precision.backward(parameter.sum() * math.nan)
    assert precision.update(optimizer, nn.ParameterList([parameter]), 1.0).isnan()
    assert torch.equal(parameter, torch.ones(2))
    assert torch.equal(parameter.grad, torch.zeros(2))
    assert not optimizer.state


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "fp32"),
        ({"FP16": True}, "fp16"),
        ({"PRECISION": "tf32"}, "tf32"),
        ({"FP16": True, "PRECISION": "bf16"}, "bf16"),
    ],
)
def test_which_number_format_is_configured(keys, expected):
    assert TrainConfig(**keys).precision == expected


@pytest.mark.gpu
def test_tf32_is_only_used_where_it_is_asked_for():
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee")):
        Precision(torch.device("cuda"), precision)
        assert torch.backends.cuda.matmul.fp32_precision == expected
        assert torch.backends.cudnn.conv.fp32_precision == expected


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
