"""Losses against stored numbers."""

from __future__ import annotations

import pytest
import torch

from common.batch import Lengths
from common.models.losses import choice_bce, mean_or_zero, sample_mean, soft_cross_entropy

LOGITS = torch.arange(20.0).view(4, 5) / 7
TARGET = torch.zeros(4, 5)
TARGET[0] = 0.2
TARGET[1, 2] = 0.95
TARGET[2, 1] = 0.5


def test_soft_cross_entropy_counts_rows_that_sum_to_one():
    per_row = soft_cross_entropy(LOGITS, TARGET, "none")
    assert per_row.tolist() == pytest.approx([1.629757, 1.548269, 0, 0], abs=1e-6)
    assert soft_cross_entropy(LOGITS, TARGET).item() == pytest.approx(1.589013, abs=1e-6)
    assert soft_cross_entropy(LOGITS, TARGET, "sum").item() == pytest.approx(3.178025, abs=1e-6)


@pytest.mark.parametrize(("reduction", "shape"), [("none", (4,)), ("mean", ()), ("sum", ())])
def test_without_a_label_the_loss_is_zero_and_reaches_the_logits(reduction, shape):
    logits = LOGITS.clone().requires_grad_()
    loss = soft_cross_entropy(logits, torch.zeros(4, 5), reduction)
    assert loss.shape == shape
    loss.sum().backward()
    assert torch.equal(logits.grad, torch.zeros(4, 5))


def test_an_unknown_reduction_is_named():
    with pytest.raises(ValueError, match="'avg'"):
        soft_cross_entropy(LOGITS, TARGET, "avg")


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 0.611650), (3.0, 0.450076)])
def test_choice_bce(weight, expected):
    logits = torch.tensor([[1.0, -1.0, 0.0, 2.0]])
    assert choice_bce(logits, torch.tensor([3]), weight).item() == pytest.approx(expected, abs=1e-6)


def test_mean_of_nothing_is_zero():
    nothing = torch.zeros(0, requires_grad=True)
    mean_or_zero(nothing).backward()
    assert mean_or_zero(torch.tensor([1.0, 3.0])).item() == 2


def test_mean_of_samples_by_the_number_of_the_spec():
    logits = (torch.arange(24.0) / 10).view(2, 3, 4)[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([1, 0, 2]), reduction="none")
    labelled = torch.tensor([True, False, True])
    assert sample_mean(loss, labelled, Lengths.of([3, 0])).item() == pytest.approx(1.392327, abs=1e-6)


def test_every_sample_counts_the_same():
    loss = torch.tensor([1.0, 2.0, 3.0, 9.0, 7.0])
    labelled = torch.tensor([True, True, True, False, True])
    found = sample_mean(loss, labelled, Lengths.of([3, 1, 0, 1]))
    assert found.item() == pytest.approx((2 + 7) / 2, rel=1e-3)
    nothing = sample_mean(loss[:0].requires_grad_(), labelled[:0], Lengths.of([0]))
    nothing.backward()
    assert nothing == 0
