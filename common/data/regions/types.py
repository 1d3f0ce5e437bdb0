"""The regions of an image, and the protocol of detectors that find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from PIL import Image
from torch import Tensor

from common.errors import DataError


class Regions(NamedTuple):
    """Regions of one image, from any source: region file, annotation, detector, grid or user.

    Attributes:
        boxes: (n, 4) float32 x1, y1, x2, y2 in original pixels; the last pixel belongs to the box. n may be 0.
        features: (n, F) float32.
        image_feature: (F,) float32 feature of the whole image.
        class_ids: (n,) int64 COCO class 1..80; 0 if unknown.
        scores: (n,) float32 confidence of the class; 1 if not measured.
        class_scores: (n, C) float32 scores of all classes of the detector.
        image_size: width and height of the image that the boxes refer to.
        source: where the regions come from, for messages.
    """

    boxes: Tensor
    features: Tensor | None = None
    image_feature: Tensor | None = None
    class_ids: Tensor | None = None
    scores: Tensor | None = None
    class_scores: Tensor | None = None
    image_size: tuple[int, int] | None = None
    source: str = ""


class Detector(Protocol):
    """Detects regions in a batch of RGB images."""

    def __call__(self, images: list[Image.Image]) -> list[Regions]:
        """Returns the regions of each image, the most confident ones first, with `class_ids` and `scores`."""
        ...


def detect_each(detector: Detector, images: Sequence[tuple[str, Image.Image]]) -> list[Regions | DataError]:
    """Detects regions in named images. If the batch fails, every image is tried on its own.

    Returns:
        For each image its regions, or an error that names the image.
    """
    if not images:
        return []
    try:
        return list(detector([image for _, image in images]))
    except DataError as error:
        if len(images) == 1:
            return [DataError(f"{images[0][0]}: {error}")]
    return [result for image in images for result in detect_each(detector, [image])]
