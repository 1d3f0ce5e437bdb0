"""VQA v2 of the toy world: color, yes/no, number and position questions, each with the answers of 10 annotators.

For each type of question, answers are uniform and independent of its words: a blind model gets about 30 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.progress import track
from scripts.toy.coco import CocoImage
from scripts.toy.regions import write_regions
from scripts.toy.world import (
    CATEGORIES,
    COLORS,
    PERSON,
    Scene,
    SceneObject,
    generator,
    pick,
    write_json,
    write_lines,
)

QUESTIONS_PER_IMAGE = 10
TRAIN_FACTOR = 4  # four types of questions need more training data than the other tasks
REGIONS_36 = 4  # the `36` sets have a fixed number of regions; 36 would triple the size of the toy world
YES_NO, NUMBERS, NOUNS = ("yes", "no"), tuple("012345"), tuple(category.noun for category in CATEGORIES)
ANSWERS = ("<unk>", *YES_NO, *NUMBERS, *COLORS, *NOUNS, "nothing")
BOX_SETS = {
    "train2014": ("trainval2014_resnet101_faster_rcnn_genome", "trainval_resnet101_faster_rcnn_genome_36"),
    "val2014": ("trainval2014_resnet101_faster_rcnn_genome", "trainval_resnet101_faster_rcnn_genome_36"),
    "test2015": ("test2015_resnet101_faster_rcnn_genome", "test2015_resnet101_faster_rcnn_genome_36"),
}


class Question(NamedTuple):
    """A question with its correct answer, the possible answers, and the two type fields of VQA v2."""

    text: str
    answer: str
    options: Sequence[str]
    question_type: str
    answer_type: str


QuestionType = Callable[[Scene, np.random.Generator], Question | None]


def _unique_objects(scene: Scene) -> list[SceneObject]:
    """Returns the objects that are the only one of their category: `the car` is unambiguous."""
    names = [each.category.name for each in scene.objects]
    return [each for each in scene.objects if names.count(each.category.name) == 1]


def _color(scene: Scene, rng: np.random.Generator) -> Question | None:
    if not (objects := _unique_objects(scene)):
        return None
    subject = pick(rng, objects)
    noun = subject.category.noun
    text = pick(rng, (f"What colour is the {noun}?", f"Which colour does the {noun} have?"))
    if subject.category is PERSON:
        text = pick(rng, ("What colour is the person wearing?", "What colour is the shirt of the person?"))
    return Question(text, subject.color, tuple(COLORS), "what colour is the", "other")


def _yes_no(scene: Scene, rng: np.random.Generator) -> Question:
    present = [(each.color, each.category.noun) for each in scene.objects]
    answer = pick(rng, YES_NO)
    absent = [(color, noun) for color in COLORS for noun in NOUNS if (color, noun) not in present]
    color, noun = pick(rng, present if answer == "yes" else absent)
    text = pick(rng, (f"Is there a {color} {noun}?", f"Is a {color} {noun} in the picture?"))
    return Question(text, answer, YES_NO, "is there a", "yes/no")


def _number(scene: Scene, rng: np.random.Generator) -> Question:
    text = pick(rng, ("How many objects are there?", "How many things are in the picture?"))
    return Question(text, str(len(scene.objects)), NUMBERS, "how many", "number")


def _position(scene: Scene, rng: np.random.Generator) -> Question | None:
    unique = _unique_objects(scene)
    pairs = [(a, b) for a in scene.objects for b in unique if a is not b and a.relation(b)]
    if not pairs:
        return None
    subject, other = pick(rng, pairs)
    text = f"What is {subject.relation(other)} the {other.category.noun}?"
    return Question(text, subject.category.noun, NOUNS, "what is", "other")


def make_question(scene: Scene, rng: np.random.Generator) -> Question:
    """Returns a question about a scene: of 10, about 5 ask for a color, 3 yes or no, 1 a number, 1 an object.

    An image may get the same question twice: excluding duplicates would use up the few true `yes` of a scene first.
    """
    question_types: Sequence[QuestionType] = (*[_color] * 5, *[_yes_no] * 3, _number, _position)
    while True:
        if question := pick(rng, question_types)(scene, rng):
            return question


def annotate(question: Question, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns the answers of 10 annotators, of which up to two may be wrong."""
    answers = [question.answer] * 10
    for i in rng.permutation(10)[: int(rng.integers(3))]:
        answers[i] = pick(rng, question.options)
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(answers)
    ]


def write_vqa(root: Path, image_set: str, images: Sequence[CocoImage], count: int, seed: int) -> None:
    """Writes region files, questions and annotations of one image set below the COCO root."""
    rng = generator(seed, "vqa", image_set)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(track(images, f"vqa {image_set}", unit="image")):
        scene, image_id = image.scene, image.image_id
        for folder, num_regions in zip(BOX_SETS[image_set], (0, REGIONS_36), strict=True):
            path = root / "vgbua_res101_precomputed" / folder / f"{image_id}.json"
            write_regions(path, image_id, scene, rng, count=num_regions)
        for k in range(min(QUESTIONS_PER_IMAGE, count - i * QUESTIONS_PER_IMAGE)):
            question = make_question(scene, rng)
            ids = {"image_id": image_id, "question_id": 1000 * image_id + k}
            questions.append({**ids, "question": question.text})
            annotations.append({
                **ids, "multiple_choice_answer": question.answer, "answers": annotate(question, rng),
                "question_type": question.question_type, "answer_type": question.answer_type,
            })  # fmt: skip
    # Splits of the image set, each a range of image ids: all of it, or one half.
    middle, last = images[(len(images) - 1) // 2].image_id, images[-1].image_id
    splits = {
        "train2014": {"train2014": (0, last)},
        "val2014": {"val2014": (0, last), "minival2014": (0, middle), "valminusminival2014": (middle, last)},
        "test2015": {"test2015": (0, last), "test-dev2015": (0, middle)},
    }[image_set]
    header = {
        "info": {"description": "toy world", "version": "2.0"},
        "license": {},
        "data_subtype": image_set,
    }
    for split, (after, until) in splits.items():
        for records, key, name in (
            (questions, "questions", f"v2_OpenEnded_mscoco_{split}_questions.json"),
            (annotations, "annotations", f"v2_mscoco_{split}_annotations.json"),
        ):
            selected = [record for record in records if after < record["image_id"] <= until]
            if key == "questions" or not image_set.startswith("test"):
                write_json(root / "vqa" / name, {**header, key: selected})
    write_lines(root / "vqa" / "answers_vqa.txt", ANSWERS)
