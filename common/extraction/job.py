"""Region files for whole folders of pictures: found or given boxes, their features, as json or packed.

What is computed of a picture depends on nothing else, on any number of processes: a run that was stopped and started
again ends with the bytes of one that was not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias

import orjson
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.data.coco import CLASS_NAMES
from common.data.images import upright_rgb
from common.data.regions.json_format import region_record
from common.data.regions.packed_format import PackedHeader, pack_record, packed_file
from common.data.regions.sources import BoxFile, GivenBoxes, number_of
from common.data.regions.types import Detector, FoundRegions, Regions, look
from common.data.storage.store import Store, files_in
from common.errors import DataError, UsageError
from common.extraction.features import RegionExtractor
from common.extraction.resume import CONTINUES, continued
from common.extraction.workers import results_in_order
from common.files import replace_file, writing
from common.progress import track

logger = logging.getLogger(__name__)


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def list_images(place: str, *, by_number: bool = False) -> dict[str, str]:
    """Returns the path of every picture below a place by the name that its own output gets.

    Args:
        place: folder, archive, or place in an archive (`x.zip@/inner`); see `files_in`.
        by_number: the name is the number that the file name ends in, without leading zeros; else the path below the
            place, with / between its parts and without its ending.

    Raises:
        DataError: the place is missing or has no picture, a file name has no number, or two have the same name.
    """
    place = f"{place}@/" if place.endswith(".zip") else place
    Store([place])
    found: dict[str, str] = {}
    for name, path in files_in(place, IMAGE_SUFFIXES):
        number = number_of(name) if by_number else None
        if by_number and number is None:
            raise DataError(f"{path}: its name does not end in a number, as --names number needs it")
        key = str(PurePosixPath(name).with_suffix("")) if number is None else str(number)
        if key in found:
            raise DataError(f"{path} and {found[key]} would both be {key} in the output; rename one")
        found[key] = path
    if not found:
        raise DataError(f"{place}: has no pictures; expected files {', '.join(IMAGE_SUFFIXES)}")
    return found


class Task(NamedTuple):
    """A picture to work on.

    Attributes:
        key: name of its region file.
        path: its own.
        given: its boxes; a message where they cannot be used; None where a finder looks for them.
        wanted: whether its result is; else it is only company.
    """

    key: str
    path: str
    given: GivenBoxes | str | None
    wanted: bool = True


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


Recorder: TypeAlias = Callable[[str, Regions], bytes]
"""Makes the record of a picture of this name, in the process that computes it; a ValueError says why it cannot."""


def write_json(folder: Path, key: str, regions: Regions) -> bytes:
    """Writes the region file of a picture, which appears whole; there is no more to record."""
    name: int | str = int(key) if key.isdecimal() and int(key) < 2**63 else key  # json of orjson ends there
    data = orjson.dumps(region_record(name, regions))
    path = folder / f"{key}.json"
    with writing(path, CONTINUES):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: temporary.write_bytes(data))
    return b""


def pack(dtype: str, key: str, regions: Regions) -> bytes:
    """Returns the record of a picture in a packed file; numbers that are too large are a ValueError."""
    return pack_record(key, regions, getattr(torch, dtype))


def is_packed(out: Path) -> bool:
    """Tells whether a name is that of a packed file, not of a folder."""
    return out.suffix in (".packed", ".regions") and not out.is_dir()


@dataclass(frozen=True)
class Recipe:
    """What a process needs to work on pictures; it can be sent to another one.

    Attributes:
        extractor: makes the network of the features on a device.
        finder: makes what finds boxes on a device; None where all are given.
        classes: whether region files have class scores.
    """

    extractor: Callable[[torch.device], RegionExtractor]
    finder: Callable[[torch.device], Detector] | None
    classes: bool


class Worker:
    """Works on pictures on one device.

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
        """Returns a result for each picture that one is wanted of, in their order."""
        problems: dict[str, str] = {}
        opened: list[tuple[Task, Image.Image, FoundRegions | None]] = []
        for task in tasks:
            try:
                opened.append((task, *self._open(task)))
            except DataError as error:
                problems[task.key] = str(error)
        unknown = [(task.path, image) for task, image, given in opened if given is None]
        looked = iter(look(self._finder, unknown) if self._finder is not None else ())
        found = [(task, image, next(looked) if given is None else given) for task, image, given in opened]
        problems |= {task.key: str(one) for task, _, one in found if isinstance(one, DataError)}
        seen = [(task, image, one) for task, image, one in found if not isinstance(one, DataError)]
        pooled = self._extractor([image for _, image, _ in seen], [one.boxes for _, _, one in seen])
        results = {key: Result(key, b"", problem) for key, problem in problems.items()}
        for (task, image, one), (features, whole) in zip(seen, pooled, strict=True):
            if task.wanted:
                scores = class_scores(one) if self._classes else None
                results[task.key] = self._result(
                    task, Regions(one.boxes, features, whole, image.size, scores)
                )
        return [results[task.key] for task in tasks if task.wanted]

    def _open(self, task: Task) -> tuple[Image.Image, FoundRegions | None]:
        if isinstance(task.given, str):
            raise DataError(task.given)
        image = self._store.picture(task.path, upright_rgb)
        return image, None if task.given is None else task.given.on(image.size)

    def _result(self, task: Task, regions: Regions) -> Result:
        assert regions.features is not None
        assert regions.image_feature is not None
        if not (regions.features.isfinite().all() and regions.image_feature.isfinite().all()):
            return Result(task.key, b"", f"{task.path}: its features are not finite; are the weights right?")
        try:
            return Result(task.key, self._record(task.key, regions))
        except ValueError as error:
            return Result(task.key, b"", f"{task.path}: {error}")


