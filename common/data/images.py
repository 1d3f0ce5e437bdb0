"""Reading, resizing and flipping images and boxes.

Images stay uint8. The mean is subtracted on the device, which gives the same values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from common.data.storage.store import Store
from common.errors import DataError


class PreparedImage(NamedTuple):
    """An image as the model reads it.

    Attributes:
        pixels: (3, h, w) uint8, channels B, G, R; None if the model does not read pixels.
        im_info: (4,) float32 resized width and height, and their ratios to the original ones.
        original: original width and height in pixels.
        size: resized width and height.
    """

    pixels: Tensor | None
    im_info: Tensor
    original: tuple[int, int]
    size: tuple[int, int]

    @property
    def whole_box(self) -> tuple[int, int, int, int]:
        """Box of the whole image, in original pixels."""
        return 0, 0, self.original[0] - 1, self.original[1] - 1


def read_image(
    store: Store,
    path: str,
    scales: Sequence[int],
    *,
    flipped: bool,
    decode: bool = True,
    original: tuple[int, int] | None = None,
) -> PreparedImage:
    """Reads and resizes an image.

    Args:
        store: reads the file.
        path: path of the image, plain or in an archive.
        scales: short side, and maximum of the long side.
        flipped: whether to flip the image horizontally.
        decode: whether pixels are needed.
        original: width and height that boxes refer to, if an annotation has them; by default those of the file.
    """
    image = store.image(path) if decode else None
    if original is None:
        original = image.size if image else store.image_size(path)
    return prepare_image(image, original, scales, flipped=flipped)


def prepare_image(
    image: Image.Image | None, original: tuple[int, int], scales: Sequence[int], *, flipped: bool = False
) -> PreparedImage:
    """Resizes an image.

    Args:
        image: RGB; None if pixels are not needed.
        original: width and height that boxes refer to.
        scales: short side, and maximum of the long side.
        flipped: whether to flip the image horizontally.
    """
    size = target_size(*original, scales)
    pixels = image_to_tensor(image, size, flipped=flipped) if image else None
    return PreparedImage(pixels, compute_im_info(original, size), original, size)


def target_size(width: int, height: int, scales: Sequence[int]) -> tuple[int, int]:
    """Returns width and height after resizing. No side is smaller than 1.

    Args:
        width: original width.
        height: original height.
        scales: short side, and maximum of the long side.
    """
    short, longest = scales
    least, most = min(width, height), max(width, height)
    if most / least * short > longest:
        short = int(longest * least / most)
    short = max(short, 1)
    long = min(int(short * most / least), longest)
    return (short, long) if width < height else (long, short)


def compute_im_info(original: tuple[int, int], resized: tuple[int, int]) -> Tensor:
    """Returns `im_info`: (4,) float32 resized width and height, and their ratios to the original ones."""
    (width, height), (old_width, old_height) = resized, original
    return torch.tensor([width, height, width / old_width, height / old_height], dtype=torch.float32)


def vcr_padded_size(width: int, height: int, scales: Sequence[int]) -> tuple[int, int]:
    """Returns height and width that hold every resized image of this orientation."""
    short, longest = scales
    return (short, longest) if height <= width else (longest, short)


def image_to_tensor(image: Image.Image, size: tuple[int, int], *, flipped: bool = False) -> Tensor:
    """Resizes an image (bilinear with antialiasing) and flips it on request.

    Args:
        image: RGB.
        size: width and height.
        flipped: whether to flip the image horizontally.

    Returns:
        (3, height, width) uint8, channels B, G, R.
    """
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    pixels = pixels[:, ::-1, ::-1] if flipped else pixels[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def scale_boxes(boxes: Tensor, im_info: Tensor) -> Tensor:
    """Scales (n, 4) float32 boxes from original to resized pixels."""
    return boxes * im_info[2:4].repeat(2)


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Flips (n, 4) boxes horizontally in an image of this width."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((width - 1 - x2, y1, width - 1 - x1, y2), dim=1)


def clip_boxes(boxes: Tensor, width: float, height: float) -> Tensor:
    """Clips (n, 4) boxes to the pixels of an image."""
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width - 1, height - 1]).repeat(2))


def resize_boxes(boxes: Tensor, im_info: Tensor, *, flipped: bool) -> Tensor:
    """Scales, flips and clips (n, 4) boxes from original pixels to the resized image."""
    width, height = im_info[0].item(), im_info[1].item()
    boxes = scale_boxes(boxes, im_info)
    return clip_boxes(flip_boxes(boxes, width) if flipped else boxes, width, height)


ImageSource: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]


def open_image(source: ImageSource) -> Image.Image:
    """Opens an image of a user as decoded RGB.

    The EXIF orientation is applied. Animations give their first frame, transparent pixels become white, and 16-bit gray
    values are scaled to 8 bits.

    Args:
        source: a file, plain or in an archive (`x.zip@/inner`); a Pillow image; or a uint8 array (h, w), (h, w, 3) RGB
            or (h, w, 4) RGBA.

    Raises:
        DataError: the file is missing or not a readable image, the image is too large or empty, or the source has
            another type or shape.
    """
    if isinstance(source, np.ndarray):
        source = _of_array(source)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "the image"
        try:
            return upright_rgb(source)
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: not a readable image ({error})") from error
    if not isinstance(source, str | Path):
        raise DataError(
            f"an image of type {type(source).__name__}; expected a path, a Pillow image (for bytes: "
            "Image.open(BytesIO(...))) or a uint8 array (h, w, 3)"
        )
    return Store().open_image(str(source), upright_rgb)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation and converts to RGB, see `open_image`. May return its argument.

    Raises:
        ValueError: the image is empty, or has floating-point pixels.
    """
    image.load()
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    # Damaged EXIF data are ignored.
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray((wide / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.new("RGBA", image.size, "white")
        image.alpha_composite(shown)
    return image if image.mode == "RGB" else image.convert("RGB")


def _of_array(array: NDArray[np.uint8]) -> Image.Image:
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (3, 4))
    ):
        raise DataError(
            f"an image array of shape {array.shape} and type {array.dtype}; expected uint8 of shape (h, w), "
            "(h, w, 3) or (h, w, 4)"
        )
    if not array.size:
        raise DataError(f"an image array of shape {array.shape} has no pixels")
    return Image.fromarray(array)
