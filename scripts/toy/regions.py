"""Region files of the toy world: what a detector with 1600 classes would have found in a picture.

Every class and colour has a fixed random direction; a region's features are the rectified sum of its two
directions and some noise. Values are multiples of 1/16: exact in float32, and archives stay small.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from scripts.toy.world import COLOURS, KINDS, Box, Scene, jittered, write_json

FEATURES = 2048
CLASSES = 1601  # column 0 is the background
_COLOUR_ROWS = {colour: len(KINDS) + i for i, colour in enumerate(COLOURS)}
_BACKGROUND_ROW = len(KINDS) + len(COLOURS)
# The same for all seeds: one toy world's model can read another toy world's features.
_DIRECTIONS = np.random.default_rng(2048).normal(0.0, 1.0, (_BACKGROUND_ROW + 1, FEATURES))


def region_class(kind: int, colour: int) -> int:
    """Column of the class scores for a class (index into `KINDS`) in a colour (index into `COLOURS`)."""
    return 1 + 33 * (kind * len(COLOURS) + colour)


def _encode(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def background_box(scene: Scene, rng: np.random.Generator) -> Box:
    """A box somewhere in the picture, of about the size of a thing."""
    x, y = rng.uniform(0, scene.width / 2), rng.uniform(0, scene.height / 2)
    return jittered((x, y, x + scene.width / 3, y + scene.height / 3), scene, rng, 3.0)


def write_regions(
    path: Path,
    image_id: int,
    scene: Scene,
    rng: np.random.Generator,
    count: int = 0,
    classes: bool = False,
    found: int = 1,
) -> None:
    """Writes the region file of a picture: its things and background, in random order.

    Args:
        path: File to write.
        image_id: Id of the picture.
        scene: What is in the picture.
        rng: Source of jitter, noise and order.
        count: Number of regions; 0 means one more than those of the things.
        classes: Also write the class scores (N, 1601), rows summing to one.
        found: Regions of each thing; several are boxed more loosely than one.
    """
    boxes, rows, tops = [], [], []
    for region in rng.permutation(count or found * len(scene.things) + 1):
        if region < found * len(scene.things):
            thing = scene.things[region // found]
            kind, colour = KINDS.index(thing.kind), list(COLOURS).index(thing.colour)
            boxes.append(jittered(thing.box, scene, rng, 2.0 * found))
            rows.append(_DIRECTIONS[kind] + _DIRECTIONS[_COLOUR_ROWS[thing.colour]])
            tops.append(region_class(kind, colour))
        else:
            boxes.append(background_box(scene, rng))
            rows.append(_DIRECTIONS[_BACKGROUND_ROW])
            tops.append(0)
    noisy = np.stack(rows) + rng.normal(0.0, 0.4, (len(rows), FEATURES))
    record = {
        "image_id": image_id, "image_w": scene.width, "image_h": scene.height, "num_boxes": len(boxes),
        "boxes": _encode(boxes), "features": _encode(np.round(noisy.clip(0) * 16) / 16),
    }  # fmt: skip
    if classes:
        scores = np.zeros((len(tops), CLASSES))
        for row, top in zip(scores, tops, strict=True):
            np.add.at(row, rng.integers(0, CLASSES, 4), rng.integers(1, 9, 4) / 128)
            row[top] += 1 - row.sum()  # multiples of 1/128: the sum is exactly one
        record["classes"] = _encode(scores)
    write_json(path, record)
