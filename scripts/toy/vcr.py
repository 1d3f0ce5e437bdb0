"""VCR of the toy world: questions about colors and positions, each with 4 answers and 4 rationales.

The four choices differ only in the color (or the relation). The correct one is uniform among them and independent of
all words, so a blind model stays at 25 %. A rationale is about another object than the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.progress import track
from scripts.toy.world import (
    COLORS,
    PERSON,
    RELATIONS,
    Scene,
    SceneObject,
    generator,
    jittered,
    make_scene,
    pick,
    save_image,
    write_json,
    write_lines,
)

QUESTIONS_PER_IMAGE = 4
IMAGES_PER_CLIP = 25
RELATION_PROB = 0.08
Tokens = list[Any]  # words, and lists of object indices


def balanced_labels(count: int, rng: np.random.Generator) -> list[int]:
    """Returns `count` labels 0..3 in random order, each equally often as far as `count` allows."""
    return [int(label) for label in rng.permutation(np.arange(count) % 4)]


def _choices(correct: str, options: list[str], label: int, rng: np.random.Generator) -> list[str]:
    """Returns four different options: the correct one at index `label`, three random others."""
    others = [option for option in options if option != correct]
    wrong = [others[int(i)] for i in rng.permutation(len(others))[:3]]
    return [*wrong[:label], correct, *wrong[label:]]


def _color_texts(
    index: int, scene_object: SceneObject, label: int, rng: np.random.Generator
) -> tuple[Tokens, list[Tokens]]:
    colors = _choices(scene_object.color, list(COLORS), label, rng)
    if scene_object.category is PERSON and rng.random() < 0.5:
        question = ["what", "colour", "is", [index], "wearing", "?"]
        return question, [[[index], "wears", color, "."] for color in colors]
    return ["what", "colour", "is", [index], "?"], [[[index], "is", color, "."] for color in colors]


def _relation_texts(
    scene: Scene, label: int, rng: np.random.Generator
) -> tuple[int, Tokens, list[Tokens]] | None:
    """Returns subject, question and answers. The relation is drawn first, so that all four are equally likely."""
    relation = pick(rng, RELATIONS)
    pairs = [
        (i, j)
        for i, subject in enumerate(scene.objects)
        for j, other in enumerate(scene.objects)
        if i != j and subject.relation(other) == relation
    ]
    if not pairs:
        return None
    i, j = pick(rng, pairs)
    relations = _choices(relation, list(RELATIONS), label, rng)
    answers: list[Tokens] = [[[i], "is", *choice.split(), [j], "."] for choice in relations]
    return i, ["where", "is", [i], "?"], answers


def _rationales(subject: int, scene: Scene, label: int, rng: np.random.Generator) -> list[Tokens]:
    """Returns rationales that differ in the color of another object than the subject of the question."""
    other = pick(rng, [i for i in range(len(scene.objects)) if i != subject])
    phrase: Tokens = [[other]] if rng.random() < 0.8 else [[other], "near", [subject]]
    colors = _choices(scene.objects[other].color, list(COLORS), label, rng)
    return [["because", *phrase, "is", color, "."] for color in colors]


def make_record(
    scene: Scene, question_number: int, labels: tuple[int, int], rng: np.random.Generator
) -> dict[str, Any]:
    """Returns question, answers, rationales and labels of one item about a scene."""
    subject = question_number % len(scene.objects)
    question, answers = _color_texts(subject, scene.objects[subject], labels[0], rng)
    if rng.random() < RELATION_PROB and (texts := _relation_texts(scene, labels[0], rng)):
        subject, question, answers = texts
    return {
        "objects": [each.category.vcr_name for each in scene.objects],
        "question": question,
        "answer_choices": answers,
        "answer_label": labels[0],
        "rationale_choices": _rationales(subject, scene, labels[1], rng),
        "rationale_label": labels[1],
    }


def metadata(scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    """Returns the metadata file of an image: boxes with scores, polygons, names and size."""
    boxes = [jittered(each.box, scene, rng, 1.0) for each in scene.objects]
    return {
        "boxes": [[*box, round(float(rng.uniform(0.8, 1.0)), 4)] for box in boxes],
        "segms": [[each.outline] for each in scene.objects],
        "names": [each.category.vcr_name for each in scene.objects],
        "width": scene.width,
        "height": scene.height,
    }


def write_vcr(root: Path, split: str, count: int, seed: int) -> None:
    """Writes `vcr1images/` and `<split>.jsonl` with `count` items below `root`; the test split has no labels."""
    rng = generator(seed, "vcr", split)
    labels = list(zip(balanced_labels(count, rng), balanced_labels(count, rng), strict=True))
    lines = []
    for start in track(range(0, count, QUESTIONS_PER_IMAGE), f"vcr {split}", unit="image"):
        index = start // QUESTIONS_PER_IMAGE
        clip = f"toy_{split}_{index // IMAGES_PER_CLIP:04d}"
        name = f"{clip}/{index:05d}@0"
        scene = make_scene(rng)
        save_image(scene, rng, root / "vcr1images" / f"{name}.jpg")
        write_json(root / "vcr1images" / f"{name}.json", metadata(scene, rng))
        for question_number, item in enumerate(range(start, min(start + QUESTIONS_PER_IMAGE, count))):
            record = {
                "movie": clip, "img_fn": f"{name}.jpg", "metadata_fn": f"{name}.json",
                "img_id": f"{split}-{index}", "question_number": question_number, "annot_id": f"{split}-{item}",
                **make_record(scene, question_number, labels[item], rng),
            }  # fmt: skip
            if split == "test":
                del record["answer_label"], record["rationale_label"]
            lines.append(json.dumps(record))
    write_lines(root / f"{split}.jsonl", lines)
