"""VCR of the toy world: questions about colours and places, each with 4 answers and 4 rationales.

The four choices differ in nothing but the colour (or the relation), the true one is uniform among them and
independent of all words, so a blind model stays at 25 %. A rationale is about another thing than the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.progress import track
from scripts.toy.world import (
    COLOURS,
    PERSON,
    RELATIONS,
    Scene,
    Thing,
    generator,
    jittered,
    make_scene,
    pick,
    save_picture,
    write_json,
    write_lines,
)

QUESTIONS_PER_PICTURE = 4
PICTURES_PER_CLIP = 25
RELATION_SHARE = 0.08
Tokens = list[Any]  # words, and lists of object indices


def deck(count: int, rng: np.random.Generator) -> list[int]:
    """`count` labels 0..3 in random order, as equally often as `count` allows."""
    return [int(label) for label in rng.permutation(np.arange(count) % 4)]


def _choices(true: str, options: list[str], label: int, rng: np.random.Generator) -> list[str]:
    """Four different options, the true one at position `label`, the wrong ones uniform among the others."""
    others = [option for option in options if option != true]
    chosen = [others[int(i)] for i in rng.permutation(len(others))[:3]]
    return [*chosen[:label], true, *chosen[label:]]


def _colour_texts(
    index: int, thing: Thing, label: int, rng: np.random.Generator
) -> tuple[Tokens, list[Tokens]]:
    colours = _choices(thing.colour, list(COLOURS), label, rng)
    if thing.kind is PERSON and rng.random() < 0.5:
        return ["what", "colour", "is", [index], "wearing", "?"], [
            [[index], "wears", c, "."] for c in colours
        ]
    return ["what", "colour", "is", [index], "?"], [[[index], "is", c, "."] for c in colours]


def _relation_texts(
    scene: Scene, label: int, rng: np.random.Generator
) -> tuple[int, Tokens, list[Tokens]] | None:
    """A question for one of the four relations, drawn first so that none is favoured by what scenes offer."""
    wanted = pick(rng, RELATIONS)
    numbered = list(enumerate(scene.things))
    pairs = [
        (i, j) for i, one in numbered for j, other in numbered if i != j and one.relation(other) == wanted
    ]
    if not pairs:
        return None
    i, j = pick(rng, pairs)
    answers: list[Tokens] = []
    for relation in _choices(wanted, list(RELATIONS), label, rng):
        answers.append([[i], "is", *relation.split(), [j], "."])
    return i, ["where", "is", [i], "?"], answers


def _rationales(about: int, scene: Scene, label: int, rng: np.random.Generator) -> list[Tokens]:
    """Reasons that differ in the colour of another thing than `about`."""
    other = pick(rng, [i for i in range(len(scene.things)) if i != about])
    subject: Tokens = [[other]] if rng.random() < 0.8 else [[other], "near", [about]]
    colours = _choices(scene.things[other].colour, list(COLOURS), label, rng)
    return [["because", *subject, "is", c, "."] for c in colours]


def make_record(scene: Scene, turn: int, labels: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    """Question, answers, rationales and labels of the `turn`-th item of a scene."""
    about = turn % len(scene.things)
    question, answers = _colour_texts(about, scene.things[about], labels[0], rng)
    if rng.random() < RELATION_SHARE and (found := _relation_texts(scene, labels[0], rng)):
        about, question, answers = found
    return {
        "objects": [thing.kind.vcr_name for thing in scene.things],
        "question": question,
        "answer_choices": answers,
        "answer_label": labels[0],
        "rationale_choices": _rationales(about, scene, labels[1], rng),
        "rationale_label": labels[1],
    }


def metadata(scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    """The metadata file of a picture: boxes with scores, polygons, names and size."""
    boxes = [jittered(thing.box, scene, rng, 1.0) for thing in scene.things]
    return {
        "boxes": [[*box, round(float(rng.uniform(0.8, 1.0)), 4)] for box in boxes],
        "segms": [[thing.outline] for thing in scene.things],
        "names": [thing.kind.vcr_name for thing in scene.things],
        "width": scene.width,
        "height": scene.height,
    }


def write_vcr(root: Path, split: str, count: int, seed: int) -> None:
    """Writes `vcr1images/` and `<split>.jsonl` with `count` items below `root`; the test set has no labels."""
    rng = generator(seed, "vcr", split)
    labels = list(zip(deck(count, rng), deck(count, rng), strict=True))
    lines = []
    for start in track(range(0, count, QUESTIONS_PER_PICTURE), f"vcr {split}", unit="image"):
        picture = start // QUESTIONS_PER_PICTURE
        clip = f"toy_{split}_{picture // PICTURES_PER_CLIP:04d}"
        name = f"{clip}/{picture:05d}@0"
        scene = make_scene(rng)
        save_picture(scene, rng, root / "vcr1images" / f"{name}.jpg")
        write_json(root / "vcr1images" / f"{name}.json", metadata(scene, rng))
        for turn, item in enumerate(range(start, min(start + QUESTIONS_PER_PICTURE, count))):
            record = {
                "movie": clip, "img_fn": f"{name}.jpg", "metadata_fn": f"{name}.json",
                "img_id": f"{split}-{picture}", "question_number": turn, "annot_id": f"{split}-{item}",
                **make_record(scene, turn, labels[item], rng),
            }  # fmt: skip
            if split == "test":
                del record["answer_label"], record["rationale_label"]
            lines.append(json.dumps(record))
    write_lines(root / f"{split}.jsonl", lines)
