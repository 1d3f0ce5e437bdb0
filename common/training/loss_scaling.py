"""Several processes: start-up from the launcher's environment, devices, and the few collectives that we use.

One process drives one device. With a single process every function here is a cheap no-op.
Sources: train_eval spec, sections 2.2 and 5; `GPUS` as in the design's table of decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed.process_group import is_distributed, world_size


def global_label_weights(
    counts: Sequence[Mapping[str, Tensor | int]], offsets: Mapping[str, float], device: torch.device
) -> Callable[[int, Mapping[str, Tensor]], dict[str, Tensor]]:
    """Starts to count the labels of all parts of a batch on all ranks, for losses that are means over their own.

    Args:
        counts: of each part of this rank, labels by the name of the loss, in the same order on all ranks.
        offsets: what the mean of a loss adds to the number that it divides by; 0 where absent.
        device: of the model.

    Returns:
        A function of the number of a part and its losses. It waits for the counts and scales each loss, so that the
        sum over the parts, averaged over the ranks as their gradients are, is the mean over the labels of all.
    """
    if not is_distributed() and len(counts) == 1:
        return lambda part, losses: dict(losses)
    names = list(counts[0])
    # `full` fills on the device; `as_tensor` of a number would wait for all that the device has to do.
    own = torch.stack(
        [
            count.to(device, torch.float32)
            if isinstance(count, Tensor)
            else torch.full((), count, dtype=torch.float32, device=device)
            for part in counts
            for count in part.values()
        ]
    ).view(len(counts), len(names))
    added = torch.stack([torch.full((), offsets.get(name, 0.0), device=device) for name in names])
    total = own.sum(0)
    work = dist.all_reduce(total, async_op=True) if is_distributed() else None

    def scaled(part: int, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if work is not None:
            work.wait()
        shares = (own[part] + added) * world_size() / (total.clamp(min=1) + added)
        by_name = dict(zip(names, shares.unbind(), strict=True))
        return {name: loss * by_name[name] for name, loss in losses.items()}

    return scaled
