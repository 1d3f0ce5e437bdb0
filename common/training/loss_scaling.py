"""Loss weights that make an optimizer step independent of how its samples are split over ranks and microbatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.process_group import is_distributed, world_size


class LossScaler:
    """Turns means over the labels of a microbatch into their share of the mean over all labels of a batch.

    DDP averages gradients over ranks with equal weights. Ranks and microbatches have different numbers of labels, so
    each loss is weighted by its fraction of the global label count, times the world size. The all-reduce of the counts
    starts here and overlaps with the forward pass; `scale` waits for it.

    Args:
        label_counts: label counts by loss name, for each microbatch of this rank. Names and their order are equal on
            all ranks.
        eps: what each loss adds to its label count before it divides; 0 if missing.
        device: device of the model.
    """

    def __init__(
        self,
        label_counts: Sequence[Mapping[str, Tensor | int]],
        eps: Mapping[str, float],
        device: torch.device,
    ) -> None:
        self._is_identity = not is_distributed() and len(label_counts) == 1
        if self._is_identity:
            return
        self._names = list(label_counts[0])
        # torch.full fills on the device; torch.tensor would copy from the host and synchronize.
        flat = [
            count.to(device, torch.float32)
            if isinstance(count, Tensor)
            else torch.full((), count, dtype=torch.float32, device=device)
            for counts in label_counts
            for count in counts.values()
        ]
        self._local = torch.stack(flat).view(len(label_counts), len(self._names))
        self._eps = torch.stack([torch.full((), eps.get(name, 0.0), device=device) for name in self._names])
        self._total = self._local.sum(0)
        self._work = dist.all_reduce(self._total, async_op=True) if is_distributed() else None

    def scale(self, losses: Mapping[str, Tensor], microbatch: int) -> dict[str, Tensor]:
        """Scales the losses of microbatch number `microbatch` of this rank.

        The scaled losses of all microbatches add up, and their average over the ranks is the mean over all labels.
        """
        if self._is_identity:
            return dict(losses)
        if self._work is not None:
            self._work.wait()
        weights = (
            (self._local[microbatch] + self._eps) * world_size() / (self._total.clamp(min=1) + self._eps)
        )
        by_name = dict(zip(self._names, weights.unbind(), strict=True))
        return {name: loss * by_name[name] for name, loss in losses.items()}
