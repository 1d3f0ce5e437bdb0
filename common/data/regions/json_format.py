"""Region files in json: one file per image, arrays as base64 of little-endian float32; see `docs/data_formats.md`."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.regions.types import Regions
from common.errors import DataError

NUM_CLASSES = 1601
"""Class scores of a region: the 1600 classes of Visual Genome, column 0 is the background."""


def decode_regions(
    record: Any, path: str, feature_dim: int, *, features: bool, class_scores: bool = False
) -> Regions:
    """Checks and decodes the parsed json of a region file.

    Args:
        record: content of the file.
        path: path of the file, for messages.
        feature_dim: width F of a feature.
        features: whether to decode features.
        class_scores: whether to decode class scores.

    Raises:
        DataError: a key is missing, or an array does not match `num_boxes`, is not float32 or not finite.
    """
    if not isinstance(record, dict):
        kind = "null" if record is None else type(record).__name__
        raise DataError(f"{path}: expected a json object with num_boxes and boxes, not a {kind}")
    count = _integer(record, "num_boxes", path, minimum=0)
    size = None
    if "image_w" in record or "image_h" in record:
        size = (_integer(record, "image_w", path, 1), _integer(record, "image_h", path, 1))
    image_feature = None
    if features and record.get("image_box_feature") is not None:
        image_feature = _array(record, "image_box_feature", path, 1, feature_dim)[0]
    return Regions(
        boxes=_array(record, "boxes", path, count, 4),
        features=_array(record, "features", path, count, feature_dim) if features else None,
        image_feature=image_feature,
        class_scores=_array(record, "classes", path, count, None) if class_scores else None,
        image_size=size,
        source=path,
    )


def encode_regions(image_id: int | str, regions: Regions) -> dict[str, Any]:
    """Returns the json of a region file, the inverse of `decode_regions`."""
    record: dict[str, Any] = {"image_id": image_id, "num_boxes": len(regions.boxes)}
    if regions.image_size is not None:
        record["image_w"], record["image_h"] = regions.image_size
    arrays = {
        "boxes": regions.boxes,
        "features": regions.features,
        "image_box_feature": regions.image_feature,
        "classes": regions.class_scores,
    }
    for key, array in arrays.items():
        if array is not None:
            data = array.numpy().astype("<f4").tobytes()
            record[key] = binascii.b2a_base64(data, newline=False).decode()
    return record


def _integer(record: Mapping[str, Any], key: str, path: str, minimum: int) -> int:
    if key not in record:
        raise DataError(f"{path}: has no {key}")
    value = record[key]
    if type(value) is not int or value < minimum:
        raise DataError(f"{path}: {key} is {value!r}; expected an integer >= {minimum}")
    return value


def _array(record: Mapping[str, Any], key: str, path: str, rows: int, columns: int | None) -> Tensor:
    """Decodes base64 of `<f4` to (rows, columns); with columns None, the number of bytes decides."""
    if key not in record:
        raise DataError(f"{path}: has no {key}")
    try:
        data = binascii.a2b_base64(record[key])
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: {key} is not base64 of float32 numbers ({error})") from error
    if columns is None:
        columns = max(len(data) // (4 * rows), 1) if rows else NUM_CLASSES
    if len(data) != 4 * rows * columns:
        is_float64 = rows and len(data) == 8 * rows * columns
        hint = ", the size of float64: write it as '<f4'" if is_float64 else ""
        raise DataError(
            f"{path}: {key} holds {len(data)} bytes{hint}; "
            f"expected {rows} x {columns} float32 numbers, {4 * rows * columns} bytes"
        )
    array = np.frombuffer(data, "<f4").reshape(rows, columns)
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise DataError(
            f"{path}: {key} holds {array[row, column]} at row {row}, column {column}; expected finite numbers"
        )
    return torch.from_numpy(array.copy())
