"""Where the lines of a text file begin: memory does not grow with the file, and a large file is read through once.

Of 32 lines only the first has its place noted, 0.5 bytes per line, in an index file (see `IndexedFile`) of these words:

    head      lines per place, lines, blank lines
    starts    where every 32nd line begins, and the end of the file
    numbers   the physical numbers of these lines, from 1
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader, RawIOBase
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from common.data.storage.mapped_index import IndexedFile, Table
from common.errors import DataError
from common.progress import Progress

EVERY = 32


IN_MEMORY_BELOW = 16 * 2**20


CHUNK_BYTES = 4 * 2**20


_NEWLINE = ord("\n")


_SPACES = [chr(code).encode() for code in range(0x3001) if chr(code).isspace()]


_CUT_SPACES = {space[:size] for space in _SPACES for size in range(1, len(space))}


_MAY_BEGIN_SPACE = np.zeros((256, 256), np.bool_)  # the first two bytes of a line


for _first, *_rest in _SPACES:
    _MAY_BEGIN_SPACE[_first, _rest[0] if _rest else slice(None)] = True


_MAY_BEGIN_BLANK: NDArray[np.bool_] = np.logical_or.reduce(_MAY_BEGIN_SPACE, axis=1)


@dataclass(frozen=True)
class LineTable(Table):
    """Where lines begin. A line ends with a line feed or the file; one of whitespace alone is blank.

    Attributes:
        count: lines that are not blank.
        blank: blank lines.
        starts: (n + 1,) int64 where every 32nd line that is not blank begins, then the size of the file.
        numbers: (n,) int64 the physical number of these lines, from 1.
    """

    magic = b"VL-BERT lines 02"

    count: int
    blank: int
    starts: NDArray[np.int64]
    numbers: NDArray[np.int64]

    def to_words(self) -> NDArray[np.int64]:
        """Returns it as (n,) int64."""
        return np.concatenate([[EVERY, self.count, self.blank], self.starts, self.numbers])

    @classmethod
    def from_words(cls, words: NDArray[np.int64]) -> Self:
        """Reads `to_words`; raises ValueError where places lie at other distances."""
        every, count, blank = words[:3].tolist()
        if every != EVERY:
            raise ValueError("is damaged")
        starts, numbers = np.split(words[3:], [-(-count // EVERY) + 1])
        return cls(count, blank, starts, numbers)


def scan_lines(
    file: RawIOBase | BufferedIOBase, progress: Callable[[int], object], chunk_bytes: int = CHUNK_BYTES
) -> LineTable:
    """Reads a file through and notes where its lines begin.

    Args:
        file: opened in bytes, at its begin.
        progress: called with the number of bytes of every chunk.
        chunk_bytes: what is read at once; lines may be longer.
    """
    starts: list[NDArray[np.int64]] = []
    numbers: list[NDArray[np.int64]] = []
    # Of the line that is open where a chunk ends: where it began, and whether it was blank so far, but for the bytes
    # of a space that the chunk cuts.
    start, blank, cut = 0, True, b""
    size = lines = count = 0
    buffer = bytearray(chunk_bytes + 4)
    while read := file.readinto(memoryview(buffer)[len(cut) : len(cut) + chunk_bytes]):
        buffer[: len(cut)] = cut
        end = len(cut) + read
        tails = (bytes(buffer[max(end - length, 0) : end]) for length in (2, 1))
        cut = next((tail for tail in tails if tail in _CUT_SPACES), b"")
        used = end - len(cut)
        begins, is_blank = _pieces(buffer, used)
        begins += size
        begins[0], is_blank[0] = start, is_blank[0] and blank
        kept = np.flatnonzero(~is_blank[:-1])
        noted = kept[-count % EVERY :: EVERY]
        starts.append(begins[noted])
        numbers.append(noted + lines + 1)
        start, blank = int(begins[-1]), bool(is_blank[-1])
        size, lines, count = size + used, lines + len(is_blank) - 1, count + len(kept)
        progress(read)
    size += len(cut)
    if cut or not blank:
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
    is_blank = _MAY_BEGIN_BLANK[values[begins]]
    doubtful = np.flatnonzero(is_blank & (begins < ends))
    places = begins[doubtful]
    is_blank[doubtful] = sure = _MAY_BEGIN_SPACE[values[places], values[places + 1]]
    for piece in doubtful[sure]:
        is_blank[piece] = _is_blank(buffer[begins[piece] : ends[piece]])
    return begins, is_blank


def _is_blank(line: bytes | bytearray) -> bool:
    return not line.decode(errors="replace").strip()


class LineIndex(IndexedFile[LineTable]):
    """The lines of a file in UTF-8 that are not blank (whitespace alone), read when asked for.

    Args:
        path: the file. It must not change as long as this object is in use.
        cache: folder for index files; empty for none.
        expected: what the file should be, for messages.
        in_memory_below: smaller files, in bytes, are read through at once and get no index file.

    Raises:
        DataError: the file cannot be read.
    """

    _table_type = LineTable

    def __init__(
        self,
        path: str,
        cache: str = "",
        *,
        expected: str = "a text file",
        in_memory_below: int = IN_MEMORY_BELOW,
    ) -> None:
        super().__init__(path, cache, expected=expected, in_memory_below=in_memory_below)

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
        """Reads up to 32 lines, each with the number of lines before it in the block."""
        start, end = self._table.starts[block : block + 2].tolist()
        try:
            descriptor = self._descriptor()
            data = os.pread(descriptor, end - start, start)
            self._check(descriptor)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
        return [(place, line) for place, line in enumerate(data.split(b"\n")) if not _is_blank(line)]

    def _make(self, file: BufferedReader) -> LineTable:
        with Progress(self._source.size, self.path, "B", delay=1) as progress:
            return scan_lines(file, progress.update)


class TextLines:
    """The lines of several text files, one after the other; see `LineIndex`.

    Args:
        paths: the files, joined with `+`; no name is empty.
        cache: folder for index files; empty for none.
        in_memory_below: smaller files, in bytes, get no index file.

    Raises:
        DataError: a file cannot be read, or all are empty.
    """

    def __init__(self, paths: str, cache: str = "", *, in_memory_below: int = IN_MEMORY_BELOW) -> None:
        self._files = [LineIndex(name, cache, in_memory_below=in_memory_below) for name in paths.split("+")]
        self._ends = list(accumulate(map(len, self._files)))
        if not len(self):
            raise DataError(f"{paths}: has no text; expected one sentence or paragraph per line")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> str:
        """Returns a line without whitespace around it.

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
