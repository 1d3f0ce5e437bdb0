"""Regions that a user gives: lists, arrays, region files, packed files, and COCO annotation or detection files."""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AliasChoices, BaseModel, Field, RootModel, Strict
from pydantic_core import from_json
from torch import Tensor

from common.data.coco import CLASS_INDEX, CLASS_NAMES, CLASS_OF_CATEGORY, BoxTable, Id
from common.data.images import clip_boxes
from common.data.regions.json_format import decode_regions
from common.data.regions.packed_format import PackedRegions, is_packed_file
from common.data.regions.types import Regions
from common.data.storage.store import Store, parse_model, split_archive
from common.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

FORMATS = (
    "a list of boxes [x1, y1, x2, y2], an object with boxes and optional classes, a region file, "
    "or COCO annotations or detections"
)


def clip_to_image(regions: Regions, image_size: tuple[int, int]) -> Regions:
    """Checks regions against their image and clips their boxes to it.

    Args:
        regions: regions in pixels of the image.
        image_size: width and height of the image.

    Raises:
        DataError: a box is not finite, empty or outside of the image, or the image has another size.
    """
    where = regions.source
    if regions.image_size not in (None, image_size):
        raise DataError(
            f"{where}: its boxes are for an image of {regions.image_size} pixels (width, height), but the image "
            f"has {image_size}"
        )
    width, height = image_size
    for number, box in enumerate(regions.boxes.tolist()):
        x1, y1, x2, y2 = box
        problem = ""
        if not np.isfinite(box).all():
            problem = "is not finite"
        elif x2 < x1 or y2 < y1:
            problem = "is empty; expected x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"
        elif x2 < 0 or y2 < 0 or x1 >= width or y1 >= height:
            problem = f"is outside of the image of {width} x {height} pixels"
        if problem:
            raise DataError(f"{where}: box {number}, {box}, {problem}")
    clipped = clip_boxes(regions.boxes, *image_size)
    # Conventions differ on whether x2 is the last pixel or the edge after it, and COCO rounds.
    if num_clipped := int(((regions.boxes - clipped).abs() > 1.5).any(dim=1).sum()):
        logger.warning(
            "%s: clipped %d boxes to the image of %d x %d pixels", where, num_clipped, width, height
        )
    return regions._replace(boxes=clipped, image_size=image_size)


def parse_boxes(value: Any, where: str, feature_dim: int | None = None) -> Regions:
    """Reads the regions of one image.

    Args:
        value: (n, 4) boxes as a list, array or tensor; a mapping with `boxes` as such a list and optional `classes`, n
            COCO names or numbers 0 to 80; or the content of a region file.
        where: source of the value, for messages.
        feature_dim: width F of the features to read from a region file; None to skip them.

    Returns:
        Regions with `class_ids` and `scores`; not yet checked against an image, see `clip_to_image`.

    Raises:
        DataError: the value has another form, or one of its rows is invalid.
    """
    if not isinstance(value, Mapping):
        return _with_classes(_parse_rows(value, where), None, where)
    if "boxes" not in value:
        raise DataError(f"{where}: has no boxes; expected {FORMATS}")
    if isinstance(value["boxes"], str):
        features = feature_dim is not None and "features" in value
        regions = decode_regions(
            value, where, feature_dim or 0, features=features, class_scores="classes" in value
        )
        return _with_best_class(regions)
    return _with_classes(_parse_rows(value["boxes"], where), value.get("classes"), where)


def _parse_rows(value: Any, where: str) -> Tensor:
    value = _to_list(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"{where}: holds a {type(value).__name__}; expected {FORMATS}")
    boxes = []
    for number, row in enumerate(map(_to_list, value)):
        numbers = list(row) if isinstance(row, Sequence) else []
        # The text "1" and true must not count as numbers.
        are_numbers = all(isinstance(one, Real) and not isinstance(one, bool) for one in numbers)
        try:
            if len(numbers) != 4 or not are_numbers:
                raise ValueError
            boxes.append([float(one) for one in numbers])
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{where}: box {number} is {row!r}; expected four numbers x1, y1, x2, y2"
            ) from error
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 4)


def _to_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | Tensor) else value


