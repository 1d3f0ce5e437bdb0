"""Heads on top of the encoder: pooler, pre-training heads, classifiers; see `docs/model.md`.

Parameter names are those of published files.
Shapes: Q rows, N states, H width, V words.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.bert import ACTIVATIONS, layer_norm


class Pooler(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


class HeadTransform(nn.Module):
    """Linear layer and activation, with LayerNorm if `normalize`: the body of the prediction heads."""

    def __init__(self, hidden_size: int, activation: str, *, normalize: bool = False) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = ACTIVATIONS[activation]
        if normalize:
            self.LayerNorm = layer_norm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.dense(x))
        return self.LayerNorm(x) if hasattr(self, "LayerNorm") else x


class RelationshipHead(nn.Module):
    """Classifies whether the caption belongs to the image: class 1 if it does."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.caption_image_relationship = nn.Linear(hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.caption_image_relationship(pooled)
        return logits


class _WordPredictions(nn.Module):
    def __init__(self, hidden_size: int, vocab_size: int, activation: str) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.transform = HeadTransform(hidden_size, activation, normalize=True)


class MLMHead(nn.Module):
    """Predicts words with the word embedding matrix as output layer (tied weights).

    The matrix is an argument, so that it has one owner and one name. Checkpoints store it a second time as
    `predictions.decoder.weight`; `OfficialNames` adds and resolves this alias.
    """

    def __init__(self, hidden_size: int, vocab_size: int, activation: str) -> None:
        super().__init__()
        self.predictions = _WordPredictions(hidden_size, vocab_size, activation)

    def forward(self, x: Tensor, word_table: Tensor) -> Tensor:
        """Maps (N, H) and (V, H) to (N, V)."""
        return F.linear(self.predictions.transform(x), word_table, self.predictions.bias)


class MVRCHead(nn.Module):
    """Classifies masked regions. Unlike that of the MLM head, its transform has no LayerNorm, as in the reference."""

    def __init__(self, hidden_size: int, num_classes: int, activation: str) -> None:
        super().__init__()
        self.transform = HeadTransform(hidden_size, activation)
        self.region_cls_pred = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.region_cls_pred(self.transform(x))
        return logits


def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)


def classifier(
    kind: Literal["1fc", "2fc", "mlm"],
    *,
    hidden_size: int,
    outputs: int,
    dropout: float,
    inner_size: int = 0,
    activation: str = "gelu",
) -> nn.Sequential:
    """Builds the answer head of `NETWORK.CLASSIFIER_TYPE` with its initial values.

    Args:
        kind: one linear layer, two, or the transform of the MLM head and a linear layer.
        hidden_size: H.
        outputs: number of scores.
        dropout: before each linear layer; after the transform of `mlm`.
        inner_size: width between the two layers of `2fc`.
        activation: activation of the transform of `mlm`.
    """
    layers: dict[str, list[nn.Module]] = {
        "1fc": [nn.Dropout(dropout), nn.Linear(hidden_size, outputs)],
        "2fc": [
            nn.Dropout(dropout),
            nn.Linear(hidden_size, inner_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(inner_size, outputs),
        ],
        "mlm": [
            HeadTransform(hidden_size, activation, normalize=True),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, outputs),
        ],
    }
    head = nn.Sequential(*layers[kind])
    init_xavier(head)
    return head


def region_classifier(hidden_size: int, outputs: int, activation: str, dropout: float) -> nn.Sequential:
    """Transform, dropout and a linear layer for the state of a region, not initialized."""
    return nn.Sequential(
        HeadTransform(hidden_size, activation), nn.Dropout(dropout), nn.Linear(hidden_size, outputs)
    )
