"""What an output was begun with: a run that continues it has to say the same.

Arguments are known by their flags; what a flag stands for is a short text, of a file its content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from common.errors import UsageError

_LARGEST_READ = 2**32  # bytes


def fingerprint(source: str | bytes | Path) -> str:
    """Returns a short text that changes with the content of a file or of bytes.

    Folders and places in archives, which may grow, stand for themselves, and so does what is not there; of a file of
    more than 4 GiB size and time are taken.
    """
    if isinstance(source, bytes):
        return blake2b(source, digest_size=8).hexdigest()
    path = Path(source)
    if not path.is_file():
        return str(path.resolve())
    status = path.stat()
    if status.st_size > _LARGEST_READ:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    result = blake2b(digest_size=8)
    with path.open("rb") as file:
        while part := file.read(2**22):
            result.update(part)
    return result.hexdigest()


def check_same_arguments(
    out: Path, begun: Mapping[str, str], now: Mapping[str, str], free: Sequence[str] = ()
) -> None:
    """Checks that a run continues what it would have begun.

    Args:
        out: what was begun.
        begun: its arguments.
        now: those of the run.
        free: flags that may differ.

    Raises:
        UsageError: others differ.
    """
    flags = dict.fromkeys([*begun, *now])
    if changed := [flag for flag in flags if begun.get(flag) != now.get(flag) and flag not in free]:
        raise UsageError(
            f"--out {out}: was begun with other arguments: {', '.join(changed)}; give the same or another --out"
        )
