"""Resizing, flipping and clipping of pictures, boxes and masks (data spec 5): pure functions.

Pictures leave as uint8; the mean is subtracted on the device, which gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def target_size(width: int, height: int, scales: Sequence[int]) -> tuple[int, int]:
    """Returns width and height after resizing; no side falls below 1.

    Args:
        width: of the original picture.
        height: of the original picture.
        scales: length of the short side, and limit of the long side.
    """
    short, longest = scales
    least, most = min(width, height), max(width, height)
    if most / least * short > longest:
        short = int(longest * least / most)
    short = max(short, 1)
    long = min(int(short * most / least), longest)
    return (short, long) if width < height else (long, short)


def size_info(original: tuple[int, int], resized: tuple[int, int]) -> Tensor:
    """Returns (4,) float32: resized width and height, and their ratios to the original ones."""
    ratios = (new / old for new, old in zip(resized, original, strict=True))
    return torch.tensor([*resized, *ratios], dtype=torch.float32)


def fixed_canvas(width: int, height: int, scales: Sequence[int]) -> tuple[int, int]:
    """Returns height and width of the canvas that holds every picture of this orientation after resizing."""
    short, longest = scales
    return (short, longest) if height <= width else (longest, short)


def image_tensor(image: Image.Image, size: tuple[int, int], *, flipped: bool = False) -> Tensor:
    """Resizes a picture (bilinear with area support) and mirrors it if asked.

    Args:
        image: RGB.
        size: width and height.
        flipped: whether left becomes right.

    Returns:
        (3, height, width) uint8, channels B, G, R.
    """
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    pixels = pixels[:, ::-1, ::-1] if flipped else pixels[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def scale_boxes(boxes: Tensor, im_info: Tensor) -> Tensor:
    """Takes (n, 4) float32 boxes from original to resized pixels."""
    return boxes * im_info[2:4].repeat(2)


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Mirrors (n, 4) boxes in a picture of that width."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((width - 1 - x2, y1, width - 1 - x1, y2), dim=1)


def clip_boxes(boxes: Tensor, width: float, height: float) -> Tensor:
    """Clamps (n, 4) boxes to the pixels of a picture."""
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width - 1, height - 1]).repeat(2))


def place_boxes(boxes: Tensor, im_info: Tensor, *, flipped: bool) -> Tensor:
    """Takes (n, 4) original boxes to the resized, possibly mirrored picture and clamps them."""
    width, height = im_info[0].item(), im_info[1].item()
    boxes = scale_boxes(boxes, im_info)
    return clip_boxes(flip_boxes(boxes, width) if flipped else boxes, width, height)
