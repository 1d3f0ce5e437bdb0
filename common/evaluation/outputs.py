"""What every `val.py` and `test.py` shares: device, number format, result folder and result files."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.distributed import process_group as distributed
from common.errors import ConfigError, UsageError
from common.files import replace_file

logger = logging.getLogger(__name__)


def ensure_writable_dir(path: str | Path, flag: str = "--result-path") -> Path:
    """Makes the folder that a flag names.

    Raises:
        ConfigError: nothing can be written there.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{flag}: {folder}: cannot write there: {error.strerror}") from error
    return folder


def check_result_file(path: Path, flag: str, sources: Iterable[str | Path | None]) -> None:
    """Checks the file that a flag names, before anything is read.

    Args:
        path: the file; its folder must be there.
        flag: for messages.
        sources: what the result is made from; empty ones are none.

    Raises:
        UsageError: nothing can be written there, or it is one of the sources.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{flag}: {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{flag}: {path}: is a folder; name a file")
    if path.resolve() in [Path(source).resolve() for source in sources if source]:
        raise UsageError(f"{flag}: {path}: would overwrite what it is made from; name another file")
    ensure_writable_dir(path.parent, flag)


def write_result(path: Path, fill: Callable[[Path], object]) -> None:
    """Lets one process fill a result file, which appears whole or not at all.

    Raises:
        ConfigError: the folder or disk does not take it.
    """
    if not distributed.is_main():
        return
    try:
        replace_file(path, fill)
    except OSError as error:
        raise ConfigError(f"--result-path: {path}: cannot write there: {error.strerror}") from error


def write_json(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records as a json list (`write_result`), in the spelling of the reference: blanks, and ASCII only.

    A number that is not finite, such as a metric of nothing, becomes null.
    """
    known = [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        for record in records
    ]
    write_result(path, lambda temporary: temporary.write_text(json.dumps(known), encoding="ascii"))
    logger.info("result json saved to %s.", path)
