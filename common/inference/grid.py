"""Regions for any picture: those that are given, and a grid where nothing else is there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.data.regions.sources import BoxFile, GivenBoxes, boxes_of
from common.data.regions.types import FoundRegions, Regions
from common.models.fast_rcnn import PRECOMPUTED_DIM

logger = logging.getLogger(__name__)


BoxSource: TypeAlias = (
    str
    | Path
    | BoxFile
    | GivenBoxes
    | FoundRegions
    | Sequence[Sequence[float]]
    | Mapping[str, Any]
    | NDArray[Any]
    | Tensor
)
"""A json file (see `BoxFile`; an open one is read once for many pictures), what it gives, what a finder found, or boxes
as `boxes_of` reads them."""


# Left, top, width, height as shares of the picture: the whole, its halves, and windows of half its sides.
_HALVES = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 0.5))


_WINDOWS = tuple((x, y, 0.5, 0.5) for y in (0.0, 0.25, 0.5) for x in (0.0, 0.25, 0.5))


GRID = ((0.0, 0.0, 1.0, 1.0), *_HALVES, *_WINDOWS)


def announce_grid() -> None:
    """Warns that a grid stands in for detected regions."""
    logger.warning(
        "no boxes and no detector given: a grid of %d regions stands in for detected ones; answers will be worse "
        "than with --boxes or --detector",
        len(GRID),
    )


class GridDetector:
    """Finds the same `GRID` of regions in every picture; class 0, score 1.

    Args:
        announced: whether the user knows already; else the first use warns.
    """

    def __init__(self, *, announced: bool = False) -> None:
        self._announced = announced

    def __call__(self, images: list[Image.Image]) -> list[FoundRegions]:
        """Returns the grid on every picture."""
        if images and not self._announced:
            announce_grid()
            self._announced = True
        return [_grid(*image.size) for image in images]


def announced_grid(device: torch.device) -> GridDetector:
    """Returns a `GridDetector` for one of several processes, whose user knows of it; no device is needed."""
    return GridDetector(announced=True)


def _grid(width: int, height: int) -> FoundRegions:
    shares = torch.tensor(GRID)
    size = torch.tensor([width, height])
    first = (shares[:, :2] * size).floor()
    last = ((shares[:, :2] + shares[:, 2:]) * size).ceil() - 1
    count = len(GRID)
    return FoundRegions(
        torch.cat([first, torch.maximum(first, last)], dim=1),
        torch.zeros(count, dtype=torch.int64),
        torch.ones(count),
    )


def regions_of(
    source: BoxSource, name: str, size: tuple[int, int], feature_dim: int | None = PRECOMPUTED_DIM
) -> tuple[Regions, Tensor]:
    """Returns the regions of a picture.

    Args:
        source: what was found or given.
        name: the picture's file or what to call it.
        size: its width and height.
        feature_dim: width F of the features that are taken from a region file; None for none.

    Returns:
        Boxes on the picture, with features only from a region file that has them; and their (n,) int64 classes, 0
        where they are not known.

    Raises:
        DataError: a file or a box cannot be used.
    """
    if isinstance(source, FoundRegions):
        return Regions(source.boxes, None, None, size, None), source.classes
    given = _given(source, name, feature_dim)
    found = given.on(size)
    return Regions(found.boxes, given.features, given.image_feature, size, None), found.classes


def _given(source: Any, name: str, feature_dim: int | None) -> GivenBoxes:
    if isinstance(source, str | Path):
        source = BoxFile(str(source))
    if isinstance(source, BoxFile):
        return source.of(Path(name).name, feature_dim=feature_dim)
    if isinstance(source, GivenBoxes):
        return source
    if isinstance(source, Mapping):  # as a detector returns them
        source = {
            key: value.tolist() if isinstance(value, Tensor) else value for key, value in source.items()
        }
    return boxes_of(source, f"the boxes of {name}", feature_dim)
