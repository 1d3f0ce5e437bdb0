"""What stands on the encoder: pooler, pre-training heads, classifiers of the tasks (spec model.md 2.7, 7).

Parameter names are those of the published files.
Letters: Q rows, N states, H width, V words.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models.bert import ACTIVATIONS, layer_norm


class Pooler(nn.Module):
    """Linear and tanh on the first token."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """(Q, H) to (Q, H)."""
        return torch.tanh(self.dense(first))


class HeadTransform(nn.Module):
    """Linear and activation, and LayerNorm where `normalize`: the body of the prediction heads."""

    def __init__(self, hidden_size: int, activation: str, *, normalize: bool = False) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = ACTIVATIONS[activation]
        if normalize:
            self.LayerNorm = layer_norm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H) to (N, H)."""
        x = self.activation(self.dense(x))
        return self.LayerNorm(x) if hasattr(self, "LayerNorm") else x


class RelationshipHead(nn.Module):
    """Does the caption belong to the image?"""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.caption_image_relationship = nn.Linear(hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """(Q, H) to (Q, 2)."""
        logits: Tensor = self.caption_image_relationship(pooled)
        return logits


class _WordPredictions(nn.Module):
    def __init__(self, hidden_size: int, vocab_size: int, activation: str) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.transform = HeadTransform(hidden_size, activation, normalize=True)


class MLMHead(nn.Module):
    """Predicts words through the word table itself."""

    def __init__(self, hidden_size: int, vocab_size: int, activation: str) -> None:
        super().__init__()
        self.predictions = _WordPredictions(hidden_size, vocab_size, activation)

    def forward(self, x: Tensor, word_table: Tensor) -> Tensor:
        """(N, H) and (V, H) to (N, V)."""
        return F.linear(self.predictions.transform(x), word_table, self.predictions.bias)


class MVRCHead(nn.Module):
    """Predicts the detector class of a masked region."""

    def __init__(self, hidden_size: int, num_classes: int, activation: str) -> None:
        super().__init__()
        self.transform = HeadTransform(hidden_size, activation)
        self.region_cls_pred = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H) to (N, num_classes)."""
        logits: Tensor = self.region_cls_pred(self.transform(x))
        return logits


def init_xavier(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases of every linear layer (spec model.md 8.1)."""
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
    """The answer head of `NETWORK.CLASSIFIER_TYPE`, with its initial values.

    Args:
        kind: one linear layer, two, or the transform of the masked-word head and a linear layer.
        hidden_size: H.
        outputs: number of scores.
        dropout: in front of each linear layer; behind the transform of `mlm`.
        inner_size: width between the two layers of `2fc`.
        activation: of the transform of `mlm`.
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
    """Transform, dropout and a linear layer on the state of a region, uninitialised."""
    return nn.Sequential(
        HeadTransform(hidden_size, activation), nn.Dropout(dropout), nn.Linear(hidden_size, outputs)
    )
