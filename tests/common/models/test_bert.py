"""Attention kernels agree with each other, and rows do not see each other."""

from __future__ import annotations

import warnings

import pytest
import torch

from common.batch import Lengths
from common.models.bert import Encoder

LENGTHS = [Lengths.of([5, 1, 3]), Lengths.of([4, 4])]
SIZES = {"hidden_size": 8, "num_heads": 2, "intermediate_size": 12, "activation": "gelu"}


def encoder(dropout: float = 0.0, attention_dropout: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    return Encoder(2, **SIZES, dropout=dropout, attention_dropout=attention_dropout)


def encode(model: Encoder, x: torch.Tensor, lengths: Lengths, kernel: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors announce themselves as a prototype
        return model(x, lengths, kernel=kernel)


@pytest.mark.parametrize("lengths", LENGTHS, ids=["ragged", "equal"])
@pytest.mark.parametrize("kernel", ["padded", "jagged", "auto"])
def test_kernels_agree_with_the_explicit_one(lengths, kernel):
    model, x = encoder().eval(), torch.randn(lengths.total, 8)
    expected = encode(model, x, lengths, "explicit")
    actual = encode(model, x, lengths, kernel)
    assert not actual.attention
    torch.testing.assert_close(actual.hidden, expected.hidden, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["padded", "jagged", "explicit"])
def test_gradients_agree(kernel):
    lengths, model = LENGTHS[0], encoder()
    x = torch.randn(lengths.total, 8, requires_grad=True)
    grads = []
    for chosen in ("explicit", kernel):
        (grad,) = torch.autograd.grad(encode(model, x, lengths, chosen).hidden.pow(2).sum(), x)
        grads.append(grad)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-4, rtol=1e-4)


def test_attention_maps_sum_to_one_over_real_keys():
    lengths = LENGTHS[0]
    maps = encode(encoder().eval(), torch.randn(lengths.total, 8), lengths, "explicit").attention
    assert maps[0].shape == (3, 2, 5, 5)
    torch.testing.assert_close(maps[1].sum(-1), torch.ones(3, 2, 5))
    assert maps[0][1, :, :, 1:].abs().max() == 0


def test_a_row_does_not_depend_on_the_others():
    model, x = encoder().eval(), torch.randn(9, 8)
    together = model(x, Lengths.of([5, 1, 3])).hidden
    alone = model(x[6:], Lengths.of([3])).hidden
    torch.testing.assert_close(together[6:], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", ["padded", "explicit"])
@pytest.mark.parametrize("dropout", [(0.5, 0.0), (0.0, 0.5)])
def test_dropout_acts_in_training_only(kernel, dropout):
    model, x, lengths = encoder(*dropout), torch.randn(9, 8), LENGTHS[0]
    assert not torch.equal(model(x, lengths, kernel=kernel).hidden, model(x, lengths, kernel=kernel).hidden)
    model.eval()
    assert torch.equal(model(x, lengths, kernel=kernel).hidden, model(x, lengths, kernel=kernel).hidden)
