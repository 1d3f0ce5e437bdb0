"""Polygons of an object to a coarse mask inside its box (data spec 3.5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon as fill_polygon

Polygon = Sequence[Sequence[float]]
"""Points x, y in pixels."""


def instance_mask(
    polygons: Sequence[Polygon], box: Sequence[float], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Rasterises the union of polygons.

    Points on an edge or vertex count as inside (`skimage.draw.polygon`); the sides of a box count as at least
    one pixel.

    Args:
        polygons: lists of x, y in pixels; empty for an empty mask.
        box: x1, y1, x2, y2 in pixels.
        size: rows and columns of the mask.

    Returns:
        (rows, columns) bool.
    """
    rows, columns = size
    x1, y1, x2, y2 = box[:4]
    corner = np.array([x1, y1], dtype=np.float32)
    scale = np.array([columns / max(x2 - x1 + 1, 1), rows / max(y2 - y1 + 1, 1)], dtype=np.float32)
    last = np.array([columns - 1, rows - 1], dtype=np.float32)
    mask = np.zeros(size, dtype=np.bool_)
    for polygon in polygons:
        if len(polygon):
            x, y = ((np.asarray(polygon, dtype=np.float32) - corner) * scale).clip(0, last).T
            mask[fill_polygon(y, x)] = True  # type: ignore[no-untyped-call]
    return mask
