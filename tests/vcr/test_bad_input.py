"""What is wrong outside of VCR's program: one clear message, the right exit status, nothing half-written."""

from __future__ import annotations

import re
import subprocess
import sys
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
from tests.vcr.world import CFGS, World
from tests.world import ROOT

pytestmark = pytest.mark.integration


def record(change: Callable[[dict], object], split: str = "train") -> Callable[[World], object]:
    return lambda world: world.edit(split, 1, change)


def metadata(change: Callable[[dict], object]) -> Callable[[World], object]:
    return lambda world: world.edit_metadata(change)


def append(split: str, text: str) -> Callable[[World], object]:
    def corrupt(world: World) -> None:
        with (world.data / f"{split}.jsonl").open("a") as file:
            file.write(text)

    return corrupt


def set_polygons(polygons: list) -> Callable[[dict], object]:
    return lambda m: m["segms"].__setitem__(0, polygons)


def set_box(box: list[float]) -> Callable[[dict], object]:
    return lambda m: m["boxes"].__setitem__(0, [*box, 0.9])


def no_objects(world: World) -> None:
    def empty(line: dict) -> None:
        def plain(text: list) -> list:
            return [word if isinstance(word, str) else "it" for word in text]

        line["objects"] = []
        line["question"] = plain(line["question"])
        for name in ("answer_choices", "rationale_choices"):
            line[name] = [plain(text) for text in line[name]]

    path = world.metadata()
    path.with_name("empty.json").write_text('{"boxes": [], "segms": [], "names": []}')
    world.edit(
        "train",
        0,
        lambda line: (
            empty(line),
            line.update(metadata_fn=str(Path(line["metadata_fn"]).with_name("empty.json"))),
        ),
    )


