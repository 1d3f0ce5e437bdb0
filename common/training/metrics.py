"""Metrics as functions that return a sum and a count, and their accumulator.

Nothing here waits for the device until `Metrics.compute`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from common.batch import Lengths
from common.distributed import process_group as distributed
from common.models.packing import argmax_per_row

IGNORED_LABEL = -1


class Ratio(NamedTuple):
    """Sum and count of a metric over one batch, not yet divided.

    Attributes:
        total: () sum over the counted items, on the device.
        count: () number of counted items, on the device.
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # shadows tuple.count on purpose


def _fraction(hits: Tensor, counted: Tensor) -> Ratio:
    return Ratio((hits & counted).sum(), counted.sum())


def accuracy(logits: Tensor, labels: Tensor) -> Ratio:
    """Accuracy of the largest logit: VCR `Acc`, `RelAcc` and all masked-word accuracies.

    Args:
        logits: (N, C); the first of equal logits counts.
        labels: (N,) int64; rows with label -1 do not count.
    """
    return _fraction(logits.argmax(-1) == labels, labels != IGNORED_LABEL)


def joint_accuracy(
    answer_logits: Tensor, answers: Tensor, rationale_logits: Tensor, rationales: Tensor
) -> Ratio:
    """Counts items with answer and rationale right: VCR Q->AR. Logits (N, C), labels (N,) int64."""
    hits = (answer_logits.argmax(-1) == answers) & (rationale_logits.argmax(-1) == rationales)
    return _fraction(hits, torch.ones_like(hits))


def soft_accuracy(logits: Tensor, targets: Tensor) -> Ratio:
    """Soft score of the predicted answer: VQA `SoftAcc`.

    Args:
        logits: (N, C).
        targets: (N, C) scores from 0 to 1.
    """
    chosen = targets.gather(-1, logits.argmax(-1, keepdim=True))
    return Ratio(chosen.sum(), targets.new_tensor(len(targets), dtype=torch.int64))


def region_accuracy(logits: Tensor, labels: Tensor, num_boxes: Lengths) -> Ratio:
    """Accuracy of the box with the largest logit: `RefAcc`.

    Args:
        logits: (K,) logits of the boxes of all images.
        labels: (K,) 0 or 1.
        num_boxes: number of boxes of each image.
    """
    hits = labels[argmax_per_row(logits, num_boxes)] > 0.5
    return _fraction(hits, torch.ones_like(hits))


def cls_accuracy(logits: Tensor, labels: Tensor) -> Ratio:
    """Binary accuracy at logit 0: `ClsAcc`. Equal shapes; negative labels do not count."""
    return _fraction((logits > 0) == (labels > 0.5), labels >= 0)


def cls_pos_accuracy(logits: Tensor, labels: Tensor) -> Ratio:
    """Recall of positive boxes at logit 0: `ClsPosAcc`. Equal shapes."""
    return _fraction(logits > 0, labels == 1)


def cls_pos_fraction(labels: Tensor) -> Ratio:
    """Fraction of positive boxes among labeled ones: `ClsPosFrac`. Any shape."""
    return _fraction(labels == 1, labels >= 0)


def mvrc_accuracy(logits: Tensor, targets: Tensor) -> Ratio:
    """Accuracy of the class of masked regions, against the detector's most likely class: `MVRCAccuracy`.

    Args:
        logits: (..., C).
        targets: (..., C) class distributions; only rows that sum to 1 within 0.1 count.
    """
    counted = (targets.sum(-1) - 1).abs() < 0.1
    return _fraction(logits.argmax(-1) == targets.argmax(-1), counted)


def loss_meter(losses: Mapping[str, Tensor], key: str, like: Tensor) -> Ratio:
    """Ratio of a loss logger for one batch. As in the reference, a batch without this loss counts as 0.

    Args:
        losses: () losses of the batch.
        key: name of the loss.
        like: any tensor on the device.
    """
    one = torch.ones((), dtype=torch.int64, device=like.device)
    return Ratio(losses[key].detach().mean() if key in losses else torch.zeros_like(one), one)


def loss_over(loss: Tensor, count: Tensor | int) -> Ratio:
    """Converts a mean over `count` labels to sum and count, to be averaged over more labels."""
    counted = torch.as_tensor(count, device=loss.device)
    return Ratio(loss.detach() * counted, counted)


class Metrics:
    """Running sums of metrics since the last reset, in float64 and int64 on the device.

    `compute` and `state_dict` are collective: every rank calls them, even one that has seen no batch.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        self._sums: dict[str, Ratio] = {}

    def reset(self) -> None:
        self._sums.clear()

    def update(self, ratios: Mapping[str, Ratio]) -> None:
        """Adds one batch without waiting for the device."""
        for name, ratio in ratios.items():
            total, count = ratio.total.detach().double(), ratio.count
            if name in self._sums:
                total, count = self._sums[name].total + total, self._sums[name].count + count
            self._sums[name] = Ratio(total, count)

    def compute(self) -> dict[str, float]:
        """Returns `sum / count` over all ranks, in order of first appearance; NaN if the count is 0."""
        return {
            name: total / count if count else math.nan for name, (total, count) in self._reduced().items()
        }

    def state_dict(self) -> dict[str, tuple[float, float]]:
        """Returns the sums and counts over all ranks."""
        return self._reduced()

    def load_state_dict(self, state: Mapping[str, tuple[float, float]]) -> None:
        """Restores sums over all ranks: rank 0 holds them, the other ranks continue from zero."""
        self.reset()
        if distributed.is_main():
            for name, (total, count) in state.items():
                self._sums[name] = Ratio(
                    torch.tensor(total, dtype=torch.float64, device=self._device),
                    torch.tensor(int(count), device=self._device),
                )

    def _reduced(self) -> dict[str, tuple[float, float]]:
        # Gather by name: a rank without batches does not know the names that an all-reduce would need.
        names = list(self._sums)
        local: list[list[float]] = []
        if names:
            local = torch.stack([torch.stack([t, c.double()]) for t, c in self._sums.values()]).tolist()
        merged: dict[str, tuple[float, float]] = {}
        for rank_names, rows in distributed.gather_objects((names, local)):
            for name, (total, count) in zip(rank_names, rows, strict=True):
                old_total, old_count = merged.get(name, (0.0, 0.0))
                merged[name] = (old_total + total, old_count + count)
        return merged
