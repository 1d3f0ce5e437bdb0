"""The json form of region files: what a detector found in one picture (data spec 1.4, 1.6).

Arrays are base64 of little-endian float32.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.regions.types import Regions
from common.errors import DataError

COLUMNS = 1601
"""Class scores of a region: 1600 classes of Visual Genome, column 0 is the background."""


def json_regions(
    record: Any, where: str, feature_dim: int, *, features: bool, classes: bool = False
) -> Regions:
    """Checks and decodes the parsed json of a region file (data spec 1.4, 1.6).

    Args:
        record: what the file holds.
        where: the file, for messages.
        feature_dim: width F of a feature.
        features: whether to decode features.
        classes: whether to decode class scores.

    Raises:
        DataError: a key is missing, or an array does not fit `num_boxes`, is not float32 or not finite.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a json object with num_boxes and boxes, not a {_kind(record)}")
    count = _whole_number(record, "num_boxes", where, least=0)
    size = None
    if "image_w" in record or "image_h" in record:
        size = (_whole_number(record, "image_w", where, 1), _whole_number(record, "image_h", where, 1))
    whole = None
    if features and record.get("image_box_feature") is not None:
        whole = _array(record, "image_box_feature", where, 1, feature_dim)[0]
    return Regions(
        boxes=_array(record, "boxes", where, count, 4),
        features=_array(record, "features", where, count, feature_dim) if features else None,
        image_feature=whole,
        size=size,
        classes=_array(record, "classes", where, count, None) if classes else None,
    )


def region_record(image_id: int | str, found: Regions) -> dict[str, Any]:
    """Returns the json of a region file that `json_regions` reads."""
    record: dict[str, Any] = {"image_id": image_id, "num_boxes": len(found.boxes)}
    if found.size is not None:
        record["image_w"], record["image_h"] = found.size
    arrays = {
        "boxes": found.boxes,
        "features": found.features,
        "image_box_feature": found.image_feature,
        "classes": found.classes,
    }
    for key, array in arrays.items():
        if array is not None:
            data = array.numpy().astype("<f4").tobytes()
            record[key] = binascii.b2a_base64(data, newline=False).decode()
    return record


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _whole_number(record: Mapping[str, Any], key: str, where: str, least: int) -> int:
    if key not in record:
        raise DataError(f"{where}: has no {key}")
    value = record[key]
    if type(value) is not int or value < least:
        raise DataError(f"{where}: {key} is {value!r}; expected a whole number of at least {least}")
    return value


def _array(record: Mapping[str, Any], key: str, where: str, rows: int, columns: int | None) -> Tensor:
    """Decodes base64 of `<f4` into (rows, columns); None: as many columns as there are, equal in all rows."""
    if key not in record:
        raise DataError(f"{where}: has no {key}")
    try:
        data = binascii.a2b_base64(record[key])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {key} is not base64 of float32 numbers ({error})") from error
    if columns is None:
        columns = max(len(data) // (4 * rows), 1) if rows else COLUMNS
    if len(data) != 4 * rows * columns:
        hint = (
            ", as many as float64 takes: write it as '<f4'"
            if rows and len(data) == 8 * rows * columns
            else ""
        )
        raise DataError(
            f"{where}: {key} holds {len(data)} bytes{hint}; "
            f"expected {rows} x {columns} float32 numbers, {4 * rows * columns} bytes"
        )
    array = np.frombuffer(data, "<f4").reshape(rows, columns)
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise DataError(
            f"{where}: {key} holds {array[row, column]} at row {row}, column {column}; expected finite numbers"
        )
    return torch.from_numpy(array.copy())
