"""Records of json lines files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Generic

from pydantic import ValidationError

from common.data.storage.line_index import LineIndex
from common.data.storage.store import ModelT, _not_a_model
from common.errors import DataError

logger = logging.getLogger(__name__)


class JsonLines(Generic[ModelT]):
    """The records of a jsonl file, parsed on access; see `LineIndex`. Blank lines are skipped.

    Args:
        path: UTF-8 file with one json object per line.
        record_type: pydantic model of a line.
        cache: folder for the index of a large file whose own folder is not writable; empty for none.

    Raises:
        DataError: the file is missing or has no records.
    """

    def __init__(self, path: str, record_type: type[ModelT], cache: str = "") -> None:
        self.path = path
        self.record_type = record_type
        self._lines = LineIndex(path, cache, expected="a jsonl file")
        if not len(self):
            raise DataError(f"{path}: has no records; expected one json object per line")
        if self._lines.blank:
            logger.info("%s: skipped %d blank lines", path, self._lines.blank)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> ModelT:
        return self._parse(index, self._lines.line(index))

    def __iter__(self) -> Iterator[ModelT]:
        return (self._parse(index, line) for index, line in enumerate(self._lines))

    def _parse(self, index: int, line: bytes) -> ModelT:
        try:
            return self.record_type.model_validate_json(line)
        except ValidationError as error:
            raise _not_a_model(error, line, self.where(index)) from error

    def where(self, index: int) -> str:
        """Returns file and line of a record, for messages."""
        return f"{self.path}, line {self._lines.number(index)}"
