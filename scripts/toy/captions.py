"""Pre-training data of the toy world: captioned images with region files, COCO captions, and a text corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from common.progress import track
from scripts.toy.coco import image_index, write_images
from scripts.toy.regions import write_regions
from scripts.toy.world import (
    Scene,
    generator,
    make_scene,
    pick,
    save_image,
    write_json,
    write_lines,
)

CAPTIONS_PER_IMAGE = 2
OBJECT_COUNTS = (1, 2, 2, 3)
# Two overlapping regions per object, as from a real detector: the other one helps to classify a masked region.
REGIONS_PER_OBJECT = 2


def caption(scene: Scene, rng: np.random.Generator, article: str = "") -> str:
    """Returns a true caption that names every object of a scene, such as `red ball left of blue person`.

    The template is the same for all categories, so the rest of a caption carries no information about a masked noun.
    """
    objects = [scene.objects[int(i)] for i in rng.permutation(len(scene.objects))]
    phrases = [f"{article}{each.color} {each.category.noun}" for each in objects]
    text = phrases[0]
    for previous, current, phrase in zip(objects, objects[1:], phrases[1:], strict=False):
        text += f" {previous.relation(current) or 'and'} {phrase}"
    return text


def write_conceptual_captions(root: Path, split: str, count: int, seed: int) -> None:
    """Writes `<split>_image/`, `<split>_frcnn/` and `<split>_frcnn.json` with `count` captions below `root`."""
    rng = generator(seed, "captions", split)
    lines = []
    for start in track(range(0, count, CAPTIONS_PER_IMAGE), f"captions {split}", unit="image"):
        index = start // CAPTIONS_PER_IMAGE
        scene = make_scene(rng, OBJECT_COUNTS)
        save_image(scene, rng, root / f"{split}_image" / f"{index:08d}.jpg")
        path = root / f"{split}_frcnn" / f"{index:08d}.json"
        write_regions(path, index, scene, rng, with_class_scores=True, regions_per_object=REGIONS_PER_OBJECT)
        for _ in range(min(CAPTIONS_PER_IMAGE, count - start)):
            record = {
                "image": f"{split}_image.zip@/{index:08d}.jpg",
                "caption": caption(scene, rng).split(),
                "frcnn": f"{split}_frcnn.zip@/{index:08d}.json",
            }
            lines.append(json.dumps(record))
    write_lines(root / f"{split}_frcnn.json", lines)


def write_coco_captions(root: Path, count: int, seed: int) -> None:
    """Writes val2017 with its instances and one caption per image below the COCO root."""
    rng = generator(seed, "captions", "val2017")
    images = write_images(root, "val2017", count, seed)
    annotations = []
    for i, image in enumerate(images):
        text = caption(image.scene, rng, article="a ").capitalize()
        annotations.append({"id": i + 1, "image_id": image.image_id, "caption": f"{text}."})
    captions = {**image_index(images), "annotations": annotations}
    write_json(root / "annotations" / "captions_val2017.json", captions)


def write_corpus(root: Path, count: int, seed: int) -> None:
    """Writes `wiki.doc` and `bc1g.doc` with `count` lines each below `root`."""
    for name, openings in {
        "wiki.doc": ("in the old town there was", "the picture shows", "on the hill stood"),
        "bc1g.doc": ("yesterday i saw", "she painted", "he looked at the picture and saw"),
    }.items():
        rng = generator(seed, "corpus", name)
        captions = (caption(make_scene(rng), rng, article="a ") for _ in range(count))
        write_lines(root / name, (f"{pick(rng, openings)} {text} ." for text in captions))
