"""Boxes that are given: lists, arrays, region files and COCO's annotation and detection files."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, Field, RootModel, Strict
from pydantic_core import from_json
from torch import Tensor

from common.data.coco import CLASS_INDEX, CLASS_NAMES, CLASS_OF_CATEGORY, BoxTable, Id
from common.data.images import clip_boxes
from common.data.regions.json_format import json_regions
from common.data.regions.packed_format import PackedRegions, is_packed_file
from common.data.regions.types import FoundRegions, Regions
from common.data.storage.store import Store, parse_model, split_archive, without_mark
from common.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)


FORMS = (
    "a list of boxes [x1, y1, x2, y2], an object with boxes and perhaps classes, a region file, "
    "or COCO's annotations or detections"
)


class GivenBoxes(NamedTuple):
    """The boxes of one picture as somebody gave them.

    Attributes:
        where: their source, for messages.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the picture; the last pixel is inside.
        classes: (n,) int64, as `FoundRegions`.
        scores: (n,) float32, as `FoundRegions`.
        size: width and height of the picture that they are of; None where the source does not tell.
        features: (n, F) float32, from a region file that has them.
        image_feature: (F,) float32, that of the whole picture.
    """

    where: str
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    size: tuple[int, int] | None = None
    features: Tensor | None = None
    image_feature: Tensor | None = None

    def on(self, size: tuple[int, int]) -> FoundRegions:
        """Checks and clips the boxes.

        Args:
            size: width and height of the picture.

        Raises:
            DataError: a box is not finite, empty, or outside of the picture; or they are of another picture.
        """
        if self.size not in (None, size):
            raise DataError(
                f"{self.where}: its boxes are of a picture of {self.size} pixels (width, height), but the "
                f"picture has {size}"
            )
        for number, box in enumerate(self.boxes):
            if problem := _problem(box, size):
                raise DataError(f"{self.where}: box {number}, {box.tolist()}, {problem}")
        boxes = torch.from_numpy(self.boxes).float()
        clipped = clip_boxes(boxes, *size)
        # A corner on the far edge only counts pixels differently, and COCO rounds.
        if beyond := int(((boxes - clipped).abs() > 1.5).any(dim=1).sum()):
            logger.warning(
                "%s: %d boxes reach beyond the picture of %d x %d pixels: cut off", self.where, beyond, *size
            )
        return FoundRegions(clipped, torch.from_numpy(self.classes), torch.from_numpy(self.scores))


def _problem(box: NDArray[np.float64], size: tuple[int, int]) -> str:
    if not np.isfinite(box).all():
        return "is not finite"
    x1, y1, x2, y2 = box
    if x2 < x1 or y2 < y1:
        return "is empty; expected x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"
    if x2 < 0 or y2 < 0 or x1 >= size[0] or y1 >= size[1]:
        return f"lies outside of the picture of {size[0]} x {size[1]} pixels"
    return ""


def boxes_of(value: Any, where: str, feature_dim: int | None = None) -> GivenBoxes:
    """Reads the boxes of one picture.

    Args:
        value: (n, 4) as a list, an array or a tensor; or a mapping: with `boxes` as such a list, and perhaps `classes`
            as n names or numbers 0 to 80; or with the content of a region file.
        where: its source, for messages.
        feature_dim: width F of the features that are taken from a region file; None for none.

    Raises:
        DataError: it has another form, or a row of it is wrong.
    """
    if not isinstance(value, Mapping):
        return _with_classes(_rows(value, where), None, where)
    if "boxes" not in value:
        raise DataError(f"{where}: has no boxes; expected {FORMS}")
    if isinstance(value["boxes"], str):
        return _of_region_file(value, where, feature_dim)
    return _with_classes(_rows(value["boxes"], where), value.get("classes"), where)


def _rows(value: Any, where: str) -> NDArray[np.float64]:
    value = _plain(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError(f"{where}: holds a {type(value).__name__}; expected {FORMS}")
    boxes = np.empty((len(value), 4))
    for number, row in enumerate(map(_plain, value)):
        try:
            boxes[number] = _four_numbers(row)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{where}: box {number} is {row!r}; expected four numbers x1, y1, x2, y2"
            ) from error
    return boxes


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | Tensor) else value


def _four_numbers(row: Any) -> list[Real]:
    values = list(row) if isinstance(row, Sequence) else []
    # To numpy the text "1" and true are numbers too.
    if len(values) != 4 or not all(isinstance(one, Real) and not isinstance(one, bool) for one in values):
        raise ValueError
    return values


def _with_classes(boxes: NDArray[np.float64], classes: Any, where: str) -> GivenBoxes:
    count = len(boxes)
    if classes is None:
        classes = [0] * count
    if not isinstance(classes, Sequence | np.ndarray) or isinstance(classes, str) or len(classes) != count:
        raise DataError(f"{where}: classes must be a list, one class for each of the {count} boxes")
    numbers = [_class_number(one, number, where) for number, one in enumerate(classes)]
    return GivenBoxes(where, boxes, np.array(numbers, dtype=np.int64), np.ones(count, np.float32))


def _class_number(value: Any, number: int, where: str) -> int:
    if isinstance(value, str):
        if (found := named_class(value)) is not None:
            return found
        hint = did_you_mean(value, list(CLASS_NAMES))
    elif (
        isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < len(CLASS_NAMES)
    ):
        return int(value)
    else:
        hint = ""
    raise DataError(
        f"{where}: class {number} is {value!r}{hint}; expected a name of COCO, or a number from 0 (not known) to "
        f"{len(CLASS_NAMES) - 1}"
    )


def named_class(name: str) -> int | None:
    """Returns the class of a name in COCO's spelling or ours ("sports ball", "sportsball"); None if there is none."""
    return CLASS_INDEX.get(re.sub(r"\s", "", name).lower())


