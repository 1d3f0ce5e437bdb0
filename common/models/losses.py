"""Loss functions. Each is finite and differentiable on an empty set of labels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.batch import Lengths


def is_distribution(target: Tensor) -> Tensor:
    """Returns (M,) bool: rows of (M, C) that are labels, since they sum to 1 within 0.1."""
    return (target.sum(dim=1) - 1).abs() < 0.1


def soft_cross_entropy(
    logits: Tensor, target: Tensor, reduction: Literal["mean", "sum", "none"] = "mean"
) -> Tensor:
    """Cross entropy with soft targets. Rows whose target does not sum to 1 are unlabeled.

    Args:
        logits: (M, C).
        target: (M, C), used unchanged in rows with |sum - 1| < 0.1.
        reduction: over labeled rows; `none` gives 0 for the others.

    Returns:
        A scalar, or (M,) for `none`. Without labeled rows it is 0 and still has a gradient for every logit, so that
        all ranks take part in the reduction of gradients.
    """
    labeled = is_distribution(target)
    loss = -(target * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
    loss = torch.where(labeled, loss, loss * 0)  # `loss * 0` stays connected to the logits, unlike a constant
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / labeled.sum().clamp(min=1)
    raise ValueError(f"reduction {reduction!r}: use 'mean', 'sum' or 'none'")


def mean_or_zero(loss: Tensor) -> Tensor:
    """Mean of per-item losses (M,); a differentiable zero without items."""
    return loss.sum() / max(loss.numel(), 1)


EPSILON = 1e-4
"""Added to the denominators of `sample_mean`."""


def sample_mean(loss: Tensor, labeled: Tensor, lengths: Lengths) -> Tensor:
    """Mean over samples of the mean over their labeled items (`..._NORM_IN_BATCH_FIRST`).

    Args:
        loss: (M,) loss of every item.
        labeled: (M,) bool, items that count.
        lengths: number of items of each sample.
    """
    sample, counted = lengths.rows(), labeled.to(loss.dtype)
    counts = counted.new_zeros(len(lengths)).index_add(0, sample, counted)
    per_sample = loss * counted / (counts[sample] + EPSILON)
    return per_sample.sum() / ((counts > 0).sum() + EPSILON)


def choice_bce(logits: Tensor, labels: Tensor, positive_weight: float) -> Tensor:
    """Binary cross entropy of every choice, scaled to the same magnitude for every weight.

    Args:
        logits: (B, C).
        labels: (B,) index of the right choice.
        positive_weight: weight w of the right choice; the mean is multiplied by (w + 1) / (2 w).
    """
    target = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    weight = 1 + (positive_weight - 1) * target
    loss = F.binary_cross_entropy_with_logits(logits, target, weight=weight)
    return loss * (positive_weight + 1) / (2 * positive_weight)
