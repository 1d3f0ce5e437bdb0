"""Pictures of users' own: a path, a Pillow picture or an array becomes an upright RGB picture."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from common.data.store import Store
from common.errors import DataError

ImageSource: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]


def open_image(source: ImageSource) -> Image.Image:
    """Returns a picture as RGB, completely decoded.

    It is upright as its EXIF data say. Of an animation it is the first frame. What is transparent becomes white, and
    grey values of 16 bits are scaled to 8.

    Args:
        source: a file, plain or in an archive (`x.zip@/inner`); a picture; or a uint8 array (h, w), (h, w, 3) of
            R, G, B or (h, w, 4) of R, G, B and opacity.

    Raises:
        DataError: the file is missing or not a readable picture, the picture has too many pixels or none, or the
            array has another shape or type; or the source is something else.
    """
    if isinstance(source, np.ndarray):
        source = _of_array(source)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or "the picture"
        try:
            return upright_rgb(source)
        except (OSError, ValueError) as error:
            raise DataError(f"{name}: not a readable picture ({error})") from error
    if not isinstance(source, str | Path):
        raise DataError(
            f"a picture of type {type(source).__name__}; expected a path, a Pillow picture (of bytes: "
            "Image.open(BytesIO(...))) or a uint8 array (h, w, 3)"
        )
    return Store().picture(str(source), upright_rgb)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turns and converts a picture, see `open_image`; it may be returned as it is.

    Raises:
        ValueError: it has no pixels, or they are floating-point numbers.
    """
    image.load()
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    # Damaged EXIF data say nothing.
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
            f"a picture in an array of shape {array.shape} and type {array.dtype}; expected uint8 of shape (h, w), "
            "(h, w, 3) or (h, w, 4)"
        )
    if not array.size:
        raise DataError(f"a picture in an array of shape {array.shape} has no pixels")
    return Image.fromarray(array)
