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


def step(precision):
    parameter = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    precision.backward(parameter.square().sum())
    precision.unscale_gradients(optimizer)
    precision.step(optimizer)
    precision.update_scale()
    return parameter


def test_autocast_fp32_does_not_cast():
    with Precision(CPU).autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_precision_fp16_on_cpu_uses_bfloat16_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        precision = Precision(CPU, "fp16")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "fp16 (TRAIN.PRECISION, FP16, --fp16) needs a GPU; the CPU computes in bf16" in caplog.text
    with precision.autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    assert precision.state_dict() == {}
    assert step(precision).item() == pytest.approx(2.4)


def test_precision_bf16_has_no_warning_and_no_scale(caplog):
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


def test_to_float32_converts_dataclasses():
    outputs = to_float32(Outputs(torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)))
    assert (outputs.logits.dtype, outputs.labels.dtype, outputs.absent) == (torch.float32, torch.int64, None)
    assert to_float32(torch.ones(1).half()).dtype == torch.float32
    assert to_float32("text") == "text"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_backward_spreads_nonfinite_loss_to_all_gradients(loss):
    parameter = nn.Parameter(torch.ones(2))
    Precision(CPU).backward(parameter.sum() + loss)
    assert parameter.grad.isnan().all()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "fp32"),
        ({"FP16": True}, "fp16"),
        ({"PRECISION": "tf32"}, "tf32"),
        ({"FP16": True, "PRECISION": "bf16"}, "bf16"),
    ],
)
def test_train_config_precision(keys, expected):
    assert TrainConfig(**keys).precision == expected


@pytest.mark.gpu
def test_precision_sets_tf32_only_if_configured():
    for precision, expected in (("tf32", "tf32"), ("fp32", "ieee")):
        Precision(torch.device("cuda"), precision)
        assert torch.backends.cuda.matmul.fp32_precision == expected
        assert torch.backends.cudnn.conv.fp32_precision == expected


@pytest.mark.gpu
@pytest.mark.parametrize(("scale", "after"), [(128.0, 128.0), ("dynamic", 32768.0)])
def test_precision_step_skips_overflow(scale, after):
    precision = Precision(torch.device("cuda"), "fp16", loss_scale=scale)
    parameter = nn.Parameter(torch.tensor([3.0], device="cuda"))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    precision.backward(parameter.sum() * float("inf"))
    precision.unscale_gradients(optimizer)
    precision.step(optimizer)
    precision.update_scale()
    optimizer.zero_grad()
    assert parameter.item() == 3
    assert precision.state_dict()["scale"] == after
    precision.backward(parameter.sum())
    precision.step(optimizer)
    assert parameter.item() == pytest.approx(2.9)
