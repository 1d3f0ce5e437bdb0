"""Many region files packed into one memory-mapped file.

`PackedWriter` writes it; `scripts/pack_regions.py` is its command. Layout:

    4096 bytes            a line that names the format, then `PackedHeader` as json, padded with spaces
    records               one per image, in any order, see `PackedRecord`
    ids                   ascending, `id_bytes` each, padded with zeros; together a multiple of 8 bytes
    offsets               int64, start of the record of each id

Numbers are little-endian and aligned to 8 bytes. A checksum is the sum of 64-bit words modulo 2**64. It detects any
changed word and any lost block, at the cost of a copy. The checksum of the index is verified when the file is opened,
that of id, sizes and boxes at every read, that of the values at the first read of a process.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from common.data.regions.json_format import NUM_CLASSES
from common.data.regions.types import Regions
from common.data.storage.store import parse_model
from common.errors import DataError, UsageError
from common.provenance import check_same_arguments

HEADER_BYTES = 4096


_MAGIC = b"VL-BERT regions\n"


# checksum of the rest up to the values, checksum of the values, bytes of the record; boxes, width, height, whether
# there is a feature of the whole image, class columns, bytes of the id
RECORD_HEAD = struct.Struct("<3Q6i")


class PackedHeader(BaseModel, frozen=True, extra="forbid"):
    """Header of a packed file.

    Attributes:
        version: version of the layout.
        dtype: dtype of features and class scores; boxes are always float32.
        feature_dim: width F of a feature.
        classes: whether the records have class scores.
        sources: names of the folders and archives that were packed.
        arguments: arguments of the extraction, see `common.provenance`; empty for packed json.
        complete: whether packing has finished; the attributes below are 0 until then.
        columns: width C of class scores.
        count: number of images.
        left_out: number of source files that could not be read.
        id_bytes: width of an id.
        index: start of the ids; the file ends with the index.
        index_sum: checksum of ids and offsets.
    """

    version: Literal[1] = 1
    dtype: Literal["float32", "float16"]
    feature_dim: int
    classes: bool = False
    sources: tuple[str, ...] = ()
    arguments: dict[str, str] = {}
    complete: bool = False
    columns: int = 0
    count: int = 0
    left_out: int = 0
    id_bytes: int = 0
    index: int = 0
    index_sum: int = 0

    def to_bytes(self) -> bytes:
        """Returns the first `HEADER_BYTES` of the file."""
        data = _MAGIC + self.model_dump_json().encode()
        if len(data) > HEADER_BYTES:
            raise DataError("the names of the sources are too long for one packed file; pack fewer of them")
        return data.ljust(HEADER_BYTES)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> PackedHeader:
        """Parses `to_bytes`. `where` is the path, for messages."""
        if not data.startswith(_MAGIC):
            raise DataError(f"{where}: not a file that scripts/pack_regions.py wrote")
        return parse_model(cls, data[len(_MAGIC) : HEADER_BYTES], where)


def is_packed_file(path: str) -> bool:
    """Returns whether the first bytes are those of a packed file, finished or not."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class PackedRecord(NamedTuple):
    """Offsets of the parts of a record; `values` are image feature, features and class scores."""

    key: bytes
    num_boxes: int
    size: tuple[int, int] | None
    has_whole: bool
    columns: int
    boxes: int
    values: int
    end: int
    values_sum: int

    @classmethod
    def at(cls, data: mmap.mmap, start: int) -> PackedRecord | None:
        """Returns the record at `start`; None if there is none or its first part is damaged."""
        if start < 0 or start % 8 or start + RECORD_HEAD.size > len(data):
            return None
        head_sum, values_sum, length, count, width, height, whole, columns, id_bytes = (
            RECORD_HEAD.unpack_from(data, start)
        )
        boxes = start + RECORD_HEAD.size + aligned(max(id_bytes, 0))
        values, end = boxes + 16 * count, start + length
        if not start < boxes <= values <= end <= len(data) or length % 8:
            return None
        if checksum(data, start + 8, values) != head_sum:
            return None
        key = data[start + RECORD_HEAD.size : start + RECORD_HEAD.size + id_bytes]
        size = (width, height) if width else None
        return cls(key, count, size, bool(whole), columns, boxes, values, end, values_sum)

    def is_whole(self, data: mmap.mmap) -> bool:
        """Returns whether the checksum of the values is right."""
        return checksum(data, self.values, self.end) == self.values_sum


