"""COCO: object classes, in the spelling of VCR's detector, and annotation files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, RootModel
from typing_extensions import NotRequired, TypedDict

from common.data.storage.store import Store, parse_model
from common.errors import DataError

CLASS_NAMES = tuple(
    """
    __background__ person bicycle car motorcycle airplane bus train truck boat trafficlight firehydrant
    stopsign parkingmeter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella
    handbag tie suitcase frisbee skis snowboard sportsball kite baseballbat baseballglove skateboard surfboard
    tennisracket bottle wineglass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot
    hotdog pizza donut cake chair couch pottedplant bed diningtable toilet tv laptop mouse remote keyboard
    cellphone microwave oven toaster sink refrigerator book clock vase scissors teddybear hairdrier toothbrush
    """.split()  # noqa: SIM905  # readable as a text
)
"""Names of classes 0 (background) to 80."""

CLASS_INDEX = {name: index for index, name in enumerate(CLASS_NAMES)}
# COCO has 91 categories, 80 of which are annotated.
_UNUSED_CATEGORIES = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CLASS_OF_CATEGORY = {
    category: index for index, category in enumerate(sorted(set(range(1, 91)) - _UNUSED_CATEGORIES), start=1)
}
"""Class 1 to 80 of each COCO category id, 1 to 90."""

Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Side = Annotated[int, Field(gt=0)]
Box = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


class _Image(TypedDict):
    id: Id
    width: Side
    height: Side
    file_name: NotRequired[str]


class _Annotation(TypedDict):
    id: Id
    image_id: Id
    category_id: Id
    bbox: Box


class _Category(TypedDict):
    id: Id


class _InstanceFile(BaseModel):
    model_config = ConfigDict(strict=True)

    images: Annotated[list[_Image], Field(min_length=1)]
    annotations: list[_Annotation] = []
    categories: list[_Category] = []


class _Caption(TypedDict):
    image_id: Id
    caption: str


class _CaptionFile(BaseModel):
    model_config = ConfigDict(strict=True)

    annotations: Annotated[list[_Caption], Field(min_length=1)]


class _Detection(TypedDict):
    image_id: Id
    box: Box


class _DetectionFile(RootModel[list[_Detection]]):
    model_config = ConfigDict(strict=True)


class BoxTable:
    """Boxes by image, in two arrays; the boxes of an image are in file order.

    Args:
        image_ids: image of every box.
        boxes: x, y, width and height of every box.

    Attributes:
        order: (N,) index in the file of every row of the table.
        image_ids: (N,) image of every row, ascending.
    """

    def __init__(self, image_ids: Sequence[int], boxes: Sequence[Box]) -> None:
        unsorted = np.array(image_ids, dtype=np.int64)
        self.order = np.argsort(unsorted, kind="stable")
        self.image_ids = unsorted[self.order]
        self._boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)[self.order]

    @classmethod
    def of_detections(cls, path: str) -> BoxTable:
        """Reads a json list of detections with `image_id` and `box`.

        Raises:
            DataError: the file is missing or a record is invalid.
        """
        detections = parse_model(_DetectionFile, Store().read(path), path).root
        return cls([one["image_id"] for one in detections], [one["box"] for one in detections])

    def rows(self, image_id: int) -> slice:
        """Returns the rows of the boxes of an image."""
        return slice(*np.searchsorted(self.image_ids, (image_id, image_id + 1)).tolist())

    def boxes(self, image_id: int) -> NDArray[np.float64]:
        """Returns the (n, 4) boxes x, y, width, height of an image."""
        return self._boxes[self.rows(image_id)]


class _IdIndex:
    """Maps unique ids to their indices in a file."""

    def __init__(self, ids: Sequence[int], kind: str, path: str) -> None:
        self._kind, self._path = kind, path
        unsorted = np.array(ids, dtype=np.int64)
        self._order = np.argsort(unsorted)
        self._ids = unsorted[self._order]
        duplicates = self._ids[1:][self._ids[1:] == self._ids[:-1]]
        if len(duplicates):
            raise DataError(f"{path}: duplicate {kind} {duplicates[0]}")

    def index(self, number: int) -> int:
        row = int(np.searchsorted(self._ids, number))
        if row == len(self._ids) or self._ids[row] != number:
            raise DataError(f"{self._path}: has no {self._kind} {number}")
        return int(self._order[row])


class CocoIndex:
    """Image sizes and object boxes of a COCO annotation file, in a few arrays.

    No Python object is kept per record, so that loader workers share the memory.

    Args:
        path: json file, plain or in an archive. A file without `annotations` has no boxes.

    Raises:
        DataError: the file is missing, a record is invalid, or an id is duplicated.
    """

    def __init__(self, path: str) -> None:
        content = parse_model(_InstanceFile, Store().read(path), path)
        images, annotations = content.images, content.annotations
        self.path = path
        self._images = _IdIndex([image["id"] for image in images], "image", path)
        self._sizes = np.array([(image["width"], image["height"]) for image in images])
        self._annotations = _IdIndex([annotation["id"] for annotation in annotations], "annotation", path)
        self._all_boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
        self._table = BoxTable(
            [annotation["image_id"] for annotation in annotations],
            [annotation["bbox"] for annotation in annotations],
        )
        order = self._table.order
        self._ids = np.array([annotation["id"] for annotation in annotations], dtype=np.int64)[order]
        self._categories = np.array(
            [annotation["category_id"] for annotation in annotations], dtype=np.int64
        )[order]
        self._known_categories = _IdIndex(
            [category["id"] for category in content.categories], "category", path
        )
        self._file_names = np.array([image.get("file_name", "") for image in images])

    def annotated_images(self) -> NDArray[np.int64]:
        """Returns the ids of all images that have boxes, ascending."""
        return np.unique(self._table.image_ids)

    def file_name(self, image_id: int) -> str:
        """Returns the file name of an image; empty if unknown.

        Raises:
            DataError: the image is not in the file.
        """
        return str(self._file_names[self._images.index(image_id)])

    def size(self, image_id: int) -> tuple[int, int]:
        """Returns width and height of an image.

        Raises:
            DataError: the image is not in the file.
        """
        width, height = self._sizes[self._images.index(image_id)].tolist()
        return width, height

    def boxes(self, image_id: int) -> NDArray[np.float64]:
        """Returns (n, 4) boxes x, y, width, height of an image in file order, crowds included."""
        return self._table.boxes(image_id)

    def annotation_ids(self, image_id: int) -> NDArray[np.int64]:
        """Returns the (n,) annotation ids of the boxes of an image."""
        return self._ids[self._table.rows(image_id)]

    def categories(self, image_id: int) -> NDArray[np.int64]:
        """Returns the (n,) COCO categories of the boxes of an image."""
        return self._categories[self._table.rows(image_id)]

    def classes(self, image_id: int) -> NDArray[np.int64]:
        """Returns the (n,) classes of the boxes of an image: the position of the category in the file, from 1.

        Raises:
            DataError: the file does not list a category, or lists more than there are classes.
        """
        categories = self.categories(image_id).tolist()
        classes = [1 + self._known_categories.index(category) for category in categories]
        if classes and max(classes) >= len(CLASS_NAMES):
            raise DataError(
                f"{self.path}: a category of image {image_id} is number {max(classes)} of its list; expected "
                f"the {len(CLASS_NAMES) - 1} of COCO"
            )
        return np.array(classes, dtype=np.int64)

    def box(self, annotation_id: int) -> NDArray[np.float64]:
        """Returns the (4,) box x, y, width, height of an annotation.

        Raises:
            DataError: the annotation is not in the file.
        """
        box: NDArray[np.float64] = self._all_boxes[self._annotations.index(annotation_id)]
        return box


def first_captions(path: str) -> dict[int, str]:
    """Reads the first caption of every image from a COCO caption file.

    Raises:
        DataError: the file is missing, or a record is invalid.
    """
    captions: dict[int, str] = {}
    for annotation in parse_model(_CaptionFile, Store().read(path), path).annotations:
        captions.setdefault(annotation["image_id"], annotation["caption"])
    return captions
