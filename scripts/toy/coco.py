"""COCO of the toy world: pictures and annotation files that VQA, RefCOCO+ and COCO captions share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.progress import track
from scripts.toy.world import KINDS, Box, Scene, generator, make_scene, save_picture, write_json

FIRST_ID = {"train2014": 1, "val2014": 100_001, "test2015": 200_001, "val2017": 300_001}
_BY_ID = sorted(KINDS, key=lambda kind: kind.coco_id)
CATEGORIES = [{"supercategory": "toy", "id": kind.coco_id, "name": kind.name} for kind in _BY_ID]


def corners_to_xywh(box: Box) -> list[float]:
    """(x1, y1, x2, y2) as the [x, y, width, height] of COCO files."""
    x1, y1, x2, y2 = box
    return [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]


@dataclass(frozen=True)
class Picture:
    """A picture of a COCO set; what is in it depends on the seed, the set and its number there only."""

    seed: int
    image_set: str
    number: int

    @property
    def image_id(self) -> int:
        """COCO image id, different in all sets."""
        return FIRST_ID[self.image_set] + self.number

    @property
    def file_name(self) -> str:
        """Name of the file in the folder of the set."""
        prefix = "" if self.image_set.endswith("2017") else f"COCO_{self.image_set}_"
        return f"{prefix}{self.image_id:012d}.jpg"

    @property
    def scene(self) -> Scene:
        """What is in the picture: two to four things."""
        return make_scene(generator(self.seed, "coco", self.image_set, self.number), (2, 3, 4))

    def annotations(self) -> list[dict[str, Any]]:
        """COCO instance records of the things, in their order in the scene."""
        records = []
        for i, thing in enumerate(self.scene.things):
            x1, y1, x2, y2 = thing.box
            records.append({
                "id": 10 * self.image_id + i, "image_id": self.image_id, "category_id": thing.kind.coco_id,
                "bbox": corners_to_xywh(thing.box), "area": round((x2 - x1) * (y2 - y1), 2), "iscrowd": 0,
                "segmentation": [[value for point in thing.outline for value in point]],
            })  # fmt: skip
        return records


def image_index(pictures: Sequence[Picture]) -> dict[str, Any]:
    """The part of a COCO file that lists pictures and categories."""
    images = [
        {"id": p.image_id, "file_name": p.file_name, "width": p.scene.width, "height": p.scene.height}
        for p in pictures
    ]
    return {"info": {"description": "toy world"}, "licenses": [], "images": images, "categories": CATEGORIES}


def instances(pictures: Sequence[Picture]) -> dict[str, Any]:
    """A whole COCO instances file."""
    annotations = [record for picture in pictures for record in picture.annotations()]
    return {**image_index(pictures), "annotations": annotations}


def write_pictures(root: Path, image_set: str, count: int, seed: int) -> list[Picture]:
    """Writes the first `count` pictures of a set and its annotation file below the COCO folder `root`."""
    pictures = [Picture(seed, image_set, number) for number in range(count)]
    for picture in track(pictures, image_set, unit="image"):
        rng = generator(seed, "paint", image_set, picture.number)
        save_picture(picture.scene, rng, root / image_set / picture.file_name)
    if image_set.startswith("test"):
        write_json(root / "annotations" / f"image_info_{image_set}.json", image_index(pictures))
    else:
        write_json(root / "annotations" / f"instances_{image_set}.json", instances(pictures))
    return pictures
