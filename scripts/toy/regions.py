"""Region files of the toy world: the output of an imaginary detector with 1,600 classes.

Every category and color has a fixed random direction. The features of a region are the rectified sum of two directions
and noise. Values are multiples of 1/16: exact in float32, and small when compressed.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from scripts.toy.world import CATEGORIES, COLORS, Box, Scene, jittered, write_json

FEATURES = 2048
CLASSES = 1601  # column 0 is the background
_COLOR_ROWS = {color: len(CATEGORIES) + i for i, color in enumerate(COLORS)}
_BACKGROUND_ROW = len(CATEGORIES) + len(COLORS)
# Independent of the seed: a model of one toy world can read the features of another.
_DIRECTIONS = np.random.default_rng(2048).normal(0.0, 1.0, (_BACKGROUND_ROW + 1, FEATURES))


def region_class(category: int, color: int) -> int:
    """Returns the class of a region; `category` and `color` index `CATEGORIES` and `COLORS`."""
    return 1 + 33 * (category * len(COLORS) + color)


def background_box(scene: Scene, rng: np.random.Generator) -> Box:
    """Returns a box anywhere in the image, about as large as an object."""
    x, y = rng.uniform(0, scene.width / 2), rng.uniform(0, scene.height / 2)
    return jittered((x, y, x + scene.width / 3, y + scene.height / 3), scene, rng, 3.0)


def write_regions(
    path: Path,
    image_id: int,
    scene: Scene,
    rng: np.random.Generator,
    count: int = 0,
    with_class_scores: bool = False,
    regions_per_object: int = 1,
) -> None:
    """Writes the region file of an image: its objects and background, in random order.

    Args:
        path: file to write.
        image_id: id of the image.
        scene: content of the image.
        rng: source of jitter, noise and order.
        count: number of regions; 0 means those of the objects and one of background.
        with_class_scores: also write the class scores (N, 1601); rows sum to one.
        regions_per_object: the more there are, the looser are the boxes.
    """
    boxes, means, class_ids = [], [], []
    num_object_regions = regions_per_object * len(scene.objects)
    for region in rng.permutation(count or num_object_regions + 1):
        if region < num_object_regions:
            scene_object = scene.objects[region // regions_per_object]
            category = CATEGORIES.index(scene_object.category)
            boxes.append(jittered(scene_object.box, scene, rng, 2.0 * regions_per_object))
            means.append(_DIRECTIONS[category] + _DIRECTIONS[_COLOR_ROWS[scene_object.color]])
            class_ids.append(region_class(category, list(COLORS).index(scene_object.color)))
        else:
            boxes.append(background_box(scene, rng))
            means.append(_DIRECTIONS[_BACKGROUND_ROW])
            class_ids.append(0)
    features = np.stack(means) + rng.normal(0.0, 0.4, (len(means), FEATURES))
    record = {
        "image_id": image_id, "image_w": scene.width, "image_h": scene.height, "num_boxes": len(boxes),
        "boxes": _encode(boxes), "features": _encode(np.round(features.clip(0) * 16) / 16),
    }  # fmt: skip
    if with_class_scores:
        scores = np.zeros((len(class_ids), CLASSES))
        for row, class_id in zip(scores, class_ids, strict=True):
            np.add.at(row, rng.integers(0, CLASSES, 4), rng.integers(1, 9, 4) / 128)
            row[class_id] += 1 - row.sum()  # multiples of 1/128: the sum is exactly one
        record["classes"] = _encode(scores)
    write_json(path, record)


def _encode(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")