def aligned(size: int) -> int:
    """Rounds up to a multiple of 8."""
    return -(-size // 8) * 8


def checksum(data: bytes | mmap.mmap, start: int, end: int) -> int:
    """Returns the sum of the 64-bit words from `start` to `end`, modulo 2**64."""
    return int(np.add.reduce(np.frombuffer(data, "<u8", (end - start) // 8, start)))


class PackedRegions:
    """Reads a packed file. A pickled copy reopens the file.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, unfinished, truncated, or of another kind.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self.header = PackedHeader.from_bytes(file.read(HEADER_BYTES), path)
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); expected packed regions") from error
        head = self.header
        if not head.complete:
            raise DataError(f"{path}: packing has not finished; run the same command again")
        offsets = head.index + aligned(head.count * head.id_bytes)
        end = offsets + 8 * head.count
        if len(self._data) != end:
            raise DataError(f"{path}: has {len(self._data)} bytes, not {end}; copy it again")
        if checksum(self._data, head.index, end) != head.index_sum:
            raise DataError(f"{path}: its index is damaged; copy it again")
        self._ids = np.frombuffer(self._data, f"S{head.id_bytes}", head.count, head.index)
        self._offsets = np.frombuffer(self._data, "<i8", head.count, offsets)
        self._verified = bytearray(head.count)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedRegions, (self.path,)

    def __contains__(self, image_id: int | str) -> bool:
        return self._find(str(image_id).encode()) is not None

    def require_class_scores(self) -> None:
        """Checks that there are class scores.

        Raises:
            DataError: the file was packed without them.
        """
        if not self.header.classes:
            raise DataError(f"{self.path}: has no class scores; pack again with --classes")

    def read(self, image_id: int | str, feature_dim: int, *, features: bool, class_scores: bool) -> Regions:
        """Reads the regions of an image, see `RegionStore.read`."""
        head, where = self.header, f"{self.path}, image {image_id}"
        at, record = self._record(str(image_id).encode(), where)
        if features and head.feature_dim != feature_dim:
            raise DataError(
                f"{self.path}: its features have {head.feature_dim} numbers; expected {feature_dim}"
            )
        if class_scores:
            self.require_class_scores()
        if (features or class_scores) and not self._verified[at]:
            if not record.is_whole(self._data):
                raise DataError(f"{where}: is damaged; copy the file again, or pack it again")
            self._verified[at] = True
        count, width = record.num_boxes, head.feature_dim
        values = self._array(
            head.dtype, record.values, (record.end - record.values) // np.dtype(head.dtype).itemsize
        )
        first, last = record.has_whole * width, (record.has_whole + count) * width
        return Regions(
            boxes=_tensor(self._array("<f4", record.boxes, 4 * count), count, 4),
            features=_tensor(values[first:last], count, width) if features else None,
            image_feature=_tensor(values[:first], width) if features and first else None,
            image_size=record.size,
            source=where,
            class_scores=_tensor(values[last : last + count * head.columns], count, head.columns)
            if class_scores
            else None,
        )

    def _record(self, key: bytes, where: str) -> tuple[int, PackedRecord]:
        at = self._find(key)
        if at is None:
            raise DataError(f"{where}: not in this file, packed from {', '.join(self.header.sources)}")
        record = PackedRecord.at(self._data, int(self._offsets[at]))
        if record is None or record.key != key:
            raise DataError(f"{where}: is damaged; copy the file again, or pack it again")
        return at, record

    def _find(self, key: bytes) -> int | None:
        # NumPy would convert all ids to the width of a longer key.
        at = int(np.searchsorted(self._ids, key)) if len(key) <= self.header.id_bytes else len(self._ids)
        return at if at < len(self._ids) and self._ids[at] == key else None

    def _array(self, dtype: str, start: int, count: int) -> NDArray[Any]:
        return np.frombuffer(self._data, dtype, count, start)


def _tensor(values: NDArray[Any], *shape: int) -> Tensor:
    """Copies from the read-only mapping."""
    return torch.from_numpy(values.copy()).float().view(shape)


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

    Until then records go to `{out}.partial`. An existing one is continued.

    Raises:
        UsageError: `out` already exists; see also `PackedWriter`.
        DataError: it cannot be written.
    """
    if out.exists():
        raise UsageError(f"--out {out}: already exists; remove it or choose another file")
    partial = out.with_name(f"{out.name}.partial")
    lock = FileLock(f"{partial}.lock")
    try:
        partial.touch()  # fails if the folder is missing, which the lock would create
        with lock.acquire(timeout=0):
            with partial.open("r+b") as file:
                yield PackedWriter(file, header)
            partial.replace(out)
            Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout as error:
        raise UsageError(f"{partial}: another process is writing it") from error
    except OSError as error:
        raise DataError(
            f"{partial}: cannot be written ({error.strerror}); once it can, rerun the same command to resume"
        ) from error


class PackedWriter:
    """Writes a packed file.

    Args:
        file: the unfinished file, open for reading and writing in bytes; a new one is empty.
        header: header of the result.

    Attributes:
        offsets: start of the record of each image, including those of an interrupted run.

    Raises:
        UsageError: the file was started with other arguments.
    """

    def __init__(self, file: BinaryIO, header: PackedHeader) -> None:
        self._file = file
        self._header = header
        self._columns = 0
        self.offsets: dict[str, int] = {}
        file.seek(self._continue())
        file.truncate()

    def _continue(self) -> int:
        """Finds the complete records of an interrupted run; returns the offset after the last one."""
        data = self._file.read(HEADER_BYTES)
        if len(data) == HEADER_BYTES:
            saved = PackedHeader.from_bytes(data, self._file.name)
            if end := self._find_records(saved):
                return end
        self._file.seek(0)
        self._file.write(self._header.to_bytes())
        return HEADER_BYTES

    def _find_records(self, saved: PackedHeader) -> int:
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = HEADER_BYTES
            while (record := PackedRecord.at(data, start)) and record.is_whole(data):
                self.offsets[record.key.decode()] = start
                self._columns = self._columns or record.columns
                start = record.end
        if not self.offsets:
            return 0
        out = Path(self._file.name).with_suffix("")
        # Compare arguments first: a different feature width often follows from them.
        check_same_arguments(out, saved.arguments, self._header.arguments)
        check_same_arguments(out, _by_flag(saved), _by_flag(self._header))
        logger.info("%s: continuing after %d images", self._file.name, len(self.offsets))
        return start

    def add(self, key: str, regions: Regions) -> None:
        """Appends the regions of an image.

        Raises:
            ValueError: numbers overflow the dtype, or the number of class scores differs from earlier images.
        """
        self.append(key, pack_record(key, regions, getattr(torch, self._header.dtype)))

    def append(self, key: str, record: bytes) -> None:
        """Appends a record of `pack_record`.

        Raises:
            ValueError: the number of class scores differs from earlier images.
        """
        if columns := RECORD_HEAD.unpack_from(record)[_COLUMNS_FIELD]:
            if columns != (self._columns or columns):
                raise ValueError(f"classes has {columns} columns; earlier files have {self._columns}")
            self._columns = columns
        self.offsets[key] = self._file.tell()
        self._file.write(record)

    def finish(self, left_out: int) -> None:
        """Writes the index and completes the header. `left_out` is the number of skipped images."""
        id_bytes, index = pack_index(self.offsets)
        end = {
            "complete": True,
            "columns": self._columns or NUM_CLASSES,
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
    """Returns the record of an image: head, id, boxes as float32, then features and class scores as `dtype`.

    Raises:
        ValueError: a number overflows `dtype`.
    """
    parts = [regions.image_feature, regions.features, regions.class_scores]
    stored = [part.to(dtype) for part in parts if part is not None]
    if not all(part.isfinite().all() for part in stored):
        raise ValueError(f"holds numbers too large for {dtype}; pack as float32")
    values = b"".join(part.numpy().tobytes() for part in stored)
    values += bytes(aligned(len(values)) - len(values))
    name = key.encode()
    rest = name.ljust(aligned(len(name)), b"\0") + regions.boxes.numpy().tobytes()
    width, height = regions.image_size or (0, 0)
    columns = 0 if regions.class_scores is None or not len(regions.boxes) else regions.class_scores.shape[1]
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
    """Returns the width of an id, and the index of the records at `offsets`."""
    keys = sorted((key.encode(), at) for key, at in offsets.items())
    width = max(len(key) for key, _ in keys)
    ids = b"".join(key.ljust(width, b"\0") for key, _ in keys)
    places = np.array([at for _, at in keys], "<i8")
    return width, ids.ljust(aligned(len(ids)), b"\0") + places.tobytes()
