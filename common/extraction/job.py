"""Region files for folders of images: detected or given boxes and their features, as json or packed.

The result of an image depends on nothing else, on any number of processes. An interrupted run that is started again
ends with the same bytes as an uninterrupted one.
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
from torch import Tensor

from common.data.coco import CLASS_NAMES
from common.data.images import upright_rgb
from common.data.regions.json_format import encode_regions
from common.data.regions.packed_format import PackedHeader, pack_record, packed_file
from common.data.regions.sources import RegionSource, clip_to_image, number_of
from common.data.regions.types import Detector, Regions, detect_each
from common.data.storage.store import Store, files_in
from common.errors import DataError, UsageError
from common.extraction.features import RegionExtractor
from common.extraction.resume import RESUME_HINT, resumable_folder
from common.extraction.workers import results_in_order
from common.files import replace_file, writing
from common.progress import track

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def list_images(root: str, *, by_number: bool = False) -> dict[str, str]:
    """Returns the paths of all images below a root, by the names of their region files.

    Args:
        root: folder, archive, or location in an archive (`x.zip@/inner`); see `files_in`.
        by_number: name region files after the number at the end of the file name, without leading zeros. Otherwise
            after the path below the root, with / between its parts and without suffix.

    Raises:
        DataError: the root is missing or has no images, a file name has no number, or two images get the same name.
    """
    root = f"{root}@/" if root.endswith(".zip") else root
    Store([root])
    images: dict[str, str] = {}
    for name, path in files_in(root, IMAGE_SUFFIXES):
        number = number_of(name) if by_number else None
        if by_number and number is None:
            raise DataError(f"{path}: its name does not end in a number, which --names number needs")
        key = str(PurePosixPath(name).with_suffix("")) if number is None else str(number)
        if key in images:
            raise DataError(f"{path} and {images[key]} would both be {key} in the output; rename one")
        images[key] = path
    if not images:
        raise DataError(f"{root}: has no images; expected files {', '.join(IMAGE_SUFFIXES)}")
    return images


class Item(NamedTuple):
    """An image to process.

    Attributes:
        key: name of its region file.
        path: path of the image.
        regions: given regions; None to detect them.
        error: why the given regions cannot be used; empty if they can.
    """

    key: str
    path: str
    regions: Regions | None = None
    error: str = ""


class Result(NamedTuple):
    """The record of an image for the output, or the reason why there is none."""

    key: str
    record: bytes
    error: str = ""


Encoder: TypeAlias = Callable[[str, Regions], bytes]
"""Encodes the regions of the image with this key, in the process that computes them. Raises ValueError if it cannot."""


def write_json(folder: Path, key: str, regions: Regions) -> bytes:
    """Writes the region file of an image atomically. Returns an empty record: there is nothing left to write."""
    image_id: int | str = int(key) if key.isdecimal() and int(key) < 2**63 else key  # the limit of orjson
    data = orjson.dumps(encode_regions(image_id, regions))
    path = folder / f"{key}.json"
    with writing(path, RESUME_HINT):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: temporary.write_bytes(data))
    return b""


def pack(dtype: str, key: str, regions: Regions) -> bytes:
    """Returns the record of an image in a packed file; raises ValueError if a number overflows `dtype`."""
    return pack_record(key, regions, getattr(torch, dtype))


def is_packed(out: Path) -> bool:
    """Returns whether `--out` names a packed file, not a folder."""
    return out.suffix in (".packed", ".regions") and not out.is_dir()


def class_distribution(class_ids: Tensor, scores: Tensor) -> Tensor:
    """Returns (n, 81) float32 class scores from the score of the best class; the background gets the rest."""
    distribution = F.one_hot(class_ids, len(CLASS_NAMES)).float() * scores[:, None]
    distribution[:, 0] = 1 - distribution[:, 1:].sum(dim=1)
    return distribution


@dataclass(frozen=True)
class Recipe:
    """What a worker process needs to build its models. Can be pickled.

    Attributes:
        build_extractor: builds the feature extractor on a device.
        build_detector: builds the detector on a device; None if all regions are given.
        class_scores: whether region files have class scores.
    """

    build_extractor: Callable[[torch.device], RegionExtractor]
    build_detector: Callable[[torch.device], Detector] | None
    class_scores: bool


class Worker:
    """Processes images on one device, one at a time, so that a result does not depend on other images."""

    def __init__(self, recipe: Recipe, encode: Encoder, device: torch.device) -> None:
        self._encode = encode
        self._class_scores = recipe.class_scores
        self._extractor = recipe.build_extractor(device)
        self._detector = None if recipe.build_detector is None else recipe.build_detector(device)
        self._store = Store()

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        results = []
        for item in items:
            try:
                results.append(Result(item.key, self._encode(item.key, self._compute(item))))
            except DataError as error:
                results.append(Result(item.key, b"", str(error)))
            except ValueError as error:
                results.append(Result(item.key, b"", f"{item.path}: {error}"))
        return results

    def _compute(self, item: Item) -> Regions:
        """Returns the regions of an image, with features and, if enabled, class scores."""
        if item.error:
            raise DataError(item.error)
        image = self._store.open_image(item.path, upright_rgb)
        if item.regions is not None:
            regions = clip_to_image(item.regions, image.size)
        else:
            assert self._detector is not None
            (detected,) = detect_each(self._detector, [(item.path, image)])
            if isinstance(detected, DataError):
                raise detected
            regions = detected
        ((features, image_feature),) = self._extractor([image], [regions.boxes])
        if not (features.isfinite().all() and image_feature.isfinite().all()):
            raise DataError(f"{item.path}: its features are not finite; check the weights")
        class_scores = None
        if self._class_scores:
            assert regions.class_ids is not None
            assert regions.scores is not None
            class_scores = class_distribution(regions.class_ids, regions.scores)
        return Regions(
            regions.boxes, features, image_feature, class_scores=class_scores, image_size=image.size
        )


def skip_or_raise(error: str, *, skip: bool) -> None:
    """Logs why an image is skipped, or raises (`--on-bad`).

    Raises:
        DataError: skipping is off.
    """
    if not skip:
        raise DataError(f"{error} (--on-bad skip leaves such images out)")
    logger.warning("skipped: %s", error)


@dataclass(frozen=True)
class Extraction:
    """Computes region files of images.

    Attributes:
        images: path of each image by the name of its region file.
        boxes: given regions; None to detect them.
        recipe: how to build the models.
        devices: one process runs on each.
        batch_size: images that a process gets at a time.
        skip_bad: skip images that cannot be used.
        root: root of the images.
        arguments: what the results depend on, see `common.provenance`.
    """

    images: Mapping[str, str]
    boxes: RegionSource | None
    recipe: Recipe
    devices: Sequence[torch.device]
    batch_size: int
    skip_bad: bool = False
    root: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)

    def to_folder(self, folder: Path) -> int:
        """Writes a json file for every image that has none. Returns the number of skipped images.

        Raises:
            UsageError: the folder was started with other arguments, or another process is writing to it.
            DataError: an image or its boxes cannot be used, or the folder cannot be written.
            UserError: a process was killed.
        """
        with resumable_folder(folder, self.images, self.root, self.arguments) as done:
            return self._run(partial(write_json, folder), done, lambda result: None)

    def to_packed_file(self, out: Path, dtype: str, feature_dim: int) -> int:
        """Packs all region files into `out`, which appears when it is complete. Returns the number of skipped images.

        Its source is called like the file, without suffix.

        Args:
            out: the file.
            dtype: dtype of features and class scores.
            feature_dim: width of a feature.

        Raises:
            UsageError: the file exists, was started with other arguments, or another process is writing it.
            DataError: as in `to_folder`.
            UserError: a process was killed.
        """
        header = PackedHeader.model_validate(
            {
                "dtype": dtype,
                "feature_dim": feature_dim,
                "classes": self.recipe.class_scores,
                "sources": (out.stem,),
                "arguments": self.arguments,
            }
        )
        with packed_file(out, header) as writer:
            if missing := writer.offsets.keys() - self.images.keys():
                raise UsageError(
                    f"{out}.partial holds {min(missing)}, which is no longer an image; remove it"
                )
            num_skipped = self._run(
                partial(pack, dtype),
                frozenset(writer.offsets),
                lambda result: writer.append(result.key, result.record),
            )
            if not writer.offsets:
                raise DataError(f"{out}: none of {len(self.images)} images can be used")
            writer.finish(num_skipped)
        return num_skipped

    def _run(self, encode: Encoder, done: Set[str], add: Callable[[Result], object]) -> int:
        missing = [key for key in self.images if key not in done]
        logger.info("%d images, %d of them done already", len(self.images), len(done))
        starts = range(0, len(missing), self.batch_size)
        chunks = ([self._item(key) for key in missing[start : start + self.batch_size]] for start in starts)
        finished = results_in_order(chunks, partial(Worker, self.recipe, encode), self.devices)
        results: Iterator[Result] = (result for chunk in finished for result in chunk)
        num_skipped = 0
        for result in track(results, total=len(missing), unit="image"):
            if result.error:
                skip_or_raise(result.error, skip=self.skip_bad)
                num_skipped += 1
            else:
                add(result)
        return num_skipped

    def _item(self, key: str) -> Item:
        path = self.images[key]
        if self.boxes is None:
            return Item(key, path)
        try:
            return Item(key, path, self.boxes.read(PurePosixPath(path).name, key))
        except DataError as error:
            return Item(key, path, error=str(error))
