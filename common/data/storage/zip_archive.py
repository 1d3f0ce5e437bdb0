"""Zip archives of millions of members: memory does not grow with their number.

`zipfile` makes objects of the whole central directory: 0.6 KB per member, in every process. Of a large one only the
hash of each name and the place of its entry are noted, 16 bytes per member, in an index file (see `IndexedFile`) of
these words:

    head      where the directory begins, bytes before the first archive member that offsets do not count
    hashes    of the names, ascending; of equal names the last one counts
    places    where the entries begin

A member is read by `zipfile` from an archive that seems to hold nothing else.
"""

from __future__ import annotations

import os
import struct
import zipfile
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedReader, RawIOBase
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, Self

from common.data.storage.mapped_index import IndexedFile, Table
from common.progress import Progress

INDEXED_ABOVE = 4 * 2**20


TOLD_EVERY = 2**14


_ENTRY = struct.Struct("<4s4xH18x3H12x")  # signature, flags, lengths of name, extra fields and comment


_END = struct.Struct("<4s8x2LH")  # signature, size and offset of the directory, length of the comment


_END64 = struct.Struct("<4sQ2H2L4Q")


_LOCATOR64 = struct.Struct("<4sLQL")


_ENTRY_MARK, _END_MARK, _END64_MARK, _LOCATOR64_MARK = b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"


_MAX_COMMENT = 2**16 - 1


_UTF8 = 1 << 11


_UNICODE_NAME = b"up"  # of an extra field that has the name once more


class Archive(Protocol):
    """What reads members of an archive."""

    def read(self, member: str) -> bytes:
        """Returns the content of a member; raises what `zipfile.ZipFile.read` does."""


class SmallArchive:
    """A handle of `zipfile` per process, as forked ones would share a file position."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def read(self, member: str) -> bytes:
        """Returns the content of a member, see `Archive`."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self._path)
        return self._opened[1].read(member)


class Directory(NamedTuple):
    """The central directory of an archive.

    Attributes:
        start: where it begins in the file.
        size: in bytes.
        before: bytes of something else before the archive, which its offsets do not count.
    """

    start: int
    size: int
    before: int

    @classmethod
    def of(cls, descriptor: int) -> Directory | None:
        """Finds it as `zipfile` does; None where something about it is unusual or wrong."""
        length = os.fstat(descriptor).st_size
        begin = max(length - _MAX_COMMENT - _END.size - _LOCATOR64.size - _END64.size, 0)
        tail = os.pread(descriptor, length - begin, begin)
        end = len(tail) - _END.size
        if not (tail[end:].startswith(_END_MARK) and tail.endswith(b"\0\0")):
            end = tail.rfind(_END_MARK)
        if end < 0 or len(tail) - end < _END.size:
            return None
        _, size, offset, _ = _END.unpack_from(tail, end)
        locator = end - _LOCATOR64.size
        if locator >= 0 and tail.startswith(_LOCATOR64_MARK, locator):
            end = locator - _END64.size
            if end < 0 or not tail.startswith(_END64_MARK, end):
                return None
            *_, size, offset = _END64.unpack_from(tail, end)
        start = begin + end - size
        return cls(start, size, start - offset) if start >= 0 else None


