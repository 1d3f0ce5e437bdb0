"""A fixed grid of regions for images without boxes and detector."""

from __future__ import annotations

import logging

import torch
from PIL import Image

from common.data.regions.types import Regions

logger = logging.getLogger(__name__)

# Left, top, width, height as fractions of the image: the whole image, its halves, and windows of half its size.
_HALVES = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 0.5))
_WINDOWS = tuple((x, y, 0.5, 0.5) for y in (0.0, 0.25, 0.5) for x in (0.0, 0.25, 0.5))
GRID = ((0.0, 0.0, 1.0, 1.0), *_HALVES, *_WINDOWS)


def warn_grid() -> None:
    """Warns that a grid replaces detected regions."""
    logger.warning(
        "no boxes and no detector: using a grid of %d regions; results are worse than with --boxes or --detector",
        len(GRID),
    )


class GridDetector:
    """Returns the same `GRID` of regions for every image, with class 0 and score 1.

    Args:
        warned: whether `warn_grid` has been called; otherwise the first use does.
    """

    def __init__(self, *, warned: bool = False) -> None:
        self._warned = warned

    def __call__(self, images: list[Image.Image]) -> list[Regions]:
        if images and not self._warned:
            warn_grid()
            self._warned = True
        return [_grid(*image.size) for image in images]


def silent_grid(device: torch.device) -> GridDetector:
    """Returns a `GridDetector` that does not warn, for worker processes; no device is needed."""
    return GridDetector(warned=True)


def _grid(width: int, height: int) -> Regions:
    grid = torch.tensor(GRID)
    size = torch.tensor([width, height])
    first = (grid[:, :2] * size).floor()
    last = ((grid[:, :2] + grid[:, 2:]) * size).ceil() - 1
    return Regions(
        boxes=torch.cat([first, torch.maximum(first, last)], dim=1),
        class_ids=torch.zeros(len(GRID), dtype=torch.int64),
        scores=torch.ones(len(GRID)),
        image_size=(width, height),
    )
