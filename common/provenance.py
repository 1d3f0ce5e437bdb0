"""Fingerprints of the arguments that an output depends on, so that only the same command can continue it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from common.errors import UsageError

_MAX_HASHED_BYTES = 2**32


def fingerprint(source: str | bytes | Path) -> str:
    """Returns a short text that changes with the content of a file or of bytes.

    Of a file of more than 4 GiB, size and modification time are used. Folders and locations in archives, which may
    grow, and missing files are represented by their path.
    """
    if isinstance(source, bytes):
        return blake2b(source, digest_size=8).hexdigest()
    path = Path(source)
    if not path.is_file():
        return str(path.resolve())
    status = path.stat()
    if status.st_size > _MAX_HASHED_BYTES:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    digest = blake2b(digest_size=8)
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def check_same_arguments(
    out: Path, saved: Mapping[str, str], current: Mapping[str, str], ignore: Sequence[str] = ()
) -> None:
    """Checks that a run has the arguments of the run that it continues.

    Args:
        out: the output.
        saved: arguments of the earlier run, by flag.
        current: arguments of this run.
        ignore: flags that may differ.

    Raises:
        UsageError: other flags differ.
    """
    flags = dict.fromkeys([*saved, *current])
    changed = [flag for flag in flags if saved.get(flag) != current.get(flag) and flag not in ignore]
    if changed:
        raise UsageError(
            f"--out {out}: was started with other arguments: {', '.join(changed)}; use the same or another --out"
        )