def leave_out(problem: str, *, allowed: bool) -> None:
    """Says why a picture has no output, which stops a run unless it is allowed (`--on-bad skip`).

    Raises:
        DataError: it is not.
    """
    if not allowed:
        raise DataError(f"{problem} (--on-bad skip leaves such pictures out)")
    logger.warning("left out: %s", problem)


@dataclass(frozen=True)
class Extraction:
    """Pictures that get region files.

    Attributes:
        pictures: path of each by its name.
        boxes: given boxes; None where they are looked for.
        recipe: how to work on a picture.
        devices: one process works on each.
        batch_size: pictures that a process gets at once.
        skip_bad: leave out what cannot be used.
        place: of the pictures.
        arguments: what results depend on, see `common.provenance`.
    """

    pictures: Mapping[str, str]
    boxes: BoxFile | None
    recipe: Recipe
    devices: Sequence[torch.device]
    batch_size: int
    skip_bad: bool = False
    place: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)

    def to_folder(self, folder: Path) -> int:
        """Writes a json file for every picture that has none; returns how many pictures were left out.

        Raises:
            UsageError: the folder was begun with other arguments, or another process writes into it.
            DataError: a picture or its boxes cannot be used, or the folder cannot be written.
            UserError: a process was killed.
        """
        with continued(folder, self.pictures, self.place, self.arguments) as done:
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
                "arguments": self.arguments,
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

    def _run(self, record: Recorder, done: Set[str], add: Callable[[Result], object]) -> int:
        missing, size = [key for key in self.pictures if key not in done], self.batch_size
        logger.info("%d pictures, %d of them are done already", len(self.pictures), len(done))
        # On a GPU a batch is computed whole where a part is missing: in other company last bits may differ.
        keys = missing if self.devices[0].type == "cpu" else list(self.pictures)
        batches = [keys[start : start + size] for start in range(0, len(keys), size)]
        work = (
            [self._task(key)._replace(wanted=key not in done) for key in batch]
            for batch in batches
            if not done >= set(batch)
        )
        worked = results_in_order(work, partial(Worker, self.recipe, record), self.devices)
        results: Iterator[Result] = (result for batch in worked for result in batch)
        left_out = 0
        for result in track(results, total=len(missing), unit="image"):
            if result.problem:
                leave_out(result.problem, allowed=self.skip_bad)
                left_out += 1
            else:
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
