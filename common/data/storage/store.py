"""Reads bytes, images and json from files or zip archives (`x.zip@/inner/path`)."""

from __future__ import annotations

import codecs
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import orjson
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ValidationError

from common.data.storage.zip_archive import Archive, open_archive
from common.errors import DataError

logger = logging.getLogger(__name__)


T = TypeVar("T")


ModelT = TypeVar("ModelT", bound=BaseModel)


_ZIP_MARK = ".zip@"


def split_archive(path: str) -> tuple[str, str] | None:
    """Splits a path at the first `.zip@` into archive and member; None for a plain path."""
    archive, mark, member = path.partition(_ZIP_MARK)
    return (f"{archive}.zip", member.strip("/")) if mark else None


def parse_json(data: bytes, where: str) -> Any:
    """Parses UTF-8 json. `where` is the source, for messages."""
    try:
        return orjson.loads(data.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        found = str(error) if data.strip() else "it is empty"
        raise DataError(f"{where}: expected json in UTF-8, but {found}") from error


def parse_model(model: type[ModelT], data: bytes, where: str) -> ModelT:
    """Parses json into a pydantic model. `where` is the source, for messages."""
    try:
        return model.model_validate_json(data.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise _not_a_model(error, data, where) from error


def _not_a_model(error: ValidationError, data: bytes, where: str) -> DataError:
    if not data.strip():
        return DataError(f"{where}: expected json, but it is empty")
    problems = (
        ": ".join(filter(None, [".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")]))
        for one in error.errors(include_url=False)[:3]
    )
    return DataError(f"{where}: {'; '.join(problems)}")


def _as_rgb(image: Image.Image) -> Image.Image:
    image.load()
    # Converting RGB to RGB would copy the image, half of the time that decoding takes.
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _clear_errors(path: str) -> Iterator[None]:
    """Adds the path to errors of reading."""
    if "\0" in path:
        raise DataError(f"{path!r}: no path can hold a NUL character")
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # zipfile, zlib and lzma raise many exceptions
        raise DataError(f"{path}: the archive is damaged ({error}); copy or download it again") from error


def files_in(root: str, suffixes: Collection[str]) -> list[tuple[str, str]]:
    """Lists files with one of these suffixes, sorted by path.

    Files and folders that start with a dot are skipped, and `__MACOSX`, which macOS adds to archives.

    Args:
        root: folder, or location in an archive; searched recursively.
        suffixes: suffixes with dot, in lower case.

    Returns:
        Pairs of name relative to the root, with / between its parts, and path.

    Raises:
        DataError: the root cannot be read, or a name leaves it.
    """
    with _clear_errors(root):
        found = sorted(set(_members(root) if split_archive(root) else _files(root)))
    wanted = []
    for path, text in found:
        name = PurePosixPath(text)
        if name.suffix.lower() not in suffixes:
            continue
        if ".." in name.parts:
            raise DataError(f"{path}: its name leaves the archive; pack it again")
        if not any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
            wanted.append((str(name), path))
    return wanted


def _members(root: str) -> Iterator[tuple[str, str]]:
    """Yields path and relative name of every member below a location in an archive."""
    archive, inner = split_archive(root) or (root, "")
    start = f"{inner}/" if inner else ""
    with zipfile.ZipFile(archive) as file:
        for member in file.namelist():
            # Some Windows programs separate the parts of a name with \.
            name = member.replace("\\", "/")
            if name.startswith(start) and not name.endswith("/"):
                yield f"{archive}@/{member}", name.removeprefix(start).lstrip("/")


def _files(root: str) -> Iterator[tuple[str, str]]:
    """Yields path and relative name of every file below a folder. Links are followed."""
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_raise):
        here = Path(folder).resolve()
        inner[:] = [name for name in inner if (here / name).resolve() not in (here, *here.parents)]
        for name in names:
            path = os.path.join(folder, name)
            yield path, os.path.relpath(path, root)


def _raise(error: OSError) -> None:
    raise error


class Store:
    """Reads files from folders and zip archives. Large archives are indexed when they are first opened.

    Archives stay open; they are reopened when the store is unpickled.

    Args:
        roots: folders, and locations in archives (`x.zip@/inner`), whose existence is checked at once.
        cache: folder for indexes of archives whose own folder is not writable; empty for none.

    Raises:
        DataError: a root is missing, or its archive is damaged.
    """

    def __init__(self, roots: Iterable[str] = (), cache: str = "") -> None:
        self._cache = cache
        self._archives: dict[str, Archive] = {}
        for root in roots:
            self.check(root)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archives": {}}

    def check(self, root: str) -> None:
        """Checks that a folder or location in an archive exists, and opens the archive.

        Raises:
            DataError: it is missing, or the archive is damaged.
        """
        parts = split_archive(root)
        if parts is None:
            if not os.path.isdir(root):
                found = (
                    "a file; expected a folder or a zip archive" if os.path.exists(root) else "no such folder"
                )
                raise DataError(f"{root}: {found}")
            return
        archive, _ = parts
        if not os.path.isfile(archive):
            raise DataError(f"{archive}: no such file; expected a zip archive")
        if not zipfile.is_zipfile(archive):
            raise DataError(f"{archive}: not a complete zip archive; copy or download it again")
        with _clear_errors(archive):
            self._archive(archive)

    def read(self, path: str) -> bytes:
        """Reads a file or archive member.

        Raises:
            DataError: it is missing or cannot be read.
        """
        parts = split_archive(path)
        with _clear_errors(path):
            if parts is None:
                return Path(path).read_bytes()
            archive, member = parts
            try:
                return self._archive(archive).read(member)
            except KeyError as error:
                raise DataError(f"{archive}: the archive has no member {member}") from error

    def read_if_there(self, path: str) -> bytes | None:
        """Reads a file or archive member; None if it is missing.

        Raises:
            DataError: it cannot be read.
        """
        parts = split_archive(path)
        with _clear_errors(path), suppress(FileNotFoundError, KeyError):
            return Path(path).read_bytes() if parts is None else self._archive(parts[0]).read(parts[1])
        return None

    def json(self, path: str) -> Any:
        return parse_json(self.read(path), path)

    def image(self, path: str) -> Image.Image:
        """Reads an image as decoded RGB, without applying EXIF data."""
        return self.open_image(path, _as_rgb)

    def image_size(self, path: str) -> tuple[int, int]:
        """Reads width and height of an image without decoding it."""
        return self.open_image(path, lambda image: image.size)

    def open_image(self, path: str, take: Callable[[Image.Image], T]) -> T:
        """Opens an image and returns the result of `take`.

        Raises:
            DataError: the file is missing, not a readable image, or too large.
        """
        data = self.read(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about large images and damaged EXIF data
                with Image.open(BytesIO(data)) as image:
                    return take(image)
        except Image.DecompressionBombError as error:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise DataError(f"{path}: too large; an image may have {limit:,} pixels at most") from error
        except UnidentifiedImageError as error:
            found = "of no known format" if data else "the file is empty"
            raise DataError(f"{path}: not a readable image ({found})") from error
        except Exception as error:  # Pillow's decoders raise many exceptions
            raise DataError(f"{path}: not a readable image ({error})") from error

    def _archive(self, archive: str) -> Archive:
        if archive not in self._archives:
            self._archives[archive] = open_archive(archive, self._cache)
        return self._archives[archive]
