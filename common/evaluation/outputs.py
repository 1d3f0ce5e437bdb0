"""Result files of evaluation and prediction."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.distributed import process_group as distributed
from common.errors import ConfigError, UsageError
from common.files import ensure_writable_dir, replace_file

logger = logging.getLogger(__name__)


def check_result_file(path: Path, flag: str, sources: Iterable[str | Path | None]) -> None:
    """Checks the result file that a flag names, before any work is done.

    Args:
        path: the file; its folder must exist.
        flag: the flag, for messages.
        sources: input files, which the result must not overwrite; None and "" are ignored.

    Raises:
        UsageError: the file is not writable or is one of the inputs.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{flag}: {path}: no such directory: {path.parent}")
    if path.is_dir():
        raise UsageError(f"{flag}: {path}: is a directory; name a file")
    if path.resolve() in [Path(source).resolve() for source in sources if source]:
        raise UsageError(f"{flag}: {path}: would overwrite an input; name another file")
    ensure_writable_dir(path.parent, flag)


def write_result(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a result file atomically, on rank 0 only.

    Args:
        path: the file.
        write: writes the content to the path that it is called with.

    Raises:
        ConfigError: the write failed.
    """
    if not distributed.is_main():
        return
    try:
        replace_file(path, write)
    except OSError as error:
        raise ConfigError(f"--result-path: {path}: not writable: {error.strerror}") from error


def write_json(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records as a JSON list with `write_result`, formatted as in the reference: ASCII, default separators.

    Numbers that are not finite, such as the accuracy over no samples, become null: JSON has no NaN.
    """
    finite = [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        for record in records
    ]
    write_result(path, lambda temporary: temporary.write_text(json.dumps(finite), encoding="ascii"))
    logger.info("result json saved to %s.", path)
