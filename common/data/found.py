"""Regions that a detector, an annotation or a grid finds in a picture, for pictures without region files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from PIL import Image
from torch import Tensor

from common.errors import DataError


class FoundRegions(NamedTuple):
    """Regions of a picture, the best first.

    Attributes:
        boxes: (n, 4) float32 x1, y1, x2, y2 in pixels of the picture; the last pixel is inside.
        classes: (n,) int64 category 1..80 of COCO, 0 where it is not known.
        scores: (n,) float32 confidence of the category; 1 where nothing was measured.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor


class RegionFinder(Protocol):
    """Finds regions in RGB pictures, several at once."""

    def __call__(self, images: list[Image.Image]) -> list[FoundRegions]:
        """Returns the regions of each picture."""
        ...


def look(finder: RegionFinder, pictures: Sequence[tuple[str, Image.Image]]) -> list[FoundRegions | DataError]:
    """Finds the regions of pictures with their names; where one cannot be used, all are looked at alone.

    Returns:
        For each picture its regions, or the error that names it.
    """
    if not pictures:
        return []
    try:
        return list(finder([image for _, image in pictures]))
    except DataError as error:
        if len(pictures) == 1:
            return [DataError(f"{pictures[0][0]}: {error}")]
    return [found for picture in pictures for found in look(finder, [picture])]
