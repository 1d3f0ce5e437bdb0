"""Reads pickles of plain values without running code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from common.errors import DataError


class _Restricted(pickle.Unpickler):
    def __init__(self, data: bytes, where: str, allowed: Mapping[str, Any]) -> None:
        # Python 2 byte strings may contain any byte.
        super().__init__(BytesIO(data), encoding="latin1")
        self._where = where
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in self._allowed:
            raise DataError(
                f"{self._where}: refused: the pickle asks for {wanted}; expected plain lists, dicts, strings "
                "and numbers. Code in a downloaded file can do anything: get it from its source again"
            )
        return self._allowed[wanted]


def read_pickle(data: bytes, where: str, allowed: Mapping[str, Any] | None = None) -> Any:
    """Reads a pickle of dicts, lists, tuples, strings, numbers and None.

    Args:
        data: the pickle, of any protocol, including Python 2.
        where: source, for messages.
        allowed: other classes and functions that it may use, by full name.

    Raises:
        DataError: the pickle is damaged, or refers to anything else.
    """
    try:
        return _Restricted(data, where, allowed or {}).load()
    except DataError:
        raise
    except Exception as error:  # pickle raises many exceptions
        found = str(error) if data else "it is empty"
        raise DataError(f"{where}: not a readable pickle ({found}); copy or download it again") from error
