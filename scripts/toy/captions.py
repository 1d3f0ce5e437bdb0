"""Pre-training data of the toy world: captions with pictures and region files, COCO captions, a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from common.progress import track
from scripts.toy.coco import image_index, write_pictures
from scripts.toy.regions import write_regions
from scripts.toy.world import (
    Scene,
    generator,
    make_scene,
    pick,
    save_picture,
    write_json,
    write_lines,
)

CAPTIONS_PER_PICTURE = 2
COUNTS = (1, 2, 2, 3)  # things of a scene
REGIONS_PER_THING = (
    2  # a hidden region can be told from the other one, as among a detector's overlapping boxes
)


def caption(scene: Scene, rng: np.random.Generator, article: str = "") -> str:
    """A true text that names everything in a scene, such as `red ball left of blue person`.

    The words are the same for all kinds, so what is said of a thing tells nothing of its kind.
    """
    things = [scene.things[int(i)] for i in rng.permutation(len(scene.things))]
    phrases = [f"{article}{thing.colour} {thing.kind.noun}" for thing in things]
    words = phrases[0]
    for before, thing, phrase in zip(things, things[1:], phrases[1:], strict=False):
        words += f" {before.relation(thing) or 'and'} {phrase}"
    return words


def write_conceptual_captions(root: Path, split: str, count: int, seed: int) -> None:
    """Writes `<split>_image/`, `<split>_frcnn/` and `<split>_frcnn.json` of `count` captions below `root`."""
    rng = generator(seed, "captions", split)
    lines = []
    for start in track(range(0, count, CAPTIONS_PER_PICTURE), f"captions {split}", unit="image"):
        number = start // CAPTIONS_PER_PICTURE
        scene = make_scene(rng, COUNTS)
        save_picture(scene, rng, root / f"{split}_image" / f"{number:08d}.jpg")
        path = root / f"{split}_frcnn" / f"{number:08d}.json"
        write_regions(path, number, scene, rng, classes=True, found=REGIONS_PER_THING)
        files = f"{split}_image.zip@/{number:08d}.jpg", f"{split}_frcnn.zip@/{number:08d}.json"
        for _ in range(min(CAPTIONS_PER_PICTURE, count - start)):
            words = caption(scene, rng).split()
            lines.append(json.dumps({"image": files[0], "caption": words, "frcnn": files[1]}))
    write_lines(root / f"{split}_frcnn.json", lines)


def write_coco_captions(root: Path, count: int, seed: int) -> None:
    """Writes val2017 with its instances and one caption per picture below the COCO folder `root`."""
    rng = generator(seed, "captions", "val2017")
    pictures = write_pictures(root, "val2017", count, seed)
    annotations = []
    for i, picture in enumerate(pictures):
        text = caption(picture.scene, rng, article="a ").capitalize()
        annotations.append({"id": i + 1, "image_id": picture.image_id, "caption": f"{text}."})
    index = {**image_index(pictures), "annotations": annotations}
    write_json(root / "annotations" / "captions_val2017.json", index)


def write_corpus(root: Path, count: int, seed: int) -> None:
    """Writes `wiki.doc` and `bc1g.doc` of `count` lines each below `root`."""
    for name, beginnings in {
        "wiki.doc": ("in the old town there was", "the picture shows", "on the hill stood"),
        "bc1g.doc": ("yesterday i saw", "she painted", "he looked at the picture and saw"),
    }.items():
        rng = generator(seed, "corpus", name)
        said = (caption(make_scene(rng), rng, article="a ") for _ in range(count))
        write_lines(root / name, (f"{pick(rng, beginnings)} {words} ." for words in said))
