"""Bytes, pictures and json from plain files or from zip archives (`x.zip@/inner/path`)."""

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
    """Splits at the first `.zip@` into archive and member (data spec 1.2); None for a plain path."""
    archive, mark, member = path.partition(_ZIP_MARK)
    return (f"{archive}.zip", member.strip("/")) if mark else None


def without_mark(data: bytes) -> bytes:
    """Returns text in UTF-8 without the byte order mark that some editors write before it."""
    return data.removeprefix(codecs.BOM_UTF8)


def parse_json(data: bytes, where: str) -> Any:
    """Parses UTF-8 json; `where` names the source in the message of the `DataError`."""
    try:
        return orjson.loads(without_mark(data))
    except orjson.JSONDecodeError as error:
        found = str(error) if data.strip() else "it is empty"
        raise DataError(f"{where}: expected json in UTF-8, but {found}") from error


def parse_model(model: type[ModelT], data: bytes, where: str) -> ModelT:
    """Parses json into a model; `where` names the source in the message of the `DataError`."""
    try:
        return model.model_validate_json(without_mark(data))
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
    # Converting RGB to RGB would copy: half of the time that decoding takes.
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _clear_errors(path: str) -> Iterator[None]:
    """Says of an error of reading which path it concerns."""
    if "\0" in path:
        raise DataError(f"{path!r}: no path can hold a NUL character")
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # zipfile, zlib and lzma raise many kinds
        raise DataError(f"{path}: the archive is damaged ({error}); copy or download it again") from error


def files_in(place: str, suffixes: Collection[str]) -> list[tuple[str, str]]:
    """Returns name below a place and path of files with one of these endings, in the order of the paths.

    A name has / between its parts. What begins with a dot is left out, and `__MACOSX`, which archives of a Mac hold.

    Args:
        place: folder, or place in an archive; everything below it counts.
        suffixes: endings with their dot, in lower case.

    Raises:
        DataError: the place cannot be read, or a name leads out of it.
    """
    with _clear_errors(place):
        found = sorted(set(_members(place) if split_archive(place) else _files(place)))
    wanted = []
    for path, text in found:
        name = PurePosixPath(text)
        if name.suffix.lower() not in suffixes:
            continue
        if ".." in name.parts:
            raise DataError(f"{path}: its name leads out of the archive; pack it again")
        if not any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
            wanted.append((str(name), path))
    return wanted


def _members(place: str) -> Iterator[tuple[str, str]]:
    """Yields path and name of every member below a place in an archive."""
    archive, inner = split_archive(place) or (place, "")
    start = f"{inner}/" if inner else ""
    with zipfile.ZipFile(archive) as file:
        for member in file.namelist():
            # Some Windows programs write \ between the parts of a name.
            name = member.replace("\\", "/")
            if name.startswith(start) and not name.endswith("/"):
                yield f"{archive}@/{member}", name.removeprefix(start).lstrip("/")


def _files(place: str) -> Iterator[tuple[str, str]]:
    """Yields path and name of every file below a folder; links are followed."""
    for folder, inner, names in os.walk(place, followlinks=True, onerror=_raise):
        here = Path(folder).resolve()
        inner[:] = [name for name in inner if (here / name).resolve() not in (here, *here.parents)]
        for name in names:
            path = os.path.join(folder, name)
            yield path, os.path.relpath(path, place)


def _raise(error: OSError) -> None:
    raise error


class Store:
    """Reads from folders and zip archives; of large archives an index is made when they are first opened.

    Archives stay open, and are left behind when the store is pickled.

    Args:
        places: folders, and places in archives (`x.zip@/inner`), that must be there, checked now.
        cache: folder for indexes that cannot lie beside their archives; empty for none.

    Raises:
        DataError: a place is missing, or its archive is damaged.
    """

    def __init__(self, places: Iterable[str] = (), cache: str = "") -> None:
        self._cache = cache
        self._archives: dict[str, Archive] = {}
        for place in places:
            self.check(place)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archives": {}}

    def check(self, place: str) -> None:
        """Checks that a folder or a place in an archive is there, and opens the archive.

        Raises:
            DataError: it is missing, or the archive is damaged.
        """
        parts = split_archive(place)
        if parts is None:
            if not os.path.isdir(place):
                found = (
                    "a file; expected a folder or a zip archive"
                    if os.path.exists(place)
                    else "no such folder"
                )
                raise DataError(f"{place}: {found}")
            return
        archive, _ = parts
        if not os.path.isfile(archive):
            raise DataError(f"{archive}: no such file; expected a zip archive")
        if not zipfile.is_zipfile(archive):
            raise DataError(f"{archive}: not a complete zip archive; copy or download it again")
        with _clear_errors(archive):
            self._archive(archive)

    def read(self, path: str) -> bytes:
        """Returns the content of a file or archive member.

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
        """Returns the content of a file or archive member; None where there is none.

        Raises:
            DataError: it cannot be read.
        """
        parts = split_archive(path)
        with _clear_errors(path), suppress(FileNotFoundError, KeyError):
            return Path(path).read_bytes() if parts is None else self._archive(parts[0]).read(parts[1])
        return None

    def json(self, path: str) -> Any:
        """Returns the parsed content of a json file in UTF-8."""
        return parse_json(self.read(path), path)

    def image(self, path: str) -> Image.Image:
        """Returns a picture as RGB, completely decoded, as it is stored."""
        return self.picture(path, _as_rgb)

    def image_size(self, path: str) -> tuple[int, int]:
        """Returns width and height of a picture without decoding it."""
        return self.picture(path, lambda image: image.size)

    def picture(self, path: str, take: Callable[[Image.Image], T]) -> T:
        """Opens a picture and returns what `take` makes of it while it is open.

        Raises:
            DataError: the file is missing, not a readable image, or has too many pixels.
        """
        data = self.read(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of large pictures and of damaged EXIF data
                with Image.open(BytesIO(data)) as image:
                    return take(image)
        except Image.DecompressionBombError as error:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise DataError(f"{path}: too large; a picture may have {limit:,} pixels at most") from error
        except UnidentifiedImageError as error:
            found = "of no known format" if data else "the file is empty"
            raise DataError(f"{path}: not a readable image ({found})") from error
        except Exception as error:  # Pillow's decoders raise many kinds
            raise DataError(f"{path}: not a readable image ({error})") from error

    def _archive(self, archive: str) -> Archive:
        if archive not in self._archives:
            self._archives[archive] = open_archive(archive, self._cache)
        return self._archives[archive]
