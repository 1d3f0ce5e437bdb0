"""Coarse instance masks inside the boxes of objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon as fill_polygon

from common.errors import DataError

Polygon = Sequence[Sequence[float]]
"""Points x, y in pixels."""


def instance_mask(
    polygons: Sequence[Polygon], box: Sequence[float], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Rasterizes the union of polygons.

    Points on an edge or vertex count as inside (`skimage.draw.polygon`). Box sides are at least one pixel.

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


def check_polygons(polygons: Sequence[Sequence[Polygon]], num_objects: int) -> None:
    """Checks the polygons of all objects of an image.

    Raises:
        DataError: their number is wrong, or a point is not two finite numbers.
    """
    if not isinstance(polygons, Sequence) or len(polygons) != num_objects:
        kind = f"of {len(polygons)} objects" if isinstance(polygons, Sequence) else type(polygons).__name__
        raise DataError(
            f"polygons: {kind}; expected a list with the polygons of each of the {num_objects} objects"
        )
    for index, outlines in enumerate(polygons):
        try:
            arrays = [np.asarray(outline, dtype=np.float64) for outline in outlines if len(outline)]
        except (TypeError, ValueError):
            arrays = [np.array(np.nan)]
        if not all(
            points.ndim == 2 and points.shape[1] == 2 and np.isfinite(points).all() for points in arrays
        ):
            raise DataError(
                f"polygons: object {index}: expected lists of points x, y that are finite numbers"
            )
