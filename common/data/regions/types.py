"""The json form of region files: what a detector found in one picture (data spec 1.4, 1.6).

Arrays are base64 of little-endian float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from PIL import Image
from torch import Tensor

from common.errors import DataError


class Regions(NamedTuple):
    """What a region file tells of a picture.

    Attributes:
        boxes: (n, 4) float32 x1, y1, x2, y2 in original pixels; n may be 0.
        features: (n, F) float32; None unless asked for.
        image_feature: (F,) float32, the feature of the whole image; None unless the file has it and features
            are asked for.
        size: width and height of the picture that the boxes refer to; None where the file does not tell.
        classes: (n, C) float32 class scores; None unless asked for.
    """

    boxes: Tensor
    features: Tensor | None
    image_feature: Tensor | None
    size: tuple[int, int] | None
    classes: Tensor | None


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


class Detector(Protocol):
    """Finds regions in RGB pictures, several at once."""

    def __call__(self, images: list[Image.Image]) -> list[FoundRegions]:
        """Returns the regions of each picture."""
        ...


def look(finder: Detector, pictures: Sequence[tuple[str, Image.Image]]) -> list[FoundRegions | DataError]:
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
