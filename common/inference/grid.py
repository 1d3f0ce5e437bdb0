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

from common.data.regions.sources import RegionSource, clip_to_image, parse_boxes
from common.data.regions.types import Regions
from common.models.fast_rcnn import PRECOMPUTED_DIM

logger = logging.getLogger(__name__)


BoxSource: TypeAlias = (
    str
    | Path
    | RegionSource
    | Regions
    | Sequence[Sequence[float]]
    | Mapping[str, Any]
    | NDArray[Any]
    | Tensor
)
"""Regions of an image: a file or folder (see `RegionSource`; an open one can serve many images), detections, or boxes
that `parse_boxes` accepts."""


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

    def __call__(self, images: list[Image.Image]) -> list[Regions]:
        """Returns the grid on every picture."""
        if images and not self._announced:
            announce_grid()
            self._announced = True
        return [_grid(*image.size) for image in images]


def announced_grid(device: torch.device) -> GridDetector:
    """Returns a `GridDetector` for one of several processes, whose user knows of it; no device is needed."""
    return GridDetector(announced=True)


def _grid(width: int, height: int) -> Regions:
    shares = torch.tensor(GRID)
    size = torch.tensor([width, height])
    first = (shares[:, :2] * size).floor()
    last = ((shares[:, :2] + shares[:, 2:]) * size).ceil() - 1
    count = len(GRID)
    return Regions(
        torch.cat([first, torch.maximum(first, last)], dim=1),
        class_ids=torch.zeros(count, dtype=torch.int64),
        scores=torch.ones(count),
        image_size=(width, height),
    )


def regions_of(
    source: BoxSource, name: str, size: tuple[int, int], feature_dim: int | None = PRECOMPUTED_DIM
) -> Regions:
    """Reads the regions of an image and clips them to it.

    Args:
        source: see `BoxSource`.
        name: file name of the image, or what to call it.
        size: width and height of the image.
        feature_dim: width F of the features to read from a region file; None to skip them.

    Raises:
        DataError: a file or a box is invalid.
    """
    if isinstance(source, str | Path):
        source = RegionSource(str(source))
    if isinstance(source, RegionSource):
        source = source.read(Path(name).name, feature_dim=feature_dim)
    if isinstance(source, Mapping):  # torchvision detectors return a dict of tensors
        source = {
            key: value.tolist() if isinstance(value, Tensor) else value for key, value in source.items()
        }
    if not isinstance(source, Regions):
        source = parse_boxes(source, f"the boxes of {name}", feature_dim)
    return clip_to_image(source, size)
