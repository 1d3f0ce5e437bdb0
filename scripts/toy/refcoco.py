"""RefCOCO+ of the toy world: expressions without positions that fit exactly one object of an image."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.progress import track
from scripts.toy.coco import CocoImage, corners_to_xywh, instances
from scripts.toy.regions import background_box
from scripts.toy.world import PERSON, Scene, SceneObject, generator, jittered, write_json

SENTENCES_PER_REF = 2


def expressions(scene: Scene, target: SceneObject) -> list[str]:
    """Returns all expressions that fit `target` and no other object of the scene."""
    others = [other for other in scene.objects if other is not target]
    same_category = [other for other in others if other.category is target.category]
    color, noun = target.color, target.category.noun
    texts = []
    if all(other.color != color for other in same_category):
        texts += [f"{color} {noun}", f"the {color} {noun}"]
        texts += [f"person wearing {color}"] if target.category is PERSON else []
        texts.append(f"{noun} in {color}")
    if all(other.color != color for other in others):
        texts += [f"the {color} one", f"{color} thing"]
    if not same_category:
        texts.append(f"the {noun}")
    return texts


def make_refs(sizes: Mapping[str, int], seed: int) -> tuple[list[dict[str, Any]], list[CocoImage]]:
    """Draws referring expressions, `sizes[split]` sentences per split.

    Args:
        sizes: sentences of `train`, `val` and `test` (as many in testA as in testB).
        seed: seed of the world.

    Returns:
        The records of `refs(unc).p`, and their images, the first of train2014; train, val and test share none.
    """
    rng = generator(seed, "refcoco")
    missing = {"train": sizes["train"], "val": sizes["val"], "testA": sizes["test"], "testB": sizes["test"]}
    refs: list[dict[str, Any]] = []
    images: list[CocoImage] = []
    for splits in (["train"], ["val"], ["testA", "testB"]):
        while any(missing[split] > 0 for split in splits):
            image = CocoImage(seed, "train2014", len(images))
            images.append(image)
            scene = image.scene
            for target, annotation in zip(scene.objects, image.annotations(), strict=True):
                # testA contains people, testB everything else.
                split = splits[0] if target.category is PERSON else splits[-1]
                texts = expressions(scene, target)
                indices = rng.permutation(len(texts))[: min(SENTENCES_PER_REF, missing[split])]
                if len(indices):
                    missing[split] -= len(indices)
                    sentences = []
                    for i, text in enumerate(
                        (texts[int(index)] for index in indices), SENTENCES_PER_REF * len(refs)
                    ):
                        sentences.append({"sent_id": i, "raw": text, "sent": text, "tokens": text.split()})
                    refs.append({
                        "ref_id": len(refs), "ann_id": annotation["id"], "image_id": image.image_id, "split": split,
                        "sent_ids": [sentence["sent_id"] for sentence in sentences],
                        "category_id": annotation["category_id"],
                        "file_name": f"{image.file_name[:-4]}_{annotation['id']}.jpg", "sentences": sentences,
                    })  # fmt: skip
    return refs, images


def proposals(image: CocoImage, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns detections of an image, in random order: every object with a loose box, and one box of background."""
    scene = image.scene
    detections = [(jittered(each.box, scene, rng, 3.0), each.category) for each in scene.objects]
    detections.append((background_box(scene, rng), PERSON))
    records = []
    for i in rng.permutation(len(detections)):
        box, category = detections[i]
        records.append({
            "image_id": image.image_id, "category_id": category.coco_id, "category_name": category.name,
            "box": corners_to_xywh(box), "score": round(float(rng.uniform(0.4, 1.0)), 4),
        })  # fmt: skip
    return records


def write_refcoco(root: Path, refs: list[dict[str, Any]], images: list[CocoImage], seed: int) -> None:
    """Writes `refcoco+/` below the COCO root; the pickle has protocol 0, like the original."""
    rng = generator(seed, "proposals")
    detections = [
        record for image in track(images, "refcoco+", unit="image") for record in proposals(image, rng)
    ]
    folder = root / "refcoco+"
    write_json(
        folder / "proposal" / "res101_coco_minus_refer_notime_dets.json",
        [{"det_id": i, **record} for i, record in enumerate(detections)],
    )
    write_json(folder / "instances.json", instances(images))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
