"""What is wrong outside: one clear message, the right exit status, nothing half-written.

Every case spoils a small world and runs a real command on it. Cases that need no error are here too: the run must
end well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from common.modeling.pretrained import read_weights
from tests.vcr.world import CFGS, ROOT, World

OK, FAILED, USAGE = 0, 1, 2


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@dataclass(frozen=True)
class Case:
    """Spoils a world, runs a command, and says how it must end."""

    name: str
    run: Callable[[World], int]
    status: int
    message: str = ""


def train(*changes: str, spoil: Callable[[World], object] | None = None, **kwargs) -> Callable[[World], int]:
    def run(world: World) -> int:
        if spoil:
            spoil(world)
        return world.train(*changes, **kwargs)

    return run


def yaml_of(text: str) -> Callable[[World], int]:
    def run(world: World) -> int:
        path = world.data / "mine.yaml"
        path.write_text(f"_BASE_: {CFGS['Q2A']}\n{text}\n")
        return world.train(cfg=path)

    return run


def record(change: Callable[[dict], object], split: str = "train") -> Callable[[World], object]:
    return lambda world: world.edit(split, 1, change)


def metadata(change: Callable[[dict], object]) -> Callable[[World], object]:
    return lambda world: world.edit_metadata(change)


def append(split: str, text: str) -> Callable[[World], object]:
    def spoil(world: World) -> None:
        with (world.data / f"{split}.jsonl").open("a") as file:
            file.write(text)

    return spoil


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def checkpoint(write: Callable[[Path], object], command: str = "val") -> Callable[[World], int]:
    def run(world: World) -> int:
        path = world.data / "x.model"
        write(path)
        return world.evaluate(command, *world.model("Q2A", path))

    return run


def trained_then(spoil: Callable[[World], object], **kwargs) -> Callable[[World], int]:
    def run(world: World) -> int:
        assert world.train() == OK
        spoil(world)
        return world.train("TRAIN.END_EPOCH=2", **kwargs)

    return run


def rewrite_zip(keep: Callable[[str], bool]) -> Callable[[World], object]:
    def spoil(world: World) -> None:
        source, target = world.data / "vcr1images.zip", world.data / "new.zip"
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for name in filter(keep, old.namelist()):
                new.writestr(name, old.read(name))
        target.replace(source)

    return spoil


def other_shapes(path: Path) -> None:
    torch.save({"state_dict": {"final_mlp.1.weight": torch.zeros(1, 7)}}, path)


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


def blocked(world: World) -> None:
    world.out.write_text("a file where a folder should be")


def own_copy(world: World) -> int:
    assert world.train() == OK
    return world.train(cfg=world.checkpoint().with_name("toy_q2a.yaml"))


CASES = [
    # Configuration
    Case(
        "unknown key",
        yaml_of("NETWORK: {CLASSIFIER_TYP: 1fc}"),
        USAGE,
        r"mine.yaml: NETWORK.CLASSIFIER_TYP: .*did you mean CLASSIFIER_TYPE\?",
    ),
    Case("wrong type", yaml_of("VAL: {BATCH_IMAGES: many}"), USAGE, r"mine.yaml: VAL.BATCH_IMAGES: .*many"),
    Case(
        "value not allowed",
        yaml_of("TRAIN: {OPTIMIZER: Lion}"),
        USAGE,
        r"TRAIN.OPTIMIZER: .*Lion.*SGD.*AdamW",
    ),
    Case(
        "impossible pair",
        train("NETWORK.ANSWER_FIRST=true", "NETWORK.QA_ONE_SENT=true"),
        USAGE,
        "ANSWER_FIRST",
    ),
    Case("widths that differ", train("NETWORK.IMAGE_FINAL_DIM=32"), USAGE, "IMAGE_FINAL_DIM.*visual_size"),
    Case("Q2AR is no model", train("DATASET.TASK=Q2AR"), USAGE, "DATASET.TASK: .*Q2AR"),
    Case("a key twice", yaml_of("SCALES: [1, 2]\nSCALES: [1, 2]"), USAGE, "SCALES"),
    Case("not yaml", yaml_of("TRAIN: ["), USAGE, "mine.yaml"),
    Case("override without value", train("TRAIN.LR"), USAGE, "--set TRAIN.LR"),
    Case("override of an unknown key", train("TRAIN.RATE=1"), USAGE, "TRAIN.RATE: unknown key"),
    Case(
        "missing config",
        train(cfg=Path("nowhere/x.yaml")),
        USAGE,
        "nowhere/x.yaml.*no such file|nowhere/x.yaml: ",
    ),
    Case("multiplier that matches nothing", train("TRAIN.LR_MULT=[[nothing, 2.0]]"), OK),
    Case(
        "multipliers that overlap",
        train("TRAIN.LR_MULT=[[vlbert, 2.0], [encoder, 1.0]]"),
        USAGE,
        "TRAIN.LR_MULT: the parameter vlbert.* fits both",
    ),
    # Files that are not there
    Case("missing data folder", train("DATASET.DATASET_PATH=/nowhere"), FAILED, "/nowhere"),
    Case("missing image folder", train("DATASET.TRAIN_IMAGE_SET=other"), FAILED, "other: no such folder"),
    Case("missing annotation file", train("DATASET.TRAIN_ANNOTATION_FILE=x.jsonl"), FAILED, "x.jsonl"),
    Case(
        "missing vocabulary",
        train("NETWORK.BERT_MODEL_NAME=/nowhere"),
        FAILED,
        "/nowhere.*vocab.txt|/nowhere",
    ),
    Case(
        "missing image weights",
        train("NETWORK.IMAGE_PRETRAINED=/nowhere/resnet"),
        FAILED,
        "NETWORK.IMAGE_PRETRAINED: /nowhere/resnet-0000.model: no such file",
    ),
    Case(
        "missing language weights",
        train("NETWORK.BERT_PRETRAINED=/nowhere/bert"),
        FAILED,
        "NETWORK.BERT_PRETRAINED: /nowhere/bert-0000.model: no such file",
    ),
    Case(
        "missing pre-training",
        train(flags=("--partial-pretrain", "/nowhere/x.model")),
        FAILED,
        "NETWORK.PARTIAL_PRETRAIN: /nowhere/x.model: no such file",
    ),
    Case("missing image", train(spoil=lambda w: w.image().unlink()), FAILED, r"train-\d+.*\.jpg"),
    Case("missing metadata", train(spoil=lambda w: w.metadata().unlink()), FAILED, r"train-\d+.*\.json"),
    # Checkpoints
    Case("missing checkpoint", checkpoint(lambda path: None), FAILED, "x.model: no such file"),
    Case(
        "truncated checkpoint", checkpoint(lambda p: (other_shapes(p), cut(p))), FAILED, "x.model: truncated"
    ),
    Case(
        "text as checkpoint",
        checkpoint(lambda p: p.write_text("weights")),
        FAILED,
        "x.model: .*not a PyTorch file",
    ),
    Case(
        "checkpoint of another model",
        checkpoint(other_shapes),
        FAILED,
        "x.model: does not belong to the configured model; .*missing",
    ),
    Case(
        "checkpoint that runs code", checkpoint(lambda p: torch.save(Evil(), p)), FAILED, "x.model: refused"
    ),
    Case("the same on test", checkpoint(lambda p: torch.save(Evil(), p), "test"), FAILED, "x.model: refused"),
    Case("pre-training without a common name", train("NETWORK.PARTIAL_PRETRAIN=x.model"), FAILED, "x.model"),
    Case(
        "RESUME without its file",
        train("TRAIN.RESUME=true", "TRAIN.BEGIN_EPOCH=1", "TRAIN.END_EPOCH=2"),
        FAILED,
        "toy_a-0000.model: no such file",
    ),
    Case(
        "every checkpoint damaged",
        trained_then(lambda w: cut(w.checkpoint().with_name("toy_a-0000.model"))),
        FAILED,
        "can be read",
    ),
    # Annotations
    Case("line that is not json", train(spoil=append("train", "{oops\n")), FAILED, r"train.jsonl.*line 13"),
    Case(
        "line without a field",
        train(spoil=record(lambda r: r.pop("question"))),
        FAILED,
        r"train.jsonl.*line 2.*question",
    ),
    Case(
        "reference to an object that is not there",
        train(spoil=record(lambda r: r["question"].append([9]))),
        FAILED,
        r"line 2.*refers to object 9",
    ),
    Case(
        "label out of range",
        train(spoil=record(lambda r: r.update(answer_label=4))),
        FAILED,
        r"line 2.*answer_label",
    ),
    Case(
        "label missing", train(spoil=record(lambda r: r.pop("answer_label"))), FAILED, r"line 2.*answer_label"
    ),
    Case(
        "three choices",
        train(spoil=record(lambda r: r["answer_choices"].pop())),
        FAILED,
        r"line 2.*answer_choices",
    ),
    Case(
        "unknown class",
        train(spoil=record(lambda r: r["objects"].__setitem__(0, "unicorn"))),
        FAILED,
        r"line 2.*unicorn",
    ),
    Case("empty question", train(spoil=record(lambda r: r.update(question=[]))), FAILED, r"line 2.*question"),
    Case(
        "empty annotation file",
        train(spoil=lambda w: (w.data / "train.jsonl").write_text("")),
        FAILED,
        "train.jsonl: has no records",
    ),
    Case("blank line", train(spoil=append("train", "\n")), OK),
    Case("long question", train(spoil=record(lambda r: r.update(question=["word"] * 200))), OK),
    Case(
        "question too long for the model",
        train(
            "NETWORK.VLBERT.max_position_embeddings=40",
            spoil=record(lambda r: r.update(question=["what"] * 200)),
        ),
        FAILED,
        r"record train-1: a text of \d+ tokens; the model takes 38",
    ),
    # Pictures and metadata
    Case("truncated image", train(spoil=lambda w: cut(w.image())), FAILED, r"train-\d+.*\.jpg"),
    Case("empty image", train(spoil=lambda w: w.image().write_bytes(b"")), FAILED, r"train-\d+.*\.jpg"),
    Case(
        "bad image in a worker",
        train("NUM_WORKERS_PER_GPU=1", spoil=lambda w: cut(w.image())),
        FAILED,
        r"train-\d+.*\.jpg",
    ),
    Case(
        "empty metadata",
        train(spoil=lambda w: w.metadata().write_text("")),
        FAILED,
        r"train-\d+.*\.json: .*empty",
    ),
    Case("broken metadata", train(spoil=lambda w: cut(w.metadata())), FAILED, r"train-\d+.*\.json"),
    Case(
        "metadata without polygons",
        train(spoil=metadata(lambda m: m.pop("segms"))),
        FAILED,
        r"train-\d+.*\.json.*segms",
    ),
    Case("too few boxes", train(spoil=metadata(lambda m: m["boxes"].pop())), FAILED, r"train-\d+.*boxes"),
    Case(
        "box that is no number", train(spoil=metadata(set_box([0, 0, "x", 9]))), FAILED, r"train-\d+.*boxes"
    ),
    Case("polygon with two points", train(spoil=metadata(set_polygons([[[1, 1], [5, 5]]]))), OK),
    Case("empty polygon", train(spoil=metadata(set_polygons([[]]))), OK),
    Case("no polygons", train(spoil=metadata(set_polygons([]))), OK),
    Case("box outside the picture", train(spoil=metadata(set_box([500, 500, 900, 900]))), OK),
    Case("zero-area box", train(spoil=metadata(set_box([5, 5, 5, 5]))), OK),
    Case("inverted box", train(spoil=metadata(set_box([50, 50, 10, 10]))), OK),
    Case("no objects", train(spoil=no_objects), OK),
    Case(
        "no objects and no image box",
        train("DATASET.ADD_IMAGE_AS_A_BOX=false", spoil=no_objects),
        FAILED,
        r"train-0.*ADD_IMAGE_AS_A_BOX",
    ),
    # Archives
    Case(
        "corrupt archive",
        train("DATASET.ZIP_MODE=true", spoil=lambda w: cut(w.data / "vcr1images.zip")),
        FAILED,
        "vcr1images.zip: not a complete zip",
    ),
    Case(
        "missing archive",
        train("DATASET.ZIP_MODE=true", spoil=lambda w: (w.data / "vcr1images.zip").unlink()),
        FAILED,
        "vcr1images.zip: no such file",
    ),
    Case(
        "missing member",
        train("DATASET.ZIP_MODE=true", spoil=rewrite_zip(lambda n: not n.endswith(".jpg"))),
        FAILED,
        r"vcr1images.zip: the archive has no member .*\.jpg",
    ),
    # Flags and places
    Case("unwritable output folder", train(spoil=blocked), USAGE, "OUTPUT_PATH: .*cannot write there"),
    Case(
        "unwritable log folder",
        train(flags=("--log-dir", __file__)),
        USAGE,
        "--log-dir: .*cannot write there",
    ),
    Case("started from its own copy", own_copy, OK),
    Case(
        "GPU that is not there",
        lambda w: w.evaluate("val", *w.model("Q2A"), "--gpus", "7"),
        USAGE,
        "--gpus 7: no such GPU",
    ),
    Case(
        "model without checkpoint",
        lambda w: w.evaluate("val", "--a-cfg", str(CFGS["Q2A"])),
        USAGE,
        "--a-ckpt: missing",
    ),
    Case("no model at all", lambda w: w.evaluate("test"), USAGE, "no model: give --a-cfg with --a-ckpt"),
    Case(
        "unwritable results",
        lambda w: (blocked(w), w.evaluate("val", *w.model("Q2A", w.data / "x")))[1],
        USAGE,
        "--result-path: .*cannot write there",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case, world, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    before = set(world.leftovers()) if world.out.exists() else set()
    status = case.run(world)
    error = capsys.readouterr().err
    assert status == case.status, error
    if case.status == OK:
        read_weights(world.checkpoint())
        return
    assert re.search(case.message, error, re.DOTALL), error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    if world.out.is_dir() and "damaged" not in case.name:
        left = [name for name in world.leftovers() if not name.startswith("events.")]
        assert set(left) <= before | {"pretrained.txt"}


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
