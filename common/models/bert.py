"""BERT layers on packed sequences (Devlin et al., 2019); see `docs/model.md`.

Parameter names are those of published BERT files.
Layers are post-norm: LayerNorm follows the residual sum. Shapes: Q rows, S packed tokens of all rows, L longest row,
H width, A heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batch import Lengths
from common.models.packing import Padding

# BERT's value, inside the square root. PyTorch's default of 1e-5 gives other results for published weights.
LAYER_NORM_EPS = 1e-12

# gelu is the exact erf form, not the tanh approximation of GPT-2.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "swish": F.silu}

Kernel = Literal["auto", "padded", "jagged", "explicit"]
"""Attention kernel: on padded rows, on packed rows (`jagged`), or step by step, returning the probabilities."""


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


def init_bert_weights(module: nn.Module, std: float) -> None:
    """BERT initialization: normal embeddings and linear weights, zero biases, LayerNorm with weight 1 and bias 0.

    The normal distribution is not truncated, as in BERT for PyTorch.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Embedding):
            nn.init.normal_(child.weight, std=std)
        if isinstance(child, nn.LayerNorm):
            nn.init.ones_(child.weight)
        if isinstance(child, nn.Linear | nn.LayerNorm) and child.bias is not None:
            nn.init.zeros_(child.bias)


def _padded(q: Tensor, k: Tensor, v: Tensor, padding: Padding, dropout: float) -> Tensor:
    """Fused attention on padded rows. Only keys are masked; the outputs of padded queries are dropped."""
    q, k, v = (padding.pad(x).transpose(1, 2) for x in (q, k, v))
    # Rows of equal length need no mask. Every row has at least its [END] token, so no softmax is over nothing.
    mask = padding.mask()
    context = F.scaled_dot_product_attention(
        q, k, v, attn_mask=None if mask is None else mask[:, None, None], dropout_p=dropout
    )
    return padding.unpad(context.transpose(1, 2))


def _jagged(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, dropout: float) -> Tensor:
    """Variable-length flash attention without padding."""
    # (Q + 1,) cumulative lengths: row i is x[offsets[i] : offsets[i + 1]]. The extreme lengths come from the host;
    # left out, PyTorch would compute them on the device and synchronize in every layer.
    offsets = F.pad(lengths.tensor.cumsum(0), (1, 0))
    shortest, longest = min(lengths.sizes), lengths.longest
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(x, offsets, min_seqlen=shortest, max_seqlen=longest).transpose(
            1, 2
        )
        for x in (q, k, v)
    )
    context = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return context.transpose(1, 2).values()


def _explicit(q: Tensor, k: Tensor, v: Tensor, padding: Padding, dropout: float) -> tuple[Tensor, Tensor]:
    """Attention step by step. Also returns the (Q, A, L, L) probabilities after dropout."""
    q, k, v = (padding.pad(x).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    mask = padding.mask()
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    probabilities = F.dropout(scores.softmax(dim=3), dropout, training=dropout > 0)
    return padding.unpad((probabilities @ v).transpose(1, 2)), probabilities


class SelfAttention(nn.Module):
    """Multi-head self-attention within every row.

    Args:
        hidden_size: H.
        num_heads: A.
        dropout: dropout probability of the attention weights.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, padding: Padding, kernel: Kernel) -> tuple[Tensor, Tensor | None]:
        """Maps (S, H) to (S, H); the explicit kernel also returns its (Q, A, L, L) attention probabilities."""
        q, k, v = (
            project(x).view(len(x), self.num_heads, -1) for project in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        if kernel == "auto":
            # Flash attention needs half precision on CUDA; everything else runs on the padded rectangle.
            half = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)
            kernel = "jagged" if half else "padded"
        maps = None
        if kernel == "explicit":
            context, maps = _explicit(q, k, v, padding, dropout)
        elif kernel == "jagged":
            context = _jagged(q, k, v, padding.lengths, dropout)
        else:
            context = _padded(q, k, v, padding, dropout)
        return context.flatten(1), maps


class ResidualOutput(nn.Module):
    def __init__(self, inputs: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, hidden_size)
        self.LayerNorm = layer_norm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return normed


class Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.self = SelfAttention(hidden_size, num_heads, attention_dropout)
        self.output = ResidualOutput(hidden_size, hidden_size, dropout)

    def forward(self, x: Tensor, padding: Padding, kernel: Kernel) -> tuple[Tensor, Tensor | None]:
        context, maps = self.self(x, padding, kernel)
        return self.output(context, x), maps


class Intermediate(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, intermediate_size)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class Layer(nn.Module):
    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        activation: str,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.attention = Attention(hidden_size, num_heads, dropout, attention_dropout)
        self.intermediate = Intermediate(hidden_size, intermediate_size, activation)
        self.output = ResidualOutput(intermediate_size, hidden_size, dropout)

    def forward(self, x: Tensor, padding: Padding, kernel: Kernel) -> tuple[Tensor, Tensor | None]:
        x, maps = self.attention(x, padding, kernel)
        return self.output(self.intermediate(x), x), maps


@dataclass(frozen=True)
class EncoderOutput:
    """Output of `Encoder`.

    Attributes:
        hidden: (S, H) states of the last layer.
        attention: (Q, A, L, L) attention probabilities of every layer, with the explicit kernel.
    """

    hidden: Tensor
    attention: tuple[Tensor, ...]


class Encoder(nn.Module):
    def __init__(self, num_layers: int, **layer: int | float | str) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(**layer) for _ in range(num_layers))  # type: ignore[arg-type]

    def forward(self, x: Tensor, lengths: Lengths, *, kernel: Kernel = "auto") -> EncoderOutput:
        """Encodes packed rows (S, H) of these lengths."""
        padding = Padding.of(lengths)
        attention = []
        for layer in self.layer:
            x, maps = layer(x, padding, kernel)
            if maps is not None:
                attention.append(maps)
        return EncoderOutput(x, tuple(attention))
