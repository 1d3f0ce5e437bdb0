"""A picture on its way from a file to the network: read, resized, mirrored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from common.data.store import Store
from common.data.transforms import image_tensor, size_info, target_size


class Picture(NamedTuple):
    """A picture as the network sees it.

    Attributes:
        pixels: (3, h, w) uint8, channels B, G, R; None where nothing looks at them.
        im_info: (4,) float32: width and height after resizing, and their ratios to the original ones.
        original: width and height before resizing, in pixels.
        size: width and height after it.
    """

    pixels: Tensor | None
    im_info: Tensor
    original: tuple[int, int]
    size: tuple[int, int]

    @property
    def whole(self) -> tuple[int, int, int, int]:
        """The box around the whole picture, in original pixels."""
        return 0, 0, self.original[0] - 1, self.original[1] - 1


def read_picture(
    store: Store,
    path: str,
    scales: Sequence[int],
    *,
    flipped: bool,
    decode: bool = True,
    original: tuple[int, int] | None = None,
) -> Picture:
    """Reads and places a picture.

    Args:
        store: reads the file.
        path: plain, or in an archive.
        scales: length of the short side, and limit of the long one.
        flipped: whether left becomes right.
        decode: whether anything looks at the pixels.
        original: width and height that boxes refer to, where an annotation tells them; else the file's.
    """
    image = store.image(path) if decode else None
    if original is None:
        original = image.size if image else store.image_size(path)
    return place_picture(image, original, scales, flipped=flipped)


def place_picture(
    image: Image.Image | None, original: tuple[int, int], scales: Sequence[int], *, flipped: bool = False
) -> Picture:
    """Resizes a picture.

    Args:
        image: RGB; None where nothing looks at its pixels.
        original: width and height that boxes refer to.
        scales: length of the short side, and limit of the long one.
        flipped: whether left becomes right.
    """
    size = target_size(*original, scales)
    pixels = image_tensor(image, size, flipped=flipped) if image else None
    return Picture(pixels, size_info(original, size), original, size)
