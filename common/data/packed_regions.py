"""Region files packed into one: mapped into memory, hundreds of gigabytes cost a process nothing to open.

`PackedWriter` makes it, `scripts/pack_regions.py` runs that. Layout:

    4096 bytes            a line that names the format, then `PackedHeader` as json, filled up with blanks
    records               of one picture each, in any order, see `PackedRecord`
    ids                   ascending, `id_bytes` each, filled up with zeros; together a multiple of 8 bytes
    offsets               int64, where the record of each id begins

Numbers are little-endian and aligned to 8 bytes. A checksum is the sum of 64-bit words modulo 2**64: it notices any
changed word and any lost block, and costs about as much as copying the words. That of the index is verified when the
file is opened, that of id, sizes and boxes whenever they are read, that of the rest when a process first reads it.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from common.data.region_json import Regions
from common.data.store import parse_model
from common.errors import DataError

HEADER_BYTES = 4096
_MAGIC = b"VL-BERT regions\n"
# checksum of the rest up to the values, checksum of the values, bytes of the record; boxes, width, height, whether
# there is a feature of the whole image, class columns, bytes of the id
RECORD_HEAD = struct.Struct("<3Q6i")


class PackedHeader(BaseModel, frozen=True, extra="forbid"):
    """What a packed file says of itself.

    Attributes:
        version: of the layout.
        dtype: of features and class scores; boxes are always float32.
        feature_dim: width F of a feature.
        classes: whether the records have class scores.
        sources: names of the folders and archives that it was packed from.
        arguments: what it was made with, see `common.arguments`; of packed json nothing but the attributes above.
        complete: whether packing came to its end; the attributes below are 0 until then.
        columns: width C of class scores.
        count: pictures.
        left_out: files of the sources that could not be read.
        id_bytes: width of an id.
        index: where the ids begin; the file ends with the index.
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
        """Reads `to_bytes`; `where` names the file in the message of the `DataError`."""
        if not data.startswith(_MAGIC):
            raise DataError(f"{where}: not a file that scripts/pack_regions.py made")
        return parse_model(cls, data[len(_MAGIC) : HEADER_BYTES], where)


def is_packed_file(path: str) -> bool:
    """Tells a packed file, finished or not, from others by its first bytes; also from what is no readable file."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class PackedRecord(NamedTuple):
    """Where the parts of a record lie in the file; `values` are image feature, features, class scores."""

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
        """Returns the record that begins at `start`; None where none does, or its first part is damaged."""
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
        """Says whether the values are as they were written."""
        return checksum(data, self.values, self.end) == self.values_sum


def aligned(size: int) -> int:
    """Returns the next multiple of 8."""
    return -(-size // 8) * 8


def checksum(data: bytes | mmap.mmap, start: int, end: int) -> int:
    """Returns the sum of the 64-bit words from `start` to `end`, modulo 2**64."""
    return int(np.add.reduce(np.frombuffer(data, "<u8", (end - start) // 8, start)))


class PackedRegions:
    """Reads a packed file. A pickled copy opens the file by itself.

    Args:
        path: the file.

    Raises:
        DataError: it is missing, unfinished, cut off, or another kind of file.
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
            raise DataError(f"{path}: packing did not come to its end; run the same command again")
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

    def require_classes(self) -> None:
        """Checks that there are class scores.

        Raises:
            DataError: they were left out.
        """
        if not self.header.classes:
            raise DataError(f"{self.path}: has no class scores; pack again with --classes")

    def read(self, image_id: int | str, feature_dim: int, *, features: bool, classes: bool) -> Regions:
        """Returns the regions of a picture, see `RegionStore.read`."""
        head, where = self.header, f"{self.path}, image {image_id}"
        at, record = self._record(str(image_id).encode(), where)
        if features and head.feature_dim != feature_dim:
            raise DataError(
                f"{self.path}: its features have {head.feature_dim} numbers; expected {feature_dim}"
            )
        if classes:
            self.require_classes()
        if (features or classes) and not self._verified[at]:
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
            size=record.size,
            classes=_tensor(values[last : last + count * head.columns], count, head.columns)
            if classes
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
        # A longer key would make a longer copy of all ids.
        at = int(np.searchsorted(self._ids, key)) if len(key) <= self.header.id_bytes else len(self._ids)
        return at if at < len(self._ids) and self._ids[at] == key else None

    def _array(self, dtype: str, start: int, count: int) -> NDArray[Any]:
        return np.frombuffer(self._data, dtype, count, start)


def _tensor(values: NDArray[Any], *shape: int) -> Tensor:
    """Copies numbers of the mapped file, which cannot be written to."""
    return torch.from_numpy(values.copy()).float().view(shape)
