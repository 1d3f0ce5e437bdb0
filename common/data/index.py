"""Where the lines of a text file begin: memory does not grow with the file, and a large file is read through once.

Of 32 lines only the first has its place noted, 0.5 bytes per line. Places of large files lie in an index file that
all processes map into their memory. Layout, numbers little-endian, 64 bits:

    magic     16 bytes
    digest    16 bytes, of all that follows
    head      lines per place; size, time in ns and digest (16 bytes) of the source; lines, blank lines
    starts    where every 32nd line begins, and the end of the file
    numbers   the physical numbers of these lines, from 1
"""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import os
import struct
import sys
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import RawIOBase
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from common.errors import DataError
from common.files import replace_file

logger = logging.getLogger(__name__)

EVERY = 32
IN_MEMORY_BELOW = 16 * 2**20
CHUNK_BYTES = 4 * 2**20
SECONDS_PER_LINE = 10.0

_KIND = b"VL-BERT lines"
_MAGIC = _KIND + b" 01"
_HEAD = struct.Struct("<3q16s2q")
_TABLE = 2 * 16 + _HEAD.size
_SAMPLES, _SAMPLE_BYTES = 64, 2**18
_NEWLINE = ord("\n")
_SPACE = np.array([bytes([value]).isspace() for value in range(256)])


def _digest(*parts: bytes | memoryview) -> bytes:
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        result.update(part)
    return result.digest()


class Source(NamedTuple):
    """What tells one state of a file from another.

    Attributes:
        size: in bytes.
        modified: time of the last change, in ns.
        digest: of up to 64 blocks of 256 KB over the whole file; of all of it up to 16 MB.
    """

    size: int
    modified: int
    digest: bytes = b""

    @classmethod
    def of(cls, descriptor: int) -> Source:
        """Returns the state of an open file, without digest."""
        found = os.fstat(descriptor)
        return cls(found.st_size, found.st_mtime_ns)

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


