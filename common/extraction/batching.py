"""Regions that a detector of torchvision finds, with weights from a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable

import torch


def alike(keys: Iterable[Hashable]) -> list[list[int]]:
    """Returns the places of equal keys, in the order of their first ones: pictures of one size need no padding."""
    places = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return list(places.values())


def computed_together(keys: Iterable[Hashable], device: torch.device | str) -> list[list[int]]:
    """Returns the places of what runs as one batch: on a GPU those of equal keys, on a CPU each alone.

    There a batch is no faster, and the last bits of a result depend on its company.
    """
    groups = alike(keys)
    if torch.device(device).type == "cpu":
        return [[place] for place in sorted(place for group in groups for place in group)]
    return groups