def _with_classes(boxes: Tensor, classes: Any, where: str) -> Regions:
    count = len(boxes)
    if classes is None:
        classes = [0] * count
    if not isinstance(classes, Sequence | np.ndarray) or isinstance(classes, str) or len(classes) != count:
        raise DataError(f"{where}: classes must be a list, one class for each of the {count} boxes")
    class_ids = []
    for number, value in enumerate(classes):
        class_id, hint = None, ""
        if isinstance(value, str):
            class_id, hint = find_class(value), did_you_mean(value, list(CLASS_NAMES))
        elif isinstance(value, int | np.integer) and not isinstance(value, bool):
            class_id = int(value) if 0 <= value < len(CLASS_NAMES) else None
        if class_id is None:
            raise DataError(
                f"{where}: class {number} is {value!r}{hint}; expected a COCO name, or a number from 0 (unknown) to "
                f"{len(CLASS_NAMES) - 1}"
            )
        class_ids.append(class_id)
    return Regions(
        boxes, class_ids=torch.tensor(class_ids, dtype=torch.int64), scores=torch.ones(count), source=where
    )


def find_class(name: str) -> int | None:
    """Returns the class of a name in COCO's or this project's spelling ("sports ball", "sportsball"), or None."""
    return CLASS_INDEX.get(re.sub(r"\s", "", name).lower())


def _with_best_class(regions: Regions) -> Regions:
    """Adds `class_ids` and `scores` to the regions of a region file."""
    class_ids, scores = torch.zeros(len(regions.boxes), dtype=torch.int64), torch.ones(len(regions.boxes))
    # Another number of columns means other classes, such as the 1600 of Visual Genome.
    if regions.class_scores is not None and regions.class_scores.shape[1] == len(CLASS_NAMES):
        scores, class_ids = regions.class_scores.max(dim=1)
        if invalid := ((scores < 0) | (scores > 1)).nonzero().flatten().tolist():
            number = invalid[0]
            raise DataError(
                f"{regions.source}: box {number} has the class score {scores[number]:g}; expected 0 to 1"
            )
    return regions._replace(class_ids=class_ids, scores=scores, class_scores=None)


Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Length = Annotated[int, Field(ge=0)] | None


class _Image(BaseModel):
    id: Id
    file_name: str
    width: Length = None
    height: Length = None


class _Category(BaseModel):
    id: Id
    name: str


class _Object(BaseModel):
    image_id: Id
    bbox: tuple[Number, Number, Number, Number] = Field(validation_alias=AliasChoices("bbox", "box"))
    category_id: Id = 0
    score: Annotated[Number, Field(ge=0, le=1)] = 1.0


class _Instances(BaseModel):
    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category] = []


class _Detections(RootModel[list[_Object]]):
    pass


class _CocoBoxes:
    """Boxes of many images from a COCO file, by file name or image id."""

    def __init__(self, path: str, data: bytes, *, annotations: bool) -> None:
        self._path = path
        self._images: dict[str, _Image] | None = None
        class_of = CLASS_OF_CATEGORY
        if annotations:
            content = parse_model(_Instances, data, path)
            objects = content.annotations
            self._images = {Path(image.file_name).name: image for image in content.images}
            if len(self._images) < len(content.images):
                raise DataError(f"{path}: two images have the same file_name; boxes are looked up by it")
            if content.categories:
                class_of = _classes_by_name(content.categories, path)
        else:
            objects = parse_model(_Detections, data, path).root
        self._table = BoxTable([one.image_id for one in objects], [one.bbox for one in objects])
        order = self._table.order
        self._classes = np.array([class_of.get(one.category_id, 0) for one in objects], dtype=np.int64)[order]
        self._scores = np.array([one.score for one in objects], dtype=np.float32)[order]

    def read(self, name: str) -> Regions:
        size: tuple[int | None, int | None] = (None, None)
        image_id: int | None
        if self._images is not None:
            if name not in self._images:
                raise DataError(f"{self._path}: has no image with the file_name {name}")
            image = self._images[name]
            image_id, size = image.id, (image.width, image.height)
        else:
            image_id = number_of(name)
            if image_id is None:
                raise DataError(
                    f"{self._path}: detections refer to images by number, and {name} does not end in one; "
                    "use a file with images and annotations"
                )
        rows = self._table.rows(image_id)
        best_first = np.argsort(-self._scores[rows], kind="stable")
        corners, sides = np.hsplit(self._table.boxes(image_id)[best_first], 2)
        where = f"{self._path}, image {image_id}"
        for row, (width, height) in enumerate(sides):
            if width <= 0 or height <= 0:
                raise DataError(f"{where}: box {row} is {width} wide and {height} high: it is empty")
        boxes = np.hstack([corners, corners + sides])  # as the RefCOCO datasets read them
        return Regions(
            torch.from_numpy(boxes).float(),
            class_ids=torch.from_numpy(self._classes[rows][best_first]),
            scores=torch.from_numpy(self._scores[rows][best_first]),
            image_size=(size[0], size[1]) if size[0] and size[1] else None,
            source=where,
        )