@dataclass(frozen=True)
class LineTable:
    """Where lines begin. A line ends with a line feed or the file; one of ASCII whitespace alone is blank.

    Attributes:
        count: lines that are not blank.
        blank: blank lines.
        starts: (n + 1,) int64 where every 32nd line that is not blank begins, then the size of the file.
        numbers: (n,) int64 the physical number of these lines, from 1.
        mapped: whether the arrays lie in an index file.
    """

    count: int
    blank: int
    starts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    mapped: bool = False

    def write(self, path: Path, source: Source) -> None:
        """Writes an index file of a source in this state."""
        head = _HEAD.pack(EVERY, source.size, source.modified, source.digest, self.count, self.blank)
        rest = head + np.concatenate([self.starts, self.numbers]).astype("<i8").tobytes()
        path.write_bytes(_MAGIC + _digest(rest) + rest)

    @classmethod
    def map(cls, path: str, source: Source) -> LineTable:
        """Maps an index file of a source in this state.

        Raises:
            OSError: the file cannot be read, or is something else.
            ValueError: it is of no use; the message says why.
        """
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < _TABLE:
                raise ValueError("is damaged")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, digest, rest = data[:16], data[16:32], memoryview(data)[32:]
        if not magic.startswith(_KIND) and any(magic):
            raise FileExistsError(errno.EEXIST, "is a file of another kind")
        every, size, modified, sampled, count, blank = _HEAD.unpack_from(rest)
        if magic == _MAGIC and Source(size, modified, sampled) != source:
            raise ValueError("is of another state of that file")
        if magic != _MAGIC or every != EVERY or _digest(rest) != digest:
            raise ValueError("is damaged")
        starts, numbers = np.split(np.frombuffer(data, "<i8", offset=_TABLE), [-(-count // EVERY) + 1])
        return cls(count, blank, starts, numbers, mapped=True)


def scan_lines(
    file: RawIOBase, progress: Callable[[int], object], chunk_bytes: int = CHUNK_BYTES
) -> LineTable:
    """Reads a file through and notes where its lines begin.

    Args:
        file: opened in bytes, without a buffer, at its begin.
        progress: is told the number of bytes of every chunk.
        chunk_bytes: what is read at once; lines may be longer.
    """
    starts: list[NDArray[np.int64]] = []
    numbers: list[NDArray[np.int64]] = []
    # Of the line that is open where a chunk ends: where it began, and whether it was blank so far.
    start, blank = 0, True
    size = lines = count = 0
    buffer = bytearray(chunk_bytes + 1)
    while read := file.readinto(memoryview(buffer)[:chunk_bytes]):
        begins, blanks = _pieces(buffer, read)
        begins += size
        begins[0], blanks[0] = start, blanks[0] and blank
        kept = np.flatnonzero(~blanks[:-1])
        noted = kept[-count % EVERY :: EVERY]
        starts.append(begins[noted])
        numbers.append(noted + lines + 1)
        start, blank = int(begins[-1]), bool(blanks[-1])
        size, lines, count = size + read, lines + len(blanks) - 1, count + len(kept)
        progress(read)
    if not blank:
        if count % EVERY == 0:
            starts.append(np.array([start]))
            numbers.append(np.array([lines + 1]))
        count += 1
    num_blank = lines + (start < size) - count
    none = np.empty(0, np.int64)
    return LineTable(count, num_blank, np.concatenate([*starts, [size]]), np.concatenate([none, *numbers]))


def _pieces(buffer: bytearray, size: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Cuts `size` bytes after every line feed: where the pieces begin, the last one open, and which are blank."""
    buffer[size] = _NEWLINE
    values = np.frombuffer(buffer, np.uint8, size + 1)
    ends = np.flatnonzero(values == _NEWLINE)
    begins = np.concatenate([[0], ends[:-1] + 1])
    blanks = _SPACE[values[begins]]
    for piece in np.flatnonzero(blanks & (begins < ends)):
        blanks[piece] = not buffer[begins[piece] : ends[piece]].strip()
    return begins, blanks


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


@contextmanager
def _progress(path: str, size: int) -> Iterator[Callable[[int], object]]:
    """Yields what to tell of every chunk: a bar on a terminal, else a line now and then."""
    if sys.stderr.isatty():
        with tqdm(total=size, desc=path, unit="B", unit_scale=True, delay=1, leave=False) as bar:
            yield bar.update
        return
    told, done = time.monotonic(), 0

    def update(count: int) -> None:
        nonlocal told, done
        done += count
        if time.monotonic() - told >= SECONDS_PER_LINE:
            told = time.monotonic()
            logger.info("%s: %d of %d MB", path, done // 10**6, size // 10**6)

    yield update


class LineIndex:
    """The lines of a file in UTF-8 that are not blank (ASCII whitespace alone), read when asked for.

    The first process that opens a large file writes an index beside it, `{path}.index`, or where it cannot,
    `{cache}/{name}-{digest of the path}.index`; all others map that. It is made anew when the file has changed.
    Where neither can be written, each process that opens the file keeps the places in memory. Can be pickled, and
    used after a fork: every process opens the file for itself and reads at positions, not from one to the next.

    Args:
        path: the file. It must not change as long as this object is in use.
        cache: folder for index files; empty for none.
        expected: what the file should be, for messages.
        in_memory_below: smaller files, in bytes, are read through at once and get no index file.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(
        self,
        path: str,
        cache: str = "",
        *,
        expected: str = "a text file",
        in_memory_below: int = IN_MEMORY_BELOW,
    ) -> None:
        self.path = path
        self._opened: tuple[int, int] | None = None  # process, descriptor
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
        table = None if self._table.mapped else self._table
        return {**self.__dict__, "_opened": None, "_table": table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table = self._table or self._load()

    def __len__(self) -> int:
        return self._table.count

    @property
    def blank(self) -> int:
        """How many lines are blank, and left out."""
        return self._table.blank

    def line(self, index: int) -> bytes:
        """Returns a line without its line feed.

        Raises:
            DataError: the file cannot be read any more, or has changed since it was opened.
        """
        place = range(len(self))[index]
        return self._block(place // EVERY)[place % EVERY][1]

    def number(self, index: int) -> int:
        """Returns the physical number of a line, from 1."""
        place = range(len(self))[index]
        block = place // EVERY
        return int(self._table.numbers[block]) + self._block(block)[place % EVERY][0]

    def __iter__(self) -> Iterator[bytes]:
        for block in range(len(self._table.numbers)):
            for _, line in self._block(block):
                yield line

    def _block(self, block: int) -> list[tuple[int, bytes]]:
        """Reads up to 32 lines; with each, how many lines of any kind stand before it in the block."""
        start, end = self._table.starts[block : block + 2].tolist()
        try:
            descriptor = self._descriptor()
            data = os.pread(descriptor, end - start, start)
            self._check(descriptor)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        return [(place, line) for place, line in enumerate(data.split(b"\n")) if line.strip()]

    def _descriptor(self) -> int:
        if self._opened is None or self._opened[0] != os.getpid():
            descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, descriptor)
            self._opened = os.getpid(), descriptor
        return self._opened[1]

    def _check(self, descriptor: int) -> None:
        # At every reading: the file may be written to in place, and this costs less than a microsecond.
        now = Source.of(descriptor)
        if now[:2] == self._source[:2]:
            return
        if now.is_known_whole and now.sampled(descriptor) == self._source._replace(modified=now.modified):
            self._source = now._replace(digest=self._source.digest)  # touched, or written again as it was
            return
        raise DataError(f"{self.path}: has changed since it was opened; start again to index it anew")

    def _load(self) -> LineTable:
        for place in self._places:
            with suppress(OSError, ValueError):
                return LineTable.map(place, self._source)
        reasons = []
        for place in self._places:
            try:
                return self._build(place)
            except (OSError, ValueError) as error:
                reasons.append(f"{place}: {getattr(error, 'strerror', error)}")
        if reasons:
            logger.warning(
                "%s: its index cannot be kept (%s); every process that opens it reads it through",
                self.path,
                "; ".join(reasons),
            )
        return self._scan()

    def _build(self, place: str) -> LineTable:
        """Makes an index file, unless another process makes it first, and maps it."""
        os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
        with _alone(place):
            try:
                return LineTable.map(place, self._source)
            except FileNotFoundError:
                reason = "is not there yet"
            except ValueError as error:
                reason = str(error)
            logger.info("%s: %s; indexing %s", place, reason, self.path)
            table = self._scan()
            replace_file(Path(place), lambda path: table.write(path, self._source))
        return LineTable.map(place, self._source)

    def _scan(self) -> LineTable:
        try:
            with (
                open(self.path, "rb", buffering=0) as file,
                _progress(self.path, self._source.size) as progress,
            ):
                table = scan_lines(file, progress)
                self._check(file.fileno())
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        return table


class TextLines:
    """The lines of several text files, one after the other (data spec 1.8); see `LineIndex`.

    Args:
        paths: the files, joined with `+`.
        cache: folder for index files; empty for none.
        in_memory_below: smaller files, in bytes, get no index file.

    Raises:
        DataError: a file cannot be read, or all are empty.
    """

    def __init__(self, paths: str, cache: str = "", *, in_memory_below: int = IN_MEMORY_BELOW) -> None:
        names = paths.split("+")
        if not all(names):
            raise DataError(f'"{paths}": a name is empty; expected names of text files joined with +')
        self._files = [LineIndex(name, cache, in_memory_below=in_memory_below) for name in names]
        self._ends = list(accumulate(map(len, self._files)))
        if not len(self):
            raise DataError(f"{paths}: has no text; expected one sentence or paragraph per line")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> str:
        """Returns a line without whitespace around it; of Unicode whitespace alone, that is nothing.

        Raises:
            DataError: it is not UTF-8, or the file has changed.
        """
        file, place = self._find(index)
        try:
            return file.line(place).decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.where(index)}: expected text in UTF-8, but byte {error.start} is not ({error.reason})"
            ) from error

    def where(self, index: int) -> str:
        """Returns file and line, for messages."""
        file, place = self._find(index)
        return f"{file.path}, line {file.number(place)}"

    def _find(self, index: int) -> tuple[LineIndex, int]:
        index = range(len(self))[index]
        part = bisect_right(self._ends, index)
        return self._files[part], index - (self._ends[part] - len(self._files[part]))
