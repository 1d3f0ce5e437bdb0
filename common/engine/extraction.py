"""Region files for whole folders of pictures: found or given boxes, their features, as json or packed.

Pictures are worked on in batches that follow from their names alone, and batches by any number of processes: a run
that was stopped and started again ends with the bytes of one that was not.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias

import orjson
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.data.box_file import BoxFile, GivenBoxes, number_of
from common.data.coco import CLASS_NAMES
from common.data.found import FoundRegions, RegionFinder
from common.data.image_file import upright_rgb
from common.data.packed_regions import PackedHeader
from common.data.packed_writer import pack_record, packed_file
from common.data.region_json import Regions, region_record
from common.data.store import Store, files_in
from common.engine.pool import results_in_order
from common.engine.region_extractor import RegionExtractor
from common.errors import DataError, UsageError
from common.files import remove_leftovers, replace_file, writing
from common.progress import shown

logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


# --- What is worked on -------------------------------------------------------------------------------------


def list_pictures(place: str, *, by_number: bool = False) -> dict[str, str]:
    """Returns the path of every picture of a place by the name that its region file gets.

    Args:
        place: folder, archive, or place in an archive (`x.zip@/inner`).
        by_number: the name is the number that the file name ends in, without leading zeros; else the file name
            without its ending.

    Raises:
        DataError: the place is missing or has no picture, a file name has no number, or two have the same name.
    """
    place = f"{place}@/" if place.endswith(".zip") else place
    Store([place])
    found: dict[str, str] = {}
    for path in files_in(place, PICTURE_SUFFIXES):
        number = number_of(path) if by_number else None
        if by_number and number is None:
            raise DataError(f"{path}: its name does not end in a number, as --names number needs it")
        key = PurePosixPath(path).stem if number is None else str(number)
        if key in found:
            raise DataError(f"{path} and {found[key]} would have the same region file {key}.json; rename one")
        found[key] = path
    if not found:
        raise DataError(
            f"{place}: has no pictures; expected files {', '.join(PICTURE_SUFFIXES)} directly in it"
        )
    return found


class Task(NamedTuple):
    """A picture to work on.

    Attributes:
        key: name of its region file.
        path: its own.
        given: its boxes; a message where they cannot be used; None where a finder looks for them.
    """

    key: str
    path: str
    given: GivenBoxes | str | None


class Result(NamedTuple):
    """What became of a picture: a record for the output, or a message that says why there is none."""

    key: str
    record: bytes
    problem: str = ""


def class_scores(found: FoundRegions) -> Tensor:
    """Returns (n, 81) float32, a distribution for every region: column 0 is the background.

    A detector tells the score of the best class alone; the rest goes to the background.
    """
    scores = F.one_hot(found.classes, len(CLASS_NAMES)).float() * found.scores[:, None]
    scores[:, 0] = 1 - scores[:, 1:].sum(dim=1)
    return scores


# --- Where results go --------------------------------------------------------------------------------------


CONTINUES = "; once it can, the same command continues"

Recorder: TypeAlias = Callable[[str, Regions], bytes]
"""Makes the record of a picture of this name, in the process that computes it; a ValueError says why it cannot."""


def write_json(folder: Path, key: str, regions: Regions) -> bytes:
    """Writes the region file of a picture, which appears whole; there is no more to record."""
    name: int | str = int(key) if key.isdecimal() and int(key) < 2**63 else key  # json of orjson ends there
    data = orjson.dumps(region_record(name, regions))
    path = folder / f"{key}.json"
    with writing(path, CONTINUES):
        replace_file(path, lambda temporary: temporary.write_bytes(data))
    return b""


def pack(dtype: str, key: str, regions: Regions) -> bytes:
    """Returns the record of a picture in a packed file; numbers that are too large are a ValueError."""
    return pack_record(key, regions, getattr(torch, dtype))


def is_packed(out: Path) -> bool:
    """Tells whether a name is that of a packed file, not of a folder."""
    return out.suffix in (".packed", ".regions") and not out.is_dir()


@contextmanager
def _open_folder(folder: Path) -> Iterator[set[str]]:
    """Makes a folder of region files where it is missing, and keeps others from writing it.

    Yields:
        The names of the pictures that are there.

    Raises:
        UsageError: another process writes into the folder.
        DataError: the folder cannot be written.
    """
    with writing(folder, CONTINUES):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _take(folder, descriptor)
    finally:
        os.close(descriptor)


def _take(folder: Path, descriptor: int) -> set[str]:
    with writing(folder, CONTINUES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"--out {folder}: another process is writing it") from error
        remove_leftovers(folder, "*.json")
        return {Path(name).stem for name in os.listdir(folder) if name.endswith(".json")}


# --- The work ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What a process needs to work on pictures; it can be sent to another one.

    Attributes:
        extractor: makes the network of the features on a device.
        finder: makes what finds boxes on a device; None where all are given.
        classes: whether region files have class scores.
    """

    extractor: Callable[[torch.device], RegionExtractor]
    finder: Callable[[torch.device], RegionFinder] | None
    classes: bool


