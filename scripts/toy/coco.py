"""COCO of the toy world: the images and annotation files that VQA, RefCOCO+ and COCO captions share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.progress import track
from scripts.toy.world import CATEGORIES, Box, Scene, generator, make_scene, save_image, write_json

FIRST_ID = {"train2014": 1, "val2014": 100_001, "test2015": 200_001, "val2017": 300_001}
COCO_CATEGORIES = [
    {"supercategory": "toy", "id": category.coco_id, "name": category.name}
    for category in sorted(CATEGORIES, key=lambda category: category.coco_id)
]


def corners_to_xywh(box: Box) -> list[float]:
    """Converts (x1, y1, x2, y2) to the [x, y, width, height] of COCO files."""
    x1, y1, x2, y2 = box
    return [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]


@dataclass(frozen=True)
class CocoImage:
    """An image of a COCO split; its content depends only on these three fields."""

    seed: int
    image_set: str
    index: int

    @property
    def image_id(self) -> int:
        """COCO image id, unique over all splits."""
        return FIRST_ID[self.image_set] + self.index

    @property
    def file_name(self) -> str:
        prefix = "" if self.image_set.endswith("2017") else f"COCO_{self.image_set}_"
        return f"{prefix}{self.image_id:012d}.jpg"

    @property
    def scene(self) -> Scene:
        return make_scene(generator(self.seed, "coco", self.image_set, self.index), (2, 3, 4))

    def annotations(self) -> list[dict[str, Any]]:
        """Returns the COCO instance record of each object, in the order of the scene."""
        records = []
        for i, scene_object in enumerate(self.scene.objects):
            x1, y1, x2, y2 = scene_object.box
            records.append({
                "id": 10 * self.image_id + i, "image_id": self.image_id,
                "category_id": scene_object.category.coco_id, "bbox": corners_to_xywh(scene_object.box),
                "area": round((x2 - x1) * (y2 - y1), 2), "iscrowd": 0,
                "segmentation": [[value for point in scene_object.outline for value in point]],
            })  # fmt: skip
        return records


def image_index(images: Sequence[CocoImage]) -> dict[str, Any]:
    """Returns the part of a COCO file that lists images and categories."""
    records = []
    for image in images:
        scene = image.scene
        records.append(
            {"id": image.image_id, "file_name": image.file_name, "width": scene.width, "height": scene.height}
        )
    info = {"description": "toy world"}
    return {"info": info, "licenses": [], "images": records, "categories": COCO_CATEGORIES}


def instances(images: Sequence[CocoImage]) -> dict[str, Any]:
    """Returns the content of a COCO instances file."""
    return {
        **image_index(images),
        "annotations": [record for image in images for record in image.annotations()],
    }


def write_images(root: Path, image_set: str, count: int, seed: int) -> list[CocoImage]:
    """Writes the first `count` images of a split and its annotation file below the COCO root."""
    images = [CocoImage(seed, image_set, index) for index in range(count)]
    for image in track(images, image_set, unit="image"):
        rng = generator(seed, "paint", image_set, image.index)
        save_image(image.scene, rng, root / image_set / image.file_name)
    is_test = image_set.startswith("test")
    name = f"{'image_info' if is_test else 'instances'}_{image_set}.json"
    write_json(root / "annotations" / name, image_index(images) if is_test else instances(images))
    return images
