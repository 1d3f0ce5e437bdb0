"""Index files: what was found out about a large source once lies beside it, mapped by all processes that read it.

Layout, numbers little-endian, 64 bits:

    magic     16 bytes, of the kind of index and its version
    digest    16 bytes, of all that follows
    source    size, two times in ns and digest (16 bytes) of the source
    words     what the kind wants
"""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import os
import struct
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from typing_extensions import Self

from common.errors import DataError
from common.files import replace_file

logger = logging.getLogger(__name__)


_HEAD = struct.Struct("<3q16s")


_WORDS = 2 * 16 + _HEAD.size


_SAMPLES, _SAMPLE_BYTES = 64, 2**18


def _digest(*parts: bytes | memoryview) -> bytes:
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        result.update(part)
    return result.digest()


class Source(NamedTuple):
    """What tells one state of a file from another.

    A copy, another name or other permissions make another state too, as `changed` is all that tells of content that
    was exchanged in place under the old time: that the index is made anew then costs seconds.

    Attributes:
        size: in bytes.
        modified: time of the last change of the content, in ns, which a program may set.
        changed: time of the last change of anything, in ns, which none can set.
        digest: of up to 64 blocks of 256 KB over the whole file; of all of it up to 16 MB.
    """

    size: int
    modified: int
    changed: int
    digest: bytes = b""

    @classmethod
    def of(cls, descriptor: int) -> Source:
        """Returns the state of an open file, without digest."""
        found = os.fstat(descriptor)
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    @property
    def is_known_whole(self) -> bool:
        """Whether the digest tells of every byte."""
        return self.size <= _SAMPLES * _SAMPLE_BYTES

    def sampled(self, descriptor: int) -> Source:
        """Adds the digest."""
        count = min(_SAMPLES, -(-self.size // _SAMPLE_BYTES))
        places = np.linspace(0, max(self.size - _SAMPLE_BYTES, 0), count).astype(int).tolist()
        blocks = (os.pread(descriptor, _SAMPLE_BYTES, place) for place in places)
        return self._replace(digest=_digest(*blocks))


class Table(ABC):
    """What an index knows of its source.

    Attributes:
        magic: 16 bytes that begin its file; the last three are its version.
    """

    magic: ClassVar[bytes]

    @abstractmethod
    def to_words(self) -> NDArray[np.int64]:
        """Returns all that it knows as (n,) int64."""

    @classmethod
    @abstractmethod
    def from_words(cls, words: NDArray[np.int64]) -> Self:
        """Reads `to_words`, without a copy.

        Raises:
            ValueError: they are of no use; the message says why.
        """

    def write(self, path: Path, source: Source) -> None:
        """Writes an index file of a source in this state."""
        rest = _HEAD.pack(*source) + self.to_words().astype("<i8").tobytes()
        path.write_bytes(self.magic + _digest(rest) + rest)

    @classmethod
    def map(cls, path: str, source: Source) -> Self:
        """Maps an index file of a source in this state.

        Raises:
            OSError: the file cannot be read, or is something else.
            ValueError: it is of no use; the message says why.
        """
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < _WORDS:
                raise ValueError("is damaged")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, digest, rest = data[:16], data[16:32], memoryview(data)[32:]
        if not magic.startswith(cls.magic[:-3]) and any(magic):
            raise FileExistsError(errno.EEXIST, "is a file of another kind")
        if magic != cls.magic:
            raise ValueError("is of another version" if any(magic) else "is damaged")
        if Source(*_HEAD.unpack_from(rest)) != source:
            raise ValueError("is of another state of that file")
        if _digest(rest) != digest:
            raise ValueError("is damaged")
        return cls.from_words(np.frombuffer(data, "<i8", offset=_WORDS))


TableT = TypeVar("TableT", bound=Table)


@contextmanager
def _alone(place: str) -> Iterator[None]:
    """Keeps other processes out that want to write the same index file."""
    lock = FileLock(f"{place}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: waiting for another process that makes it", place)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class IndexedFile(ABC, Generic[TableT]):
    """A file that is read where its index says.

    The first process that opens a large file writes an index beside it, `{path}.index`, or where it cannot,
    `{cache}/{name}-{digest of the path}.index`; all others map that. It is made anew when the file has changed.
    Where neither can be written, each process that opens the file keeps the index in memory. Can be pickled, and
    used after a fork: every process opens the file for itself and reads at positions, not from one to the next.

    Args:
        path: the file. It must not change as long as this object is in use.
        cache: folder for index files; empty for none.
        expected: what the file should be, for messages.
        in_memory_below: smaller files, in bytes, are indexed at once and get no index file.

    Raises:
        DataError: the file cannot be read.
    """

    _table_type: type[TableT]

    def __init__(self, path: str, cache: str, *, expected: str, in_memory_below: int) -> None:
        self.path = path
        self._opened: tuple[int, int] | None = None  # process, descriptor
        self._mapped = False
        try:
            with open(path, "rb") as file:
                self._source = Source.of(file.fileno()).sampled(file.fileno())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from error
        large = self._source.size >= max(in_memory_below, 1)
        self._places = [f"{path}.index"] if large else []
        if large and cache:
            whole = os.path.abspath(path)
            name = f"{os.path.basename(whole)}-{_digest(os.fsencode(whole)).hex()}.index"
            self._places.append(os.path.join(cache, name))
        self._table = self._load()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_table": None if self._mapped else self._table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table = self._table or self._load()

    @abstractmethod
    def _make(self, file: BufferedReader) -> TableT:
        """Indexes the file, opened at its begin."""

    def _descriptor(self) -> int:
        if self._opened is None or self._opened[0] != os.getpid():
            descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, descriptor)
            self._opened = os.getpid(), descriptor
        return self._opened[1]

    def _check(self, descriptor: int) -> None:
        # At every reading: the file may be written to in place, and this costs less than a microsecond.
        now = Source.of(descriptor)
        if now[:3] == self._source[:3]:
            return
        # Touched, or written again as it was; of a large file only another name or permissions are believed.
        harmless = now.is_known_whole or now.modified == self._source.modified
        if harmless and now.size == self._source.size:
            now = now.sampled(descriptor)
            if now.digest == self._source.digest:
                self._source = now
                return
        raise DataError(f"{self.path}: has changed since it was opened; start again to index it anew")

    def _load(self) -> TableT:
        for place in self._places:
            with suppress(OSError, ValueError):
                return self._map(place)
        reasons = []
        for place in self._places:
            try:
                return self._build(place)
            except (OSError, ValueError) as error:
                reasons.append(f"{place}: {getattr(error, 'strerror', error)}")
        if reasons:
            logger.warning(
                "%s: its index cannot be kept (%s); every process that opens it makes its own",
                self.path,
                "; ".join(reasons),
            )
        return self._scan()

    def _map(self, place: str) -> TableT:
        table = self._table_type.map(place, self._source)
        self._mapped = True
        return table

    def _build(self, place: str) -> TableT:
        """Makes an index file, unless another process makes it first, and maps it."""
        os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
        with _alone(place):
            try:
                return self._map(place)
            except FileNotFoundError:
                reason = "is not there yet"
            except ValueError as error:
                reason = str(error)
            logger.info("%s: %s; indexing %s", place, reason, self.path)
            table = self._scan()
            replace_file(Path(place), lambda path: table.write(path, self._source))
        return self._map(place)

    def _scan(self) -> TableT:
        self._mapped = False
        try:
            with open(self.path, "rb") as file:
                table = self._make(file)
                self._check(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        return table
