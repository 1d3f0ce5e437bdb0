"""Heads: shapes, names, initial values."""

from __future__ import annotations

import pytest
import torch

from common.models.heads import (
    HeadTransform,
    MLMHead,
    MVRCHead,
    Pooler,
    RelationshipHead,
    classifier,
    region_classifier,
)


def test_heads():
    x = torch.randn(3, 8)
    assert Pooler(8)(x).abs().max() <= 1
    assert RelationshipHead(8)(x).shape == (3, 2)
    assert MVRCHead(8, 5, "relu")(x).shape == (3, 5)
    table = torch.randn(7, 8)
    head = MLMHead(8, 7, "swish")
    expected = head.predictions.transform(x) @ table.T + head.predictions.bias
    torch.testing.assert_close(head(x, table), expected)
    assert not hasattr(HeadTransform(8, "gelu"), "LayerNorm")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("1fc", ["1.weight", "1.bias"]),
        ("2fc", ["1.weight", "1.bias", "4.weight", "4.bias"]),
        (
            "mlm",
            [
                "0.dense.weight",
                "0.dense.bias",
                "0.LayerNorm.weight",
                "0.LayerNorm.bias",
                "2.weight",
                "2.bias",
            ],
        ),
    ],
)
def test_classifiers_have_the_names_of_the_files(kind, names):
    torch.manual_seed(0)
    head = classifier(kind, hidden_size=8, outputs=3, dropout=0.1, inner_size=5).eval()
    assert list(head.state_dict()) == names
    assert head(torch.randn(2, 8)).shape == (2, 3)
    assert head[-1].bias.abs().max() == 0
    assert head[-1].weight.abs().max() <= (6 / (head[-1].in_features + 3)) ** 0.5


def test_region_classifier():
    head = region_classifier(8, 5, "relu", 0.0)
    assert list(head.state_dict()) == ["0.dense.weight", "0.dense.bias", "2.weight", "2.bias"]
    assert head(torch.randn(2, 8)).shape == (2, 5)
