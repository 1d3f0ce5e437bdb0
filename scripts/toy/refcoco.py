"""RefCOCO+ of the toy world: expressions without places that fit exactly one of the things of a picture."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.progress import track
from scripts.toy.coco import Picture, corners_to_xywh, instances
from scripts.toy.regions import background_box
from scripts.toy.world import PERSON, Scene, Thing, generator, jittered, write_json

SENTENCES_PER_REF = 2


def expressions(scene: Scene, thing: Thing) -> list[str]:
    """All expressions that fit this thing and no other one of the scene."""
    others = [other for other in scene.things if other is not thing]
    same_kind = [other for other in others if other.kind is thing.kind]
    colour, noun = thing.colour, thing.kind.noun
    found = []
    if all(other.colour != colour for other in same_kind):
        found += [f"{colour} {noun}", f"the {colour} {noun}"]
        found += [f"person wearing {colour}"] if thing.kind is PERSON else []
        found.append(f"{noun} in {colour}")
    if all(other.colour != colour for other in others):
        found += [f"the {colour} one", f"{colour} thing"]
    if not same_kind:
        found.append(f"the {noun}")
    return found


def make_refs(sizes: Mapping[str, int], seed: int) -> tuple[list[dict[str, Any]], list[Picture]]:
    """Referring expressions, `sizes[split]` sentences in each split, and the pictures that they need.

    Args:
        sizes: Sentences of `train`, `val` and `test` (as many in testA as in testB).
        seed: Seed of the world.

    Returns:
        Records of `refs(unc).p` and the first pictures of train2014; train, val and test share no picture.
    """
    rng = generator(seed, "refcoco")
    left = {"train": sizes["train"], "val": sizes["val"], "testA": sizes["test"], "testB": sizes["test"]}
    refs: list[dict[str, Any]] = []
    pictures: list[Picture] = []
    for stage in (["train"], ["val"], ["testA", "testB"]):
        while any(left[split] > 0 for split in stage):
            pictures.append(Picture(seed, "train2014", len(pictures)))
            scene = pictures[-1].scene
            for thing, annotation in zip(scene.things, pictures[-1].annotations(), strict=True):
                split = stage[0] if thing.kind is PERSON else stage[-1]  # people are testA, all else is testB
                texts = expressions(scene, thing)
                chosen = rng.permutation(len(texts))[: min(SENTENCES_PER_REF, left[split])]
                if len(chosen):
                    left[split] -= len(chosen)
                    refs.append(
                        _ref(len(refs), split, pictures[-1], annotation, [texts[int(i)] for i in chosen])
                    )
    return refs, pictures


def _ref(
    ref_id: int, split: str, picture: Picture, annotation: Mapping[str, Any], texts: list[str]
) -> dict[str, Any]:
    ids = [SENTENCES_PER_REF * ref_id + i for i in range(len(texts))]
    return {
        "ref_id": ref_id, "ann_id": annotation["id"], "image_id": picture.image_id, "split": split, "sent_ids": ids,
        "category_id": annotation["category_id"], "file_name": f"{picture.file_name[:-4]}_{annotation['id']}.jpg",
        "sentences": [
            {"sent_id": i, "raw": text, "sent": text, "tokens": text.split()}
            for i, text in zip(ids, texts, strict=True)
        ],
    }  # fmt: skip


def proposals(picture: Picture, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Detections of a picture: every thing, loosely boxed, and a piece of background, in random order."""
    scene = picture.scene
    found = [(jittered(thing.box, scene, rng, 3.0), thing.kind) for thing in scene.things]
    found.append((background_box(scene, rng), PERSON))
    records = []
    for i in rng.permutation(len(found)):
        box, kind = found[i]
        records.append({
            "image_id": picture.image_id, "category_id": kind.coco_id, "category_name": kind.name,
            "box": corners_to_xywh(box), "score": round(float(rng.uniform(0.4, 1.0)), 4),
        })  # fmt: skip
    return records


def write_refcoco(root: Path, refs: list[dict[str, Any]], pictures: list[Picture], seed: int) -> None:
    """Writes `refcoco+/` below the COCO folder `root`; the pickle is of protocol 0, like the real one."""
    rng = generator(seed, "proposals")
    found = [
        record for picture in track(pictures, "refcoco+", unit="image") for record in proposals(picture, rng)
    ]
    folder = root / "refcoco+"
    numbered = [{"det_id": i, **record} for i, record in enumerate(found)]
    write_json(folder / "proposal" / "res101_coco_minus_refer_notime_dets.json", numbered)
    write_json(folder / "instances.json", instances(pictures))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