class Worker:
    """Works on batches of pictures on one device.

    Args:
        recipe: how.
        record: makes the records.
        device: where.
    """

    def __init__(self, recipe: Recipe, record: Recorder, device: torch.device) -> None:
        self._record = record
        self._classes = recipe.classes
        self._extractor = recipe.extractor(device)
        self._finder = None if recipe.finder is None else recipe.finder(device)
        self._store = Store()

    def __call__(self, tasks: Sequence[Task]) -> list[Result]:
        """Returns a result for each picture, in their order."""
        results: dict[str, Result] = {}
        opened: list[tuple[Task, Image.Image, FoundRegions | None]] = []
        for task in tasks:
            try:
                opened.append((task, *self._open(task)))
            except DataError as error:
                results[task.key] = Result(task.key, b"", str(error))
        looked = iter(self._look([image for _, image, given in opened if given is None]))
        found = [next(looked) if given is None else given for _, _, given in opened]
        pooled = self._extractor([image for _, image, _ in opened], [one.boxes for one in found])
        for (task, image, _), one, features in zip(opened, found, pooled, strict=True):
            scores = class_scores(one) if self._classes else None
            regions = Regions(one.boxes, features.regions, features.whole, image.size, scores)
            results[task.key] = self._result(task, regions)
        return [results[task.key] for task in tasks]

    def _open(self, task: Task) -> tuple[Image.Image, FoundRegions | None]:
        if isinstance(task.given, str):
            raise DataError(task.given)
        image = self._store.picture(task.path, upright_rgb)
        return image, None if task.given is None else task.given.on(image.size)

    def _look(self, images: list[Image.Image]) -> list[FoundRegions]:
        return self._finder(images) if self._finder is not None and images else []

    def _result(self, task: Task, regions: Regions) -> Result:
        assert regions.features is not None
        assert regions.image_feature is not None
        if not (regions.features.isfinite().all() and regions.image_feature.isfinite().all()):
            return Result(task.key, b"", f"{task.path}: its features are not finite; are the weights right?")
        try:
            return Result(task.key, self._record(task.key, regions))
        except ValueError as error:
            return Result(task.key, b"", f"{task.path}: {error}")


@dataclass(frozen=True)
class Extraction:
    """Pictures that get region files.

    Attributes:
        pictures: path of each by its name.
        boxes: given boxes; None where they are looked for.
        recipe: how to work on a picture.
        devices: one process works on each.
        batch_size: pictures at once.
        skip_bad: leave out what cannot be used.
    """

    pictures: Mapping[str, str]
    boxes: BoxFile | None
    recipe: Recipe
    devices: Sequence[torch.device]
    batch_size: int
    skip_bad: bool = False

    def to_folder(self, folder: Path) -> int:
        """Writes a json file for every picture that has none; returns how many pictures were left out.

        Raises:
            UsageError: another process writes into the folder.
            DataError: a picture or its boxes cannot be used, or the folder cannot be written.
            UserError: a process was killed.
        """
        with _open_folder(folder) as done:
            return self._run(partial(write_json, folder), done, lambda result: None)

    def to_packed_file(self, out: Path, dtype: str, feature_dim: int) -> int:
        """Packs region files into `out`, which appears when it is complete; returns how many pictures were left out.

        It stands for a folder of its name without the ending.

        Args:
            out: the file.
            dtype: of features and class scores.
            feature_dim: width of a feature.

        Raises:
            UsageError: the file is there, was begun with other arguments, or another process writes it.
            DataError: as in `to_folder`.
            UserError: a process was killed.
        """
        header = PackedHeader.model_validate(
            {
                "dtype": dtype,
                "feature_dim": feature_dim,
                "classes": self.recipe.classes,
                "sources": (out.stem,),
            }
        )
        with packed_file(out, header) as writer:
            if gone := writer.offsets.keys() - self.pictures.keys():
                raise UsageError(f"{out}.partial holds {min(gone)}, which is no picture any more; remove it")
            done = frozenset(writer.offsets)
            left_out = self._run(
                partial(pack, dtype), done, lambda result: writer.append(result.key, result.record)
            )
            if not writer.offsets:
                raise DataError(f"{out}: none of {len(self.pictures)} pictures can be used")
            writer.finish(left_out)
        return left_out

    def _run(self, record: Recorder, done: Collection[str], add: Callable[[Result], object]) -> int:
        keys, size = list(self.pictures), self.batch_size
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        logger.info("%d pictures, %d of them are done already", len(keys), sum(key in done for key in keys))
        # Where a part of a batch is missing all of it is computed again: in other company last bits may differ.
        missing = [batch for batch in batches if any(key not in done for key in batch)]
        work = ([self._task(key) for key in batch] for batch in missing)
        worked = results_in_order(work, partial(Worker, self.recipe, record), self.devices)
        results: Iterator[Result] = (result for batch in worked for result in batch)
        left_out = 0
        for result in shown(results, "picture", sum(map(len, missing))):
            if result.problem and not self.skip_bad:
                raise DataError(f"{result.problem} (--on-bad skip leaves such pictures out)")
            if result.problem:
                logger.warning("left out: %s", result.problem)
                left_out += 1
            elif result.key not in done:
                add(result)
        return left_out

    def _task(self, key: str) -> Task:
        path = self.pictures[key]
        if self.boxes is None:
            return Task(key, path, None)
        try:
            return Task(key, path, self.boxes.of(PurePosixPath(path).name, key))
        except DataError as error:
            return Task(key, path, str(error))
