"""A folder of region files, one for every picture, which a run that was stopped continues."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import orjson

from common.data.storage.store import files_in, parse_json
from common.errors import UsageError
from common.files import remove_leftovers, replace_file, writing
from common.provenance import check_same_arguments

logger = logging.getLogger(__name__)


CONTINUES = "; once it can, the same command continues"


ARGUMENTS = ".arguments"
"""Name of the file that says what the others were made with: by the place of the pictures, see `common.provenance`."""


@contextmanager
def continued(
    folder: Path, names: Collection[str], place: str, arguments: Mapping[str, str]
) -> Iterator[set[str]]:
    """Makes a folder where it is missing, and keeps others from writing it.

    Pictures of several places may have their files in one folder, with boxes from different sources.

    Args:
        folder: of the files, which may lie in folders below it.
        names: of the pictures, `/` between the parts.
        place: of the pictures.
        arguments: what the files are made with, by flags.

    Yields:
        The names of the pictures that are done.

    Raises:
        UsageError: another process writes into the folder, or it was begun with other arguments.
        DataError: the folder cannot be written.
    """
    with writing(folder, CONTINUES):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with writing(folder, CONTINUES):
            _lock(folder, descriptor)
            for inner in {(folder / name).parent for name in names}:
                remove_leftovers(inner, "*")
            found = {name.removesuffix(".json") for name, _ in files_in(str(folder), [".json"])}
        done = found & set(names)
        _agree(folder, os.path.abspath(place), arguments, done)
        yield done
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"--out {folder}: another process is writing it") from error


def _agree(folder: Path, place: str, arguments: Mapping[str, str], done: Collection[str]) -> None:
    """Compares the arguments with those of what is there, and notes them."""
    path = folder / ARGUMENTS
    known = parse_json(path.read_bytes(), str(path)) if path.is_file() else {}
    if done and place in known:
        check_same_arguments(folder, known[place], arguments)
    elif done and known:
        raise UsageError(
            f"--out {folder}: holds {min(done)} of the pictures in {' or '.join(known)}; give another --out"
        )
    elif done:
        logger.warning("%s: does not say what its files were made with; they are taken as they are", folder)
    for other in known.keys() - {place}:
        check_same_arguments(folder, known[other], arguments, free=["--boxes"])
    with writing(path, CONTINUES):
        content = orjson.dumps(known | {place: arguments}, option=orjson.OPT_INDENT_2)
        replace_file(path, lambda temporary: temporary.write_bytes(content))