def _of_region_file(record: Mapping[str, Any], where: str, feature_dim: int | None) -> GivenBoxes:
    features, classes = feature_dim is not None and "features" in record, "classes" in record
    return _of_regions(
        json_regions(record, where, feature_dim or 0, features=features, classes=classes), where
    )


def _of_regions(stored: Regions, where: str) -> GivenBoxes:
    best, scores = torch.zeros(len(stored.boxes), dtype=torch.int64), torch.ones(len(stored.boxes))
    # Other columns are other classes, such as the 1600 of Visual Genome.
    if stored.classes is not None and stored.classes.shape[1] == len(CLASS_NAMES):
        scores, best = stored.classes.max(dim=1)
        if wrong := ((scores < 0) | (scores > 1)).nonzero().flatten().tolist():
            raise DataError(
                f"{where}: box {wrong[0]} has the class score {scores[wrong[0]]:g}; expected 0 to 1"
            )
    boxes = stored.boxes.numpy().astype(np.float64)
    return GivenBoxes(
        where, boxes, best.numpy(), scores.numpy(), stored.size, stored.features, stored.image_feature
    )


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
    """The boxes of many pictures from a file of COCO, by the names or the numbers of the pictures."""

    def __init__(self, path: str, data: bytes, *, annotations: bool) -> None:
        self._path = path
        self._images: dict[str, _Image] | None = None
        class_of = CLASS_OF_CATEGORY
        if annotations:
            content = parse_model(_Instances, data, path)
            objects = content.annotations
            self._images = {Path(image.file_name).name: image for image in content.images}
            if len(self._images) < len(content.images):
                raise DataError(f"{path}: two images have the same file_name; boxes are found by it")
            if content.categories:
                class_of = _classes_by_name(content.categories, path)
        else:
            objects = parse_model(_Detections, data, path).root
        self._table = BoxTable([one.image_id for one in objects], [one.bbox for one in objects])
        order = self._table.order
        self._classes = np.array([class_of.get(one.category_id, 0) for one in objects], dtype=np.int64)[order]
        self._scores = np.array([one.score for one in objects], dtype=np.float32)[order]

    def of(self, name: str) -> GivenBoxes:
        number, size = self._image(name)
        rows = self._table.rows(number)
        best = np.argsort(-self._scores[rows], kind="stable")
        corners, sides = np.hsplit(self._table.boxes(number)[best], 2)
        where = f"{self._path}, image {number}"
        for row, (width, height) in enumerate(sides):
            if width <= 0 or height <= 0:
                raise DataError(f"{where}: box {row} is {width} wide and {height} high: it is empty")
        boxes = np.hstack([corners, corners + sides])  # as RefCOCO's are read
        return GivenBoxes(where, boxes, self._classes[rows][best], self._scores[rows][best], size)

    def _image(self, name: str) -> tuple[int, tuple[int, int] | None]:
        """Returns number and, where it is known, width and height of a picture."""
        if self._images is not None:
            if name not in self._images:
                raise DataError(f"{self._path}: has no image with the file_name {name}")
            image = self._images[name]
            return image.id, (image.width, image.height) if image.width and image.height else None
        number = number_of(name)
        if number is None:
            raise DataError(
                f"{self._path}: detections know pictures by their number, and {name} does not end in one; "
                "give a file with images and annotations"
            )
        return number, None


