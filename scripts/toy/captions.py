"""Pre-training data of the toy world: captions with pictures and region files, COCO captions, a corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from scripts.toy.coco import image_index, write_pictures
from scripts.toy.regions import write_regions
from scripts.toy.world import (
    PERSON,
    Scene,
    Thing,
    generator,
    make_scene,
    pick,
    progress,
    save_picture,
    write_json,
    write_lines,
)

CAPTIONS_PER_PICTURE = 12


def _phrase(thing: Thing) -> str:
    if thing.kind is PERSON:
        return f"a person in a {thing.colour} shirt"
    return f"a {thing.colour} {thing.kind.noun}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true sentence about two things of a scene, such as `a red ball left of a person in a blue shirt`."""
    one, other = (scene.things[int(i)] for i in rng.permutation(len(scene.things))[:2])
    return f"{_phrase(one)} {one.relation(other) or 'and'} {_phrase(other)}"


def write_conceptual_captions(root: Path, split: str, count: int, seed: int) -> None:
    """Writes `<split>_image/`, `<split>_frcnn/` and `<split>_frcnn.json` of `count` captions below `root`."""
    rng = generator(seed, "captions", split)
    lines = []
    for start in progress(range(0, count, CAPTIONS_PER_PICTURE), f"captions {split}"):
        number = start // CAPTIONS_PER_PICTURE
        scene = make_scene(rng, (2, 3, 4))
        save_picture(scene, rng, root / f"{split}_image" / f"{number:08d}.jpg")
        write_regions(root / f"{split}_frcnn" / f"{number:08d}.json", number, scene, rng, classes=True)
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
        text = caption(picture.scene, rng).capitalize()
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
        write_lines(
            root / name, (f"{pick(rng, beginnings)} {caption(make_scene(rng), rng)} ." for _ in range(count))
        )
