"""Losses as pure functions; every one is finite, and differentiable, on an empty set of labels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.batch import Lengths


def is_distribution(target: Tensor) -> Tensor:
    """(M,) bool: which rows of (M, C) are a label, as they sum to one within 0.1 (spec model.md 5.7)."""
    return (target.sum(dim=1) - 1).abs() < 0.1


def soft_cross_entropy(
    logits: Tensor, target: Tensor, reduction: Literal["mean", "sum", "none"] = "mean"
) -> Tensor:
    """Cross entropy against distributions; rows whose target does not sum to one carry no label (spec model.md 5.7).

    Args:
        logits: (M, C).
        target: (M, C), used as it is in rows with |sum - 1| < 0.1.
        reduction: over labelled rows; `none` gives 0 in the others.

    Returns:
        A scalar, or (M,) for `none`. Without a labelled row it is zero and still reaches every logit.
    """
    labelled = is_distribution(target)
    loss = -(target * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
    loss = torch.where(labelled, loss, loss * 0)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / labelled.sum().clamp(min=1)
    raise ValueError(f"reduction {reduction!r}: use 'mean', 'sum' or 'none'")


def mean_or_zero(loss: Tensor) -> Tensor:
    """Mean of per-item losses (M,), and a differentiable zero when there is none."""
    return loss.sum() / max(loss.numel(), 1)


EPSILON = 1e-4
"""What `sample_mean` adds to the numbers that it divides by."""


def sample_mean(loss: Tensor, labelled: Tensor, lengths: Lengths) -> Tensor:
    """Mean over samples of the mean over their labelled items (spec model.md 7.4, `..._NORM_IN_BATCH_FIRST`).

    Args:
        loss: (M,) of every item.
        labelled: (M,) bool, items that count.
        lengths: items of each sample.
    """
    sample, counted = lengths.rows(), labelled.to(loss.dtype)
    counts = counted.new_zeros(len(lengths)).index_add(0, sample, counted)
    per_sample = loss * counted / (counts[sample] + EPSILON)
    return per_sample.sum() / ((counts > 0).sum() + EPSILON)


def choice_bce(logits: Tensor, labels: Tensor, positive_weight: float) -> Tensor:
    """Binary cross entropy of every choice, of the same magnitude for every weight (spec model.md 7.1).

    Args:
        logits: (B, C).
        labels: (B,) index of the right choice.
        positive_weight: weight w of the right choice; the mean is multiplied by (w + 1) / (2 w).
    """
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    weight = 1 + (positive_weight - 1) * target
    loss = F.binary_cross_entropy_with_logits(logits, target, weight=weight)
    return loss * (positive_weight + 1) / (2 * positive_weight)