def _classes_by_name(categories: Sequence[_Category], path: str) -> dict[int, int]:
    named = {category.id: named_class(category.name) for category in categories}
    if unknown := [category.name for category in categories if named[category.id] is None]:
        logger.warning(
            "%s: %d categories are not of COCO's 80, their boxes have no class: %s",
            path,
            len(unknown),
            ", ".join(unknown[:5]),
        )
    return {number: found or 0 for number, found in named.items()}


def number_of(name: str) -> int | None:
    """Returns the number that a file name ends in, as COCO's do; None if it does not."""
    digits = re.search(r"\d+$", Path(name).stem)
    return int(digits[0]) if digits else None


class BoxFile:
    """Boxes by the name of a picture.

    Args:
        path: json file in one of the `FORMS`; or a packed file, or a folder or a place in an archive with a file for
            every picture: by its whole name, `{stem}.json`, or by the number that it ends in, `{number}.json`.

    Raises:
        DataError: it is missing, has another form, or a record of it is wrong.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._store = Store()
        self._many: _CocoBoxes | None = None
        self._packed: PackedRegions | None = None
        self._one: Any = None
        if is_packed_file(path):
            self._packed = PackedRegions(path)
        elif _is_place(path):
            self._path = f"{path}@" if path.endswith(".zip") and not Path(path).is_dir() else path
            self._store.check(self._path)
        else:
            self._read(without_mark(self._store.read(path)))

    def _read(self, data: bytes) -> None:
        detections = re.match(rb"\s*\[\s*\{", data) is not None
        annotations = not detections and re.search(rb'"annotations"\s*:', data) is not None
        if detections or annotations:
            self._many = _CocoBoxes(self._path, data, annotations=annotations)
        else:
            self._one = _parse(data, self._path)
            boxes_of(self._one, self._path)

    @property
    def is_single_image(self) -> bool:
        """Whether it is a file with the boxes of one picture, whatever its name is."""
        return self._one is not None

    def of(self, name: str, key: str = "", feature_dim: int | None = None) -> GivenBoxes:
        """Returns the boxes of a picture.

        Args:
            name: of its file, without folders.
            key: what a file of its own is called, if not by its stem or number.
            feature_dim: see `boxes_of`.

        Raises:
            DataError: there are none, or they cannot be read.
        """
        if self._many is not None:
            return self._many.of(name)
        if self._one is not None:
            return boxes_of(self._one, self._path, feature_dim)
        number = number_of(name)
        keys = [key, Path(name).stem, *([] if number is None else [str(number)])]
        keys = list(dict.fromkeys(filter(None, keys)))
        if self._packed is not None:
            return self._of_packed(self._packed, keys, feature_dim)
        for path in (f"{self._path}/{one}.json" for one in keys):
            if (data := self._store.read_if_there(path)) is not None:
                return boxes_of(_parse(without_mark(data), path), path, feature_dim)
        raise DataError(f"{self._path}: has no {' or '.join(f'{one}.json' for one in keys)} for {name}")

    def _of_packed(self, packed: PackedRegions, keys: Sequence[str], feature_dim: int | None) -> GivenBoxes:
        image = next((one for one in keys if one in packed), keys[0])
        stored = packed.read(
            image, feature_dim or 0, features=feature_dim is not None, classes=packed.header.classes
        )
        return _of_regions(stored, f"{self._path}, image {image}")


def _is_place(path: str) -> bool:
    """Tells folders, archives and places in them from files; what is missing is a file if it is called so."""
    is_json = path.lower().endswith(".json")
    if split_archive(path) is not None:
        return not is_json
    return Path(path).is_dir() or path.endswith(".zip") or not (is_json or Path(path).is_file())


def _parse(data: bytes, where: str) -> Any:
    try:
        return from_json(data)
    except ValueError as error:
        found = str(error) if data.strip() else "it is empty"
        raise DataError(f"{where}: expected json in UTF-8, but {found}") from error
