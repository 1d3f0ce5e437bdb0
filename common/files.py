"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError


@contextlib.contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """Says of an error of writing which file or folder it concerns, and `hint`.

    Raises:
        DataError: the disk does not take it.
    """
    try:
        yield
    except OSError as error:
        # numpy says how much it wrote, and no reason.
        raise DataError(f"{path}: cannot be written ({error.strerror or error}){hint}") from error


def replace_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Lets `fill` make a temporary file beside `path`, then puts it in place in one step.

    A kill or a power failure at any moment leaves the old file or the new one. What a kill left of the temporary
    file goes with `remove_leftovers`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fill(temporary)
        _flush(temporary)
        temporary.replace(path)
        with contextlib.suppress(OSError):  # not every file system can flush a folder
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Writes an array in NumPy's format, under this very name.

    Raises:
        OSError: the disk does not take it.
    """
    content = BytesIO()  # numpy.save does not hear of a full disk, and appends .npy to a name
    np.save(content, values)
    path.write_bytes(content.getbuffer())


def link_file(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`: a hard link where the file system can, else a copy."""

    def fill(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)

    replace_file(target, fill)


def remove_leftovers(folder: Path, names: str) -> None:
    """Removes the temporary files that killed processes left for files of such names, a glob pattern."""
    for path in folder.glob(f".{names}.*.tmp"):
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Waits until a file or the entries of a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
