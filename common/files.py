"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path


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
