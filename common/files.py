"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Lets `fill` make a temporary file beside `path`, then puts it in place in one step.

    A kill at any moment leaves the old file or the new one.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        fill(temporary)
        # mkstemp makes files that only their owner may read.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def link_file(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`: a hard link where the file system can, else a copy."""

    def fill(temporary: Path) -> None:
        with contextlib.suppress(OSError):
            temporary.unlink()
            os.link(source, temporary)
            return
        shutil.copyfile(source, temporary)

    replace_file(target, fill)
