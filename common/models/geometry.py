"""Functions of boxes `(x1, y1, x2, y2)`."""

from __future__ import annotations

import torch
from torch import Tensor


def coordinate_embeddings(boxes: Tensor, sizes: Tensor, dim: int = 256) -> Tensor:
    """Sine and cosine embedding of box positions and sizes (paper, section 3.2).

    Args:
        boxes: (K, 4) x1, y1, x2, y2 in pixels.
        sizes: (K, 2) width and height of the image of each box in pixels.
        dim: number of wavelengths, from 1 to nearly 1000.

    Returns:
        (K, 4, 2 * dim) float32: sines, then cosines of center x, center y, width, height in percent of the image.
    """
    boxes, sizes = boxes.float(), sizes.float()
    # Without the "+ 1" of `pairwise_iou`, as in the reference.
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    extent = boxes[:, 2:] - boxes[:, :2]
    percent = torch.cat([center / sizes, extent / sizes], dim=1) * 100
    wavelength = 1000 ** (torch.arange(dim, dtype=torch.float32, device=boxes.device) / dim)
    angle = percent[:, :, None] / wavelength
    return torch.cat([angle.sin(), angle.cos()], dim=2)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union with inclusive corners: a box covers `x2 - x1 + 1` pixels.

    Args:
        boxes: (N, 4).
        others: (M, 4).

    Returns:
        (N, M).
    """
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (bottom_right - top_left + 1).clamp(min=0).prod(dim=2)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    other_area = (others[:, 2:] - others[:, :2] + 1).prod(dim=1)
    return intersection / (area[:, None] + other_area[None, :] - intersection)