def _classes_by_name(categories: Sequence[_Category], path: str) -> dict[int, int]:
    classes = {category.id: find_class(category.name) for category in categories}
    if unknown := [category.name for category in categories if classes[category.id] is None]:
        logger.warning(
            "%s: %d categories are not among COCO's 80, and their boxes have no class: %s",
            path,
            len(unknown),
            ", ".join(unknown[:5]),
        )
    return {category_id: class_id or 0 for category_id, class_id in classes.items()}


def number_of(name: str) -> int | None:
    """Returns the number at the end of a file name, as in COCO's names; None if there is none."""
    digits = re.search(r"\d+$", Path(name).stem)
    return int(digits[0]) if digits else None


class RegionSource:
    """Regions of images by file name.

    Args:
        path: json file in one of the `FORMATS`; or a packed file, or a folder or location in an archive with one file
            per image, called like the image, `{stem}.json`, or like the number at its end, `{number}.json`.

    Raises:
        DataError: the file is missing, has another form, or a record is invalid.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._store = Store()
        self._coco: _CocoBoxes | None = None
        self._packed: PackedRegions | None = None
        self._record: Any = None
        if is_packed_file(path):
            self._packed = PackedRegions(path)
            return
        # A missing path counts as a file if it is named like one.
        is_json, in_archive = path.lower().endswith(".json"), split_archive(path) is not None
        is_file = is_json or (not in_archive and Path(path).is_file() and not path.endswith(".zip"))
        if not is_file or Path(path).is_dir():
            is_archive = path.endswith(".zip") and not Path(path).is_dir()
            self._path = f"{path}@" if is_archive else path
            self._store.check(self._path)
            return
        data = self._store.read(path).removeprefix(codecs.BOM_UTF8)
        detections = re.match(rb"\s*\[\s*\{", data) is not None
        annotations = not detections and re.search(rb'"annotations"\s*:', data) is not None
        if detections or annotations:
            self._coco = _CocoBoxes(path, data, annotations=annotations)
        else:
            self._record = _parse_json(data, path)
            parse_boxes(self._record, path)  # report errors when the file is opened

    @property
    def is_single_image(self) -> bool:
        """Whether this is a file with the regions of one image, whatever the image is called."""
        return self._record is not None

    def read(self, name: str, key: str = "", feature_dim: int | None = None) -> Regions:
        """Reads the regions of an image, see `parse_boxes`.

        Args:
            name: file name of the image, without folder.
            key: name of its region file, if it is neither its stem nor its number.
            feature_dim: see `parse_boxes`.

        Raises:
            DataError: there are no regions for the image, or they are invalid.
        """
        if self._coco is not None:
            return self._coco.read(name)
        if self._record is not None:
            return parse_boxes(self._record, self._path, feature_dim)
        number = number_of(name)
        keys = [key, Path(name).stem, "" if number is None else str(number)]
        keys = list(dict.fromkeys(filter(None, keys)))
        if self._packed is not None:
            image = next((one for one in keys if one in self._packed), keys[0])
            has_scores = self._packed.header.classes
            return _with_best_class(
                self._packed.read(
                    image, feature_dim or 0, features=feature_dim is not None, class_scores=has_scores
                )
            )
        for path in (f"{self._path}/{one}.json" for one in keys):
            if (data := self._store.read_if_there(path)) is not None:
                data = data.removeprefix(codecs.BOM_UTF8)
                return parse_boxes(_parse_json(data, path), path, feature_dim)
        raise DataError(f"{self._path}: has no {' or '.join(f'{one}.json' for one in keys)} for {name}")


def _parse_json(data: bytes, path: str) -> Any:
    # Unlike orjson, this parser accepts NaN and Infinity, which then get a message that names the box.
    try:
        return from_json(data)
    except ValueError as error:
        problem = str(error) if data.strip() else "it is empty"
        raise DataError(f"{path}: expected json in UTF-8, but {problem}") from error
