"""Output folders of region files that an interrupted run can continue."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import orjson
from filelock import FileLock, Timeout

from common.data.storage.store import files_in, parse_json
from common.errors import UsageError
from common.files import remove_leftovers, replace_file, writing
from common.provenance import check_same_arguments

logger = logging.getLogger(__name__)

RESUME_HINT = "; once it can, rerun the same command to resume"
ARGUMENTS_FILE = ".arguments"
"""Holds the arguments of all files in the folder, by the root of their images."""
LOCK_FILE = ".lock"


@contextmanager
def resumable_folder(
    folder: Path, names: Collection[str], root: str, arguments: Mapping[str, str]
) -> Iterator[set[str]]:
    """Creates and locks a folder of region files, and checks that earlier files had the same arguments.

    Images of several roots may share a folder, with boxes from different sources.

    Args:
        folder: output folder; files may be in subfolders.
        names: names of the images, with / between the parts.
        root: root of the images.
        arguments: arguments of the run, by flag.

    Yields:
        Names of the images that are done.

    Raises:
        UsageError: another process is writing to the folder, or it was started with other arguments.
        DataError: the folder is not writable.
    """
    with writing(folder, RESUME_HINT):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(f"--out {folder}: another process is writing to it") from error
    try:
        with writing(folder, RESUME_HINT):
            for subfolder in {(folder / name).parent for name in names}:
                remove_leftovers(subfolder, "*")
            written = {name.removesuffix(".json") for name, _ in files_in(str(folder), [".json"])}
        done = written & set(names)
        root = os.path.abspath(root)
        path = folder / ARGUMENTS_FILE
        saved = parse_json(path.read_bytes(), str(path)) if path.is_file() else {}
        if done and root in saved:
            check_same_arguments(folder, saved[root], arguments)
        elif done and saved:
            raise UsageError(
                f"--out {folder}: already holds {min(done)} of the images in {' or '.join(saved)}; use another --out"
            )
        elif done:
            logger.warning("%s: the arguments of its files are unknown; they are kept", folder)
        for other in saved.keys() - {root}:
            check_same_arguments(folder, saved[other], arguments, ignore=["--boxes"])
        with writing(path, RESUME_HINT):
            content = orjson.dumps(saved | {root: arguments}, option=orjson.OPT_INDENT_2)
            replace_file(path, lambda temporary: temporary.write_bytes(content))
        yield done
    finally:
        lock.release()
