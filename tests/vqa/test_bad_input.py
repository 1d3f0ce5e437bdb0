"""What is wrong outside of VQA's program: one clear message, the right exit status, nothing half-written."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.bad_input import (
    CONFIGURATION,
    FAILED,
    FILES,
    IMAGE_WEIGHTS,
    OK,
    USAGE,
    Case,
    check,
    evaluation_cases,
    rewrite_zip,
    train,
    truncate,
)
from tests.vqa.test_commands import PIXELS
from tests.vqa.world import World

pytestmark = pytest.mark.integration

REGIONS = "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"
RECORD = r"VQADataset item \d+ \(record \d+\): .*"

Corruption = Callable[[World], object]


def questions(change: Callable[[list[dict]], object]) -> Corruption:
    return lambda world: world.edit(world.questions(), change)


def annotations(change: Callable[[list[dict]], object]) -> Corruption:
    return lambda world: world.edit(world.annotations(), change)


def regions(change: Callable[[dict], object]) -> Corruption:
    return lambda world: world.edit_regions(change)


def vocabulary(change: Callable[[str], str]) -> Corruption:
    return lambda world: world.answers.write_text(change(world.answers.read_text()))


def with_nan(content: dict) -> None:
    values = np.frombuffer(base64.b64decode(content["features"]), "<f4").copy()
    values[3] = np.nan
    content["features"] = base64.b64encode(values.tobytes()).decode()


def narrower(content: dict) -> None:
    values = np.frombuffer(base64.b64decode(content["features"]), "<f4").reshape(content["num_boxes"], -1)
    content["features"] = base64.b64encode(values[:, :1024].tobytes()).decode()


def no_regions(content: dict) -> None:
    content.update(num_boxes=0, boxes="", features="")


def unknown_everywhere(records: list[dict]) -> None:
    for record in records:
        for answer in record["answers"]:
            answer["answer"] = "something else"


def picture(world: World) -> Path:
    return next((world.data / "train2014").iterdir())


CASES = [
    *CONFIGURATION,
    *FILES,
    Case(
        IMAGE_WEIGHTS.name,
        train(*PIXELS, "NETWORK.IMAGE_PRETRAINED=/nowhere/resnet"),
        FAILED,
        IMAGE_WEIGHTS.message,
    ),
    *evaluation_cases("val"),
    *evaluation_cases("test"),
    # Configuration
    Case("blind", train("NETWORK.BLIND=true"), OK),
    Case(
        "words for a classifier of another width",
        train("NETWORK.CLASSIFIER_TYPE=2fc", "NETWORK.CLASSIFIER_PRETRAINED=true"),
        USAGE,
        "NETWORK.CLASSIFIER_PRETRAINED: .*2fc",
    ),
    Case(
        "unknown split",
        train("DATASET.TRAIN_IMAGE_SET=train2015"),
        USAGE,
        "DATASET.TRAIN_IMAGE_SET: train2015: no such split; did you mean train2014",
    ),
    Case(
        "unknown split to test",
        lambda w: w.evaluate("test", *w.model(path=Path("x")), "--split", "test2016"),
        USAGE,
        "DATASET.TEST_IMAGE_SET: test2016: no such split",
    ),
    Case(
        "accuracy where there are no answers",
        lambda w: w.evaluate("val", *w.model(path=Path("x")), "--split", "test2015"),
        USAGE,
        "DATASET.VAL_IMAGE_SET: test2015: it has no answers; use train2014",
    ),
    Case(
        "no checkpoint",
        lambda w: w.evaluate("test", "--cfg", str(w.cfg)),
        FAILED,
        "toy-best.model: no such file",
    ),
    # Vocabulary
    Case(
        "no vocabulary",
        train(corrupt=lambda w: w.answers.unlink()),
        FAILED,
        "DATASET.ANSWER_VOCAB_FILE: .*cannot be read",
    ),
    Case(
        "vocabulary of another length",
        train(corrupt=vocabulary(lambda text: text + "\nelephant\n")),
        USAGE,
        r"DATASET.ANSWER_VOCAB_SIZE: (\d+), but DATASET.ANSWER_VOCAB_FILE: .*answers_vqa.txt has \d+ answers",
    ),
    Case(
        "vocabulary without <unk>",
        train(corrupt=vocabulary(lambda text: text.replace("<unk>", "unknown"))),
        FAILED,
        "answers_vqa.txt: lacks the line <unk>",
    ),
    Case(
        "vocabulary with an answer twice",
        train(corrupt=vocabulary(lambda text: text.replace("no\n", "yes\n", 1))),
        OK,
    ),
    # Questions and annotations
    Case(
        "missing questions",
        train(corrupt=lambda w: w.questions().unlink()),
        FAILED,
        "train2014_questions.json: cannot be read",
    ),
    Case(
        "empty questions",
        train(corrupt=lambda w: w.questions().write_text("")),
        FAILED,
        "train2014_questions.json: .*empty",
    ),
    Case(
        "broken questions",
        train(corrupt=lambda w: truncate(w.questions())),
        FAILED,
        "train2014_questions.json: .*JSON",
    ),
    Case(
        "no question",
        train(corrupt=questions(list.clear)),
        FAILED,
        "train2014_questions.json: questions: .*at least 1",
    ),
    Case(
        "question without a field",
        train(corrupt=questions(lambda q: q[1].pop("image_id"))),
        FAILED,
        "questions.1.image_id",
    ),
    Case(
        "empty question",
        train(corrupt=questions(lambda q: q[1].update(question=" "))),
        FAILED,
        r"question \d+ is empty",
    ),
    Case(
        "question twice",
        train(corrupt=questions(lambda q: q.append(q[0]))),
        FAILED,
        r"questions.json: duplicate question \d+",
    ),
    Case(
        "question without annotation",
        train(corrupt=annotations(list.pop)),
        FAILED,
        r"train2014_annotations.json: has no answers to question \d+ of .*train2014_questions.json",
    ),
    Case(
        "annotation without question",
        train(corrupt=questions(list.pop)),
        FAILED,
        r"train2014_annotations.json: question \d+ is not in .*train2014_questions.json",
    ),
    Case(
        "annotation twice",
        train(corrupt=annotations(lambda a: a.append(a[0]))),
        FAILED,
        r"annotations.json: duplicate question \d+",
    ),
    Case("annotations in another order", train(corrupt=annotations(list.reverse)), OK),
    Case(
        "no answers",
        train(corrupt=annotations(lambda a: a[1].update(answers=[]))),
        FAILED,
        "annotations.1.answers",
    ),
    Case("answers outside the vocabulary", train(corrupt=annotations(unknown_everywhere)), OK),
    Case("long question", train(corrupt=questions(lambda q: q[1].update(question="what " * 90))), OK),
    Case(
        "question too long for the model",
        train(
            "NETWORK.VLBERT.max_position_embeddings=40",
            corrupt=questions(lambda q: q[1].update(question="what " * 90)),
        ),
        FAILED,
        r"record \d+: a text of 94 tokens; the model takes 38",
    ),
    # Sizes and pictures
    Case(
        "missing sizes",
        train(corrupt=lambda w: (w.data / "annotations/instances_train2014.json").unlink()),
        FAILED,
        "instances_train2014.json: cannot be read",
    ),
    Case(
        "picture of unknown size",
        train(corrupt=questions(lambda q: q[0].update(image_id=77))),
        FAILED,
        RECORD + "77",
    ),
    Case(
        "missing picture",
        train(*PIXELS, corrupt=lambda w: picture(w).unlink()),
        FAILED,
        RECORD + "COCO_train2014_0.*jpg",
    ),
    Case(
        "truncated picture",
        train(*PIXELS, corrupt=lambda w: truncate(picture(w))),
        FAILED,
        RECORD + "COCO_train2014_0.*jpg",
    ),
    Case(
        "missing pictures",
        train(*PIXELS, corrupt=lambda w: (w.data / "train2014").rename(w.data / "x")),
        FAILED,
        "train2014: no such folder",
    ),
    Case(
        "pictures are not needed for features",
        train(corrupt=lambda w: (w.data / "train2014").rename(w.data / "x")),
        OK,
    ),
    # Region files
    Case(
        "missing region files",
        train(
            "DATASET.BOXES=36", corrupt=lambda w: (w.data / "vgbua_res101_precomputed").rename(w.data / "x")
        ),
        FAILED,
        "genome_36: no such folder",
    ),
    Case(
        "missing region file",
        train(corrupt=lambda w: w.regions().unlink()),
        FAILED,
        RECORD + r"\d+.json: cannot be read",
    ),
    Case(
        "region file of 0 bytes",
        train(corrupt=lambda w: w.regions().write_text("")),
        FAILED,
        RECORD + r"\d+.json: .*empty",
    ),
    Case(
        "region file of 0 bytes in a worker",
        train("NUM_WORKERS_PER_GPU=1", corrupt=lambda w: w.regions().write_text("")),
        FAILED,
        RECORD + r"\d+.json: .*empty",
    ),
    Case(
        "truncated region file", train(corrupt=lambda w: truncate(w.regions())), FAILED, RECORD + r"\d+.json"
    ),
    Case("region file with NaN", train(corrupt=regions(with_nan)), FAILED, RECORD + r"\d+.json: .*nan"),
    Case(
        "features of another width",
        train(corrupt=regions(narrower)),
        FAILED,
        RECORD + r"\d+.json: features.*2048",
    ),
    Case(
        "too few regions",
        train(corrupt=regions(lambda r: r.update(num_boxes=1))),
        FAILED,
        RECORD + r"\d+.json: boxes",
    ),
    Case(
        "regions of another picture",
        train(corrupt=regions(lambda r: r.update(image_w=1000))),
        FAILED,
        RECORD + r"region file is for an image of \(1000, \d+\)",
    ),
    Case("no regions", train(corrupt=regions(no_regions)), OK),
    Case(
        "no regions and no image box",
        train("DATASET.ADD_IMAGE_AS_A_BOX=false", corrupt=regions(no_regions)),
        FAILED,
        RECORD + "ADD_IMAGE_AS_A_BOX",
    ),
    # Archives
    Case(
        "corrupt archive",
        train("DATASET.ZIP_MODE=true", corrupt=lambda w: truncate(w.data / f"{REGIONS}.zip")),
        FAILED,
        "genome.zip: not a complete zip",
    ),
    Case(
        "missing archive",
        train("DATASET.ZIP_MODE=true", corrupt=lambda w: (w.data / f"{REGIONS}.zip").unlink()),
        FAILED,
        "genome.zip: no such file",
    ),
    Case(
        "missing member",
        train("DATASET.ZIP_MODE=true", corrupt=rewrite_zip(f"{REGIONS}.zip", lambda name: False)),
        FAILED,
        RECORD + r"genome.zip: the archive has no member .*\.json",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case, world, capsys, monkeypatch):
    check(case, world, capsys, monkeypatch)


def test_too_many_bad_records_stop_a_run_that_leaves_them_out(world, capsys):
    world.regions().unlink()
    assert world.train("DATASET.ON_BAD_DATA=skip") == FAILED
    assert re.search(r"1% that DATASET.ON_BAD_DATA: skip allows", capsys.readouterr().err)
