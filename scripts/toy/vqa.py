"""VQA v2 of the toy world: colour, yes/no, number and place questions, each with the answers of 10 annotators.

Answers of every kind of question are uniform and independent of its words: a blind model gets about 30 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.progress import track
from scripts.toy.coco import Picture
from scripts.toy.regions import write_regions
from scripts.toy.world import (
    COLOURS,
    KINDS,
    PERSON,
    Scene,
    Thing,
    generator,
    pick,
    write_json,
    write_lines,
)

QUESTIONS_PER_PICTURE = 10
TRAIN_FACTOR = 4  # four kinds of questions want more of them than the other tasks need
REGIONS_36 = 4  # the `36` sets have a fixed number of regions; 36 would make the toy world three times as big
YES_NO, NUMBERS, NOUNS = ("yes", "no"), tuple("012345"), tuple(kind.noun for kind in KINDS)
ANSWERS = ("<unk>", *YES_NO, *NUMBERS, *COLOURS, *NOUNS, "nothing")
BOX_SETS = {
    "train2014": ("trainval2014_resnet101_faster_rcnn_genome", "trainval_resnet101_faster_rcnn_genome_36"),
    "val2014": ("trainval2014_resnet101_faster_rcnn_genome", "trainval_resnet101_faster_rcnn_genome_36"),
    "test2015": ("test2015_resnet101_faster_rcnn_genome", "test2015_resnet101_faster_rcnn_genome_36"),
}


class Question(NamedTuple):
    """A question, its true answer, the answers of the same kind, and the two type fields of VQA v2."""

    text: str
    answer: str
    family: Sequence[str]
    question_type: str
    answer_type: str


Form = Callable[[Scene, np.random.Generator], Question | None]


def _alone(scene: Scene) -> list[Thing]:
    """The things that are the only one of their kind: `the car` means one thing."""
    kinds = [thing.kind.name for thing in scene.things]
    return [thing for thing in scene.things if kinds.count(thing.kind.name) == 1]


def _colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not (things := _alone(scene)):
        return None
    thing = pick(rng, things)
    noun = thing.kind.noun
    text = pick(rng, (f"What colour is the {noun}?", f"Which colour does the {noun} have?"))
    if thing.kind is PERSON:
        text = pick(rng, ("What colour is the person wearing?", "What colour is the shirt of the person?"))
    return Question(text, thing.colour, tuple(COLOURS), "what colour is the", "other")


def _yes_no(scene: Scene, rng: np.random.Generator) -> Question:
    seen = [(thing.colour, thing.kind.noun) for thing in scene.things]
    answer = pick(rng, YES_NO)
    unseen = [(colour, noun) for colour in COLOURS for noun in NOUNS if (colour, noun) not in seen]
    colour, noun = pick(rng, seen if answer == "yes" else unseen)
    text = pick(rng, (f"Is there a {colour} {noun}?", f"Is a {colour} {noun} in the picture?"))
    return Question(text, answer, YES_NO, "is there a", "yes/no")


def _number(scene: Scene, rng: np.random.Generator) -> Question:
    text = pick(rng, ("How many objects are there?", "How many things are in the picture?"))
    return Question(text, str(len(scene.things)), NUMBERS, "how many", "number")


def _place(scene: Scene, rng: np.random.Generator) -> Question | None:
    pairs = [(a, b) for a in scene.things for b in _alone(scene) if a is not b and a.relation(b)]
    if not pairs:
        return None
    one, other = pick(rng, pairs)
    text = f"What is {one.relation(other)} the {other.kind.noun}?"
    return Question(text, one.kind.noun, NOUNS, "what is", "other")


def ask(scene: Scene, rng: np.random.Generator) -> Question:
    """A question about a scene: of 10, about 5 ask for colours, 3 yes or no, 1 a number, 1 what is somewhere.

    A picture may get the same question twice: avoiding that would use up the few true `yes` of a scene first.
    """
    forms: Sequence[Form] = (*[_colour] * 5, *[_yes_no] * 3, _number, _place)
    while True:
        if question := pick(rng, forms)(scene, rng):
            return question


def annotate(question: Question, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The answers of 10 annotators: at most two of them err."""
    said = [question.answer] * 10
    for i in rng.permutation(10)[: int(rng.integers(3))]:
        said[i] = pick(rng, question.family)
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(said)
    ]


def write_vqa(root: Path, image_set: str, pictures: Sequence[Picture], count: int, seed: int) -> None:
    """Writes region files, questions and annotations about the pictures of one set below the COCO folder `root`."""
    rng = generator(seed, "vqa", image_set)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, picture in enumerate(track(pictures, f"vqa {image_set}", unit="image")):
        scene, image_id = picture.scene, picture.image_id
        for folder, regions in zip(BOX_SETS[image_set], (0, REGIONS_36), strict=True):
            path = root / "vgbua_res101_precomputed" / folder / f"{image_id}.json"
            write_regions(path, image_id, scene, rng, count=regions)
        for k in range(min(QUESTIONS_PER_PICTURE, count - i * QUESTIONS_PER_PICTURE)):
            question = ask(scene, rng)
            ids = {"image_id": image_id, "question_id": 1000 * image_id + k}
            questions.append({**ids, "question": question.text})
            annotations.append({
                **ids, "multiple_choice_answer": question.answer, "answers": annotate(question, rng),
                "question_type": question.question_type, "answer_type": question.answer_type,
            })  # fmt: skip
    halves = (0, pictures[(len(pictures) - 1) // 2].image_id, pictures[-1].image_id)
    parts = {
        "train2014": {"train2014": (0, 2)},
        "val2014": {"val2014": (0, 2), "minival2014": (0, 1), "valminusminival2014": (1, 2)},
        "test2015": {"test2015": (0, 2), "test-dev2015": (0, 1)},
    }[image_set]
    about = {"info": {"description": "toy world", "version": "2.0"}, "license": {}, "data_subtype": image_set}
    for split, (first, last) in parts.items():
        for records, key, name in (
            (questions, "questions", f"v2_OpenEnded_mscoco_{split}_questions.json"),
            (annotations, "annotations", f"v2_mscoco_{split}_annotations.json"),
        ):
            kept = [record for record in records if halves[first] < record["image_id"] <= halves[last]]
            if key == "questions" or not image_set.startswith("test"):
                write_json(root / "vqa" / name, {**about, key: kept})
    write_lines(root / "vqa" / "answers_vqa.txt", ANSWERS)
