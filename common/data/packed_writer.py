"""Writes packed regions (layout: `packed_regions.py`), and continues where a killed process stopped."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from common.arguments import require_same
from common.data.packed_regions import (
    HEADER_BYTES,
    RECORD_HEAD,
    PackedHeader,
    PackedRecord,
    aligned,
    checksum,
)
from common.data.region_json import COLUMNS, Regions
from common.errors import DataError, UsageError

logger = logging.getLogger(__name__)

_COLUMNS_FIELD = 7  # of RECORD_HEAD
_FLAGS = {
    "dtype": "--dtype",
    "classes": "--classes",
    "feature_dim": "--feature-dim",
    "sources": "the sources",
}


@contextmanager
def packed_file(out: Path, header: PackedHeader) -> Iterator[PackedWriter]:
    """Opens a writer of `out`, which appears when the block ends without an error.

    Until then the work lies in `{out}.partial`, and is continued where that is there.

    Raises:
        UsageError: `out` is there already; see also `PackedWriter`.
        DataError: it cannot be written.
    """
    if out.exists():
        raise UsageError(f"--out {out}: is there already; remove it or name another file")
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.touch()
        with partial.open("r+b") as file:
            yield PackedWriter(file, header)
        partial.replace(out)
    except OSError as error:
        raise DataError(
            f"{partial}: cannot be written ({error.strerror}); once it can, the same command continues"
        ) from error


class PackedWriter:
    """A packed file in the making.

    Args:
        file: the unfinished file, open for reading and writing in bytes; a new one is empty.
        header: what it is to be.

    Attributes:
        offsets: where the record of each picture begins, those included that were there already.

    Raises:
        UsageError: the file was begun with other arguments, or another process writes it.
    """

    def __init__(self, file: BinaryIO, header: PackedHeader) -> None:
        self._file = file
        self._header = header
        self._columns = 0
        self.offsets: dict[str, int] = {}
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{file.name}: another process is writing it") from error
        file.seek(self._continue())
        file.truncate()

    def _continue(self) -> int:
        """Takes over all complete records that are there; returns where they end."""
        found = self._file.read(HEADER_BYTES)
        if len(found) == HEADER_BYTES:
            begun = PackedHeader.from_bytes(found, self._file.name)
            if end := self._take_over(begun):
                return end
        self._file.seek(0)
        self._file.write(self._header.to_bytes())
        return HEADER_BYTES

    def _take_over(self, begun: PackedHeader) -> int:
        """Notes the records that are there, if any; returns where they end."""
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = HEADER_BYTES
            while (record := PackedRecord.at(data, start)) and record.is_whole(data):
                self.offsets[record.key.decode()] = start
                self._columns = self._columns or record.columns
                start = record.end
        if not self.offsets:
            return 0
        out = Path(self._file.name).with_suffix("")
        # Where arguments differ, the width of features often follows from them.
        require_same(out, begun.arguments, self._header.arguments)
        require_same(out, _by_flag(begun), _by_flag(self._header))
        logger.info("%s: continuing after %d pictures", self._file.name, len(self.offsets))
        return start

    def add(self, key: str, regions: Regions) -> None:
        """Appends the regions of a picture.

        Raises:
            ValueError: numbers are too large for the data type, or class scores are not as wide as before.
        """
        self.append(key, pack_record(key, regions, getattr(torch, self._header.dtype)))

    def append(self, key: str, record: bytes) -> None:
        """Appends what `pack_record` made of a picture.

        Raises:
            ValueError: class scores are not as wide as before.
        """
        if columns := RECORD_HEAD.unpack_from(record)[_COLUMNS_FIELD]:
            if columns != (self._columns or columns):
                raise ValueError(f"classes has {columns} columns; files before it have {self._columns}")
            self._columns = columns
        self.offsets[key] = self._file.tell()
        self._file.write(record)

    def finish(self, left_out: int) -> None:
        """Adds the index and completes the header; `left_out` is how many pictures are missing."""
        id_bytes, index = pack_index(self.offsets)
        end = {
            "complete": True,
            "columns": self._columns or COLUMNS,
            "count": len(self.offsets),
            "left_out": left_out,
            "id_bytes": id_bytes,
            "index": self._file.tell(),
            "index_sum": checksum(index, 0, len(index)),
        }
        self._file.write(index)
        self._file.seek(0)
        self._file.write(self._header.model_copy(update=end).to_bytes())
        self._file.flush()
        os.fsync(self._file.fileno())


def _by_flag(header: PackedHeader) -> dict[str, str]:
    return {flag: str(getattr(header, name)) for name, flag in _FLAGS.items()}


def pack_record(key: str, regions: Regions, dtype: torch.dtype) -> bytes:
    """Returns the record of a picture: head, id, boxes as float32, then features and scores as `dtype`.

    Raises:
        ValueError: a number is too large for `dtype`.
    """
    parts = [regions.image_feature, regions.features, regions.classes]
    stored = [part.to(dtype) for part in parts if part is not None]
    if not all(part.isfinite().all() for part in stored):
        raise ValueError(f"holds numbers too large for {dtype}; pack as float32")
    values = b"".join(part.numpy().tobytes() for part in stored)
    values += bytes(aligned(len(values)) - len(values))
    name = key.encode()
    rest = name.ljust(aligned(len(name)), b"\0") + regions.boxes.numpy().tobytes()
    width, height = regions.size or (0, 0)
    columns = 0 if regions.classes is None or not len(regions.boxes) else regions.classes.shape[1]
    head = RECORD_HEAD.pack(
        0,
        checksum(values, 0, len(values)),
        RECORD_HEAD.size + len(rest) + len(values),
        len(regions.boxes),
        width,
        height,
        regions.image_feature is not None,
        columns,
        len(name),
    )
    return struct.pack("<Q", checksum(head + rest, 8, len(head + rest))) + (head + rest)[8:] + values


def pack_index(offsets: Mapping[str, int]) -> tuple[int, bytes]:
    """Returns the width of an id, and the index over the records that begin at `offsets`."""
    keys = sorted((key.encode(), at) for key, at in offsets.items())
    width = max(len(key) for key, _ in keys)
    ids = b"".join(key.ljust(width, b"\0") for key, _ in keys)
    places = np.array([at for _, at in keys], "<i8")
    return width, ids.ljust(aligned(len(ids)), b"\0") + places.tobytes()