class _OneMember(RawIOBase):
    """An archive of one entry of another's directory: what is before that directory, then the entry."""

    def __init__(self, descriptor: int, start: int, before: int, entry: bytes) -> None:
        self._descriptor, self._start, self._at = descriptor, start, 0
        offset, size = start - before, len(entry)
        end = _END64.pack(_END64_MARK, _END64.size - 12, 45, 45, 0, 0, 1, 1, size, offset)
        locator = _LOCATOR64.pack(_LOCATOR64_MARK, 0, offset + size, 1)
        self._rest = entry + end + locator + _END.pack(_END_MARK, 2**32 - 1, 2**32 - 1, 0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + (0, self._at, self._start + len(self._rest))[whence]
        if at < 0:
            raise zipfile.BadZipFile("Bad offset")
        self._at = at
        return at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        if self._at < self._start:
            count = os.preadv(self._descriptor, [view[: self._start - self._at]], self._at)
        else:
            part = self._rest[self._at - self._start :][: len(view)]
            count = len(part)
            view[:count] = part
        self._at += count
        return count


def _open_one(descriptor: int, start: int, before: int, entry: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(BufferedReader(_OneMember(descriptor, start, before, entry)))


def _hash(name: bytes) -> bytes:
    return blake2b(name, digest_size=8).digest()


@dataclass(frozen=True)
class MemberTable(Table):
    """Where the entries of a central directory are.

    Attributes:
        start: where the directory begins.
        before: bytes before the archive, see `Directory`.
        hashes: (n,) uint64 of the names as `zipfile` reads them, ascending.
        places: (n,) int64 where their entries begin; of equal hashes in the order of the directory.
    """

    magic = b"VL-BERT names 02"

    start: int
    before: int
    hashes: NDArray[np.uint64]
    places: NDArray[np.int64]

    def to_words(self) -> NDArray[np.int64]:
        """Returns it as (n,) int64."""
        return np.concatenate([[self.start, self.before], self.hashes.view("<i8"), self.places])

    @classmethod
    def from_words(cls, words: NDArray[np.int64]) -> Self:
        """Reads `to_words`."""
        hashes, places = np.split(words[2:], 2)
        return cls(int(words[0]), int(words[1]), hashes.view("<u8"), places)

    def find(self, name: str) -> list[int]:
        """Returns where entries may be that have this name, the one that counts first."""
        # Of another type than the hashes, it would turn all of them into that.
        key = np.frombuffer(_hash(name.encode(errors="surrogatepass")), "<u8")
        first, last = (int(np.searchsorted(self.hashes, key, side)[0]) for side in ("left", "right"))
        places: list[int] = self.places[first:last][::-1].tolist()
        return places


def scan_members(
    file: BufferedReader, directory: Directory, progress: Callable[[int], object]
) -> MemberTable:
    """Reads a central directory through and notes where its entries begin.

    Args:
        file: the archive.
        directory: where it is.
        progress: is told the number of bytes that were read since it was told last.

    Raises:
        zipfile.BadZipFile: it is damaged.
    """
    hashes, places = bytearray(), array("q")
    place = told = directory.start
    end = directory.start + directory.size
    file.seek(place)
    while place < end:
        head = file.read(_ENTRY.size)
        if len(head) < _ENTRY.size:
            break
        mark, flags, *sizes = _ENTRY.unpack(head)
        if mark != _ENTRY_MARK:
            raise zipfile.BadZipFile("Bad magic number for central directory")
        rest = file.read(sum(sizes))
        hashes += _hash(_name(head, rest, flags, sizes[0]))
        places.append(place)
        place += len(head) + sum(sizes)
        if len(places) % TOLD_EVERY == 0 or place >= end:
            progress(place - told)
            told = place
    if place != end:
        raise zipfile.BadZipFile("Truncated central directory")
    found = np.frombuffer(hashes, "<u8")
    order = np.argsort(found, kind="stable")
    return MemberTable(directory.start, directory.before, found[order], np.frombuffer(places, "<i8")[order])


def _name(head: bytes, rest: bytes, flags: int, size: int) -> bytes:
    name, more = rest[:size], rest[size:]
    if (flags & _UTF8 or name.isascii()) and b"\0" not in name and _UNICODE_NAME not in more:
        return name
    return _open_one(-1, 0, 0, head + rest).namelist()[0].encode()


class LargeArchive(IndexedFile[MemberTable]):
    """Reads members where the index of the archive says, see `IndexedFile`.

    Args:
        path: the archive. It must not change as long as this object is in use.
        cache: folder for the index where it cannot lie beside the archive; empty for none.

    Raises:
        DataError: the archive cannot be read.
        zipfile.BadZipFile: its central directory is damaged.
    """

    _table_type = MemberTable

    def __init__(self, path: str, cache: str = "") -> None:
        super().__init__(path, cache, expected="a zip archive", in_memory_below=0)

    def read(self, member: str) -> bytes:
        """Returns the content of a member, see `Archive`.

        Raises:
            DataError: the archive has changed since it was opened.
        """
        descriptor = self._descriptor()
        try:
            for place in self._table.find(member):
                with suppress(KeyError):  # a name of the same hash
                    return self._open_at(place, descriptor).read(member)
            raise KeyError(member)
        finally:
            self._check(descriptor)

    def _open_at(self, place: int, descriptor: int) -> zipfile.ZipFile:
        *_, name, extra, comment = _ENTRY.unpack(os.pread(descriptor, _ENTRY.size, place))
        entry = os.pread(descriptor, _ENTRY.size + name + extra + comment, place)
        return _open_one(descriptor, self._table.start, self._table.before, entry)

    def _make(self, file: BufferedReader) -> MemberTable:
        directory = Directory.of(file.fileno())
        if directory is None:
            raise zipfile.BadZipFile("its central directory is not found")
        with Progress(directory.size, self.path, "B", delay=1) as progress:
            return scan_members(file, directory, progress.update)


def open_archive(path: str, cache: str = "", *, indexed_above: int = INDEXED_ABOVE) -> Archive:
    """Opens an archive, by an index of its own if its central directory has more than `indexed_above` bytes.

    Raises:
        OSError: it cannot be read.
        DataError: it cannot be read any more.
        zipfile.BadZipFile: its central directory is damaged.
    """
    with open(path, "rb") as file:
        directory = Directory.of(file.fileno())
    if directory is None or directory.size <= indexed_above:
        return SmallArchive(path)
    return LargeArchive(path, cache)