CASES = [
    *CONFIGURATION,
    *FILES,
    IMAGE_WEIGHTS,
    *evaluation_cases("val"),
    *evaluation_cases("test"),
    # Configuration
    Case(
        "impossible pair",
        train("NETWORK.ANSWER_FIRST=true", "NETWORK.QA_ONE_SENT=true"),
        USAGE,
        "ANSWER_FIRST",
    ),
    Case("Q2AR is no model", train("DATASET.TASK=Q2AR"), USAGE, "DATASET.TASK: .*Q2AR"),
    # Files that are not there
    Case("missing image folder", train("DATASET.TRAIN_IMAGE_SET=other"), FAILED, "other: no such folder"),
    Case("missing annotation file", train("DATASET.TRAIN_ANNOTATION_FILE=x.jsonl"), FAILED, "x.jsonl"),
    Case("missing image", train(corrupt=lambda w: w.image().unlink()), FAILED, r"train-\d+.*\.jpg"),
    Case("missing metadata", train(corrupt=lambda w: w.metadata().unlink()), FAILED, r"train-\d+.*\.json"),
    # Annotations
    Case("line that is not json", train(corrupt=append("train", "{oops\n")), FAILED, r"train.jsonl.*line 13"),
    Case(
        "line without a field",
        train(corrupt=record(lambda r: r.pop("question"))),
        FAILED,
        r"train.jsonl.*line 2.*question",
    ),
    Case(
        "reference to an object that is not there",
        train(corrupt=record(lambda r: r["question"].append([9]))),
        FAILED,
        r"line 2.*refers to object 9",
    ),
    Case(
        "label out of range",
        train(corrupt=record(lambda r: r.update(answer_label=4))),
        FAILED,
        r"line 2.*answer_label",
    ),
    Case(
        "label missing",
        train(corrupt=record(lambda r: r.pop("answer_label"))),
        FAILED,
        r"line 2.*answer_label",
    ),
    Case(
        "three choices",
        train(corrupt=record(lambda r: r["answer_choices"].pop())),
        FAILED,
        r"line 2.*answer_choices",
    ),
    Case(
        "unknown class",
        train(corrupt=record(lambda r: r["objects"].__setitem__(0, "unicorn"))),
        FAILED,
        r"line 2.*unicorn",
    ),
    Case(
        "empty question", train(corrupt=record(lambda r: r.update(question=[]))), FAILED, r"line 2.*question"
    ),
    Case(
        "empty annotation file",
        train(corrupt=lambda w: (w.data / "train.jsonl").write_text("")),
        FAILED,
        "train.jsonl: has no records",
    ),
    Case("blank line", train(corrupt=append("train", "\n")), OK),
    Case("long question", train(corrupt=record(lambda r: r.update(question=["word"] * 200))), OK),
    Case(
        "question too long for the model",
        train(
            "NETWORK.VLBERT.max_position_embeddings=40",
            corrupt=record(lambda r: r.update(question=["what"] * 200)),
        ),
        FAILED,
        r"record train-1: a text of \d+ tokens; the model takes 38",
    ),
    # Pictures and metadata
    Case("truncated image", train(corrupt=lambda w: truncate(w.image())), FAILED, r"train-\d+.*\.jpg"),
    Case("empty image", train(corrupt=lambda w: w.image().write_bytes(b"")), FAILED, r"train-\d+.*\.jpg"),
    Case(
        "bad image in a worker",
        train("NUM_WORKERS_PER_GPU=1", corrupt=lambda w: truncate(w.image())),
        FAILED,
        r"train-\d+.*\.jpg",
    ),
    Case(
        "empty metadata",
        train(corrupt=lambda w: w.metadata().write_text("")),
        FAILED,
        r"train-\d+.*\.json: .*empty",
    ),
    Case("broken metadata", train(corrupt=lambda w: truncate(w.metadata())), FAILED, r"train-\d+.*\.json"),
    Case(
        "metadata without polygons",
        train(corrupt=metadata(lambda m: m.pop("segms"))),
        FAILED,
        r"train-\d+.*\.json.*segms",
    ),
    Case("too few boxes", train(corrupt=metadata(lambda m: m["boxes"].pop())), FAILED, r"train-\d+.*boxes"),
    Case(
        "box that is no number", train(corrupt=metadata(set_box([0, 0, "x", 9]))), FAILED, r"train-\d+.*boxes"
    ),
    Case("polygon with two points", train(corrupt=metadata(set_polygons([[[1, 1], [5, 5]]]))), OK),
    Case("empty polygon", train(corrupt=metadata(set_polygons([[]]))), OK),
    Case("no polygons", train(corrupt=metadata(set_polygons([]))), OK),
    Case("box outside the picture", train(corrupt=metadata(set_box([500, 500, 900, 900]))), OK),
    Case("zero-area box", train(corrupt=metadata(set_box([5, 5, 5, 5]))), OK),
    Case("inverted box", train(corrupt=metadata(set_box([50, 50, 10, 10]))), OK),
    Case("no objects", train(corrupt=no_objects), OK),
    Case(
        "no objects and no image box",
        train("DATASET.ADD_IMAGE_AS_A_BOX=false", corrupt=no_objects),
        FAILED,
        r"train-0.*ADD_IMAGE_AS_A_BOX",
    ),
    # Archives
    Case(
        "corrupt archive",
        train("DATASET.ZIP_MODE=true", corrupt=lambda w: truncate(w.data / "vcr1images.zip")),
        FAILED,
        "vcr1images.zip: not a complete zip",
    ),
    Case(
        "missing archive",
        train("DATASET.ZIP_MODE=true", corrupt=lambda w: (w.data / "vcr1images.zip").unlink()),
        FAILED,
        "vcr1images.zip: no such file",
    ),
    Case(
        "missing member",
        train(
            "DATASET.ZIP_MODE=true", corrupt=rewrite_zip("vcr1images.zip", lambda n: not n.endswith(".jpg"))
        ),
        FAILED,
        r"vcr1images.zip: the archive has no member .*\.jpg",
    ),
    # Flags
    Case(
        "model without checkpoint",
        lambda w: w.evaluate("val", "--a-cfg", str(CFGS["Q2A"])),
        USAGE,
        "--a-ckpt: missing",
    ),
    Case("no model at all", lambda w: w.evaluate("test"), USAGE, "no model: give --a-cfg with --a-ckpt"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case, world, capsys, monkeypatch):
    check(case, world, capsys, monkeypatch)


def test_a_cache_that_is_none(world, capsys):
    assert world.train() == OK
    results = world.out / "results"
    results.mkdir()
    flags = (*world.model("Q2A"), "--result-name", "x", "--use-cache")
    (results / "x_a_pred.npy").write_text("numbers")
    assert world.evaluate("val", *flags) == FAILED
    assert "x_a_pred.npy: not a result of vcr/val.py; leave out --use-cache" in capsys.readouterr().err
    np.save(results / "x_a_pred.npy", np.zeros((2, 4)))
    assert world.evaluate("val", *flags) == FAILED
    assert "(2, 4) logits for 6 questions" in capsys.readouterr().err


def test_a_cached_table_that_is_none(world, capsys):
    assert world.train() == OK
    results = world.out / "results"
    results.mkdir()
    for name in ("x_test_result_Q2A.csv", "x_test_result_QA2R.csv"):
        (results / name).write_text("a,b\n1,2\n")
    models = (*world.model("Q2A"), *world.model("QA2R", world.checkpoint()))
    assert world.evaluate("test", *models, "--result-name", "x", "--use-cache") == FAILED
    assert "x_test_result_Q2A.csv: not a result file: it has no column annot_id" in capsys.readouterr().err


def test_too_many_bad_records_stop_a_run_that_leaves_them_out(world, capsys):
    world.image().unlink()
    assert world.train("DATASET.ON_BAD_DATA=skip") == FAILED
    assert re.search(r"1% that DATASET.ON_BAD_DATA: skip allows", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["--cfg", "nowhere.yaml"], 2, "error: nowhere.yaml"),
        ([], 2, "--cfg"),
        (["--cfg", "cfgs/vcr/toy_q2a.yaml", "--set", "DATASET.DATASET_PATH=/nowhere"], 1, "error: "),
    ],
)
def test_the_real_command_ends_without_a_traceback(argv, status, message, tmp_path):
    command = [sys.executable, "vcr/train_end2end.py", "--model-dir", str(tmp_path), *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr
