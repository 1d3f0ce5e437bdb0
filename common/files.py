"""Atomic writes, writable folders, and messages for failed writes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, DataError


def ensure_writable_dir(path: str | Path, key: str, hint: str = "") -> Path:
    """Creates a folder, with its parents, and checks that files can be written to it.

    Args:
        path: the folder.
        key: config key or flag that names the folder, for the message.
        hint: end of the message.

    Raises:
        ConfigError: the folder is not writable.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell: root may write anywhere but on a read-only or full file system.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{key}: {folder}: not writable: {error.strerror}{hint}") from error
    return folder


@contextlib.contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """Turns an `OSError` into a message that names the file or folder `path` and ends with `hint`.

    Raises:
        DataError: the code inside failed to write.
    """
    try:
        yield
    except OSError as error:
        # NumPy's errors have no `strerror`.
        raise DataError(f"{path}: cannot be written ({error.strerror or error}){hint}") from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file atomically: `write` fills a temporary file beside `path`, which then replaces `path`.

    A kill or a power failure leaves either the old file or the new one. It may also leave the temporary file, which
    `remove_leftovers` removes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        # The content must be on disk before the name, and the name before anything that relies on it.
        _fsync(temporary)
        temporary.replace(path)
        with contextlib.suppress(OSError):  # not every file system can flush a folder
            _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Saves an array as `.npy` under exactly this name.

    Raises:
        OSError: the write failed.
    """
    # np.save to a path appends .npy to the name; to a file, it does not notice a full disk.
    content = BytesIO()
    np.save(content, values)
    path.write_bytes(content.getbuffer())


def link_file(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a copy where the file system has no hard links. Atomic."""

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)

    replace_file(target, write)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes the temporary files that killed processes left for files whose names match a glob pattern."""
    for path in folder.glob(f".{pattern}.*.tmp"):
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
