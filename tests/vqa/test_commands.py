"""The commands of VQA from region files to the file for EvalAI, on a small world."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from common.models.pretrained import read_weights
from tests.vqa.world import World
from tests.world import ROOT, TINY_PIXELS

pytestmark = pytest.mark.integration

PIXELS = (
    "NETWORK.IMAGE_FEAT_PRECOMPUTED=false",
    "NETWORK.IMAGE_NUM_LAYERS=18",
    "NETWORK.PIXEL_MEANS=[102.9801, 115.9465, 122.7717]",
    "NETWORK.PIXEL_STDS=[1.0, 1.0, 1.0]",
    *TINY_PIXELS,
)


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train() == 0
    return world


def test_training_writes_what_the_readme_says(trained):
    folder = trained.checkpoint().parent
    assert folder == trained.out / "output/toy/vqa/toy/train2014_train"
    names = {re.sub(r"\d{4}(-\d\d){4}", "DATE", path.name) for path in folder.iterdir()}
    assert names == {
        *("toy.yaml", "resolved.yaml", "model.py", "toy_DATE.log", "tensorboard_logs"),
        *("toy-0000.model", "toy-best.model"),
    }
    log = next(folder.glob("*.log")).read_text()
    assert "Best Val SoftAcc:" in log
    count = len(trained.records(trained.questions()))
    assert f"train2014: {count} questions; 0 of {10 * count} answers are not in " in log
    assert re.search(r"Train-SoftAcc=[\d.]+,\s+AnsLoss=[\d.]+", log)


def test_the_file_for_evalai(trained):
    assert trained.evaluate("test", *trained.model()) == 0
    folder = trained.out / "results"
    assert (folder / "toy_test_ckpt_Q2AR.model").exists()
    records = json.loads((folder / "toy_vqa2_test2015.json").read_text())
    asked = [record["question_id"] for record in trained.records(trained.questions("test2015"))]
    assert [record["question_id"] for record in records] == asked
    known = set(trained.answers.read_text().split("\n")) - {"<unk>"}
    for record in records:
        assert list(record) == ["question_id", "answer"]
        assert type(record["question_id"]) is int
        assert record["answer"] in known


def test_other_splits_and_batches_of_another_size(trained):
    flags = (*trained.model(), "--result-name", "x", "--bs", "3")
    assert trained.evaluate("test", *flags) == 0
    assert trained.evaluate("test", *flags, "--split", "test-dev2015") == 0
    assert trained.evaluate("test", *flags, "--split", "val2014") == 0
    folder = trained.out / "results"
    for split in ("test2015", "test-dev2015", "val2014"):
        records = json.loads((folder / f"x_vqa2_{split}.json").read_text())
        assert len(records) == len(trained.records(trained.questions(split)))
    assert (folder / "x_vqa2_test2015.json").read_text() == (folder / "toy_vqa2_test2015.json").read_text()


def test_official_accuracy(trained, capsys):
    assert trained.evaluate("val", *trained.model()) == 0
    printed = capsys.readouterr().out
    number = r"\t\d+\.\d\d\n"
    found = re.search(rf"^Evaluate on split: val2014\.\.\.\noverall{number}((.*){number})+\Z", printed, re.M)
    assert found, printed
    kinds = {record["answer_type"] for record in trained.records(trained.annotations("val2014"))}
    assert {line.split("\t")[0] for line in found[0].splitlines()[2:]} == kinds
    records = json.loads((trained.out / "results/toy_vqa2_val2014.json").read_text())
    assert len(records) == 12
    flags = ("--split", "minival2014+valminusminival2014", "--result-name", "y")
    assert trained.evaluate("val", *trained.model(), *flags) == 0
    halves = json.loads((trained.out / "results/y_vqa2_minival2014+valminusminival2014.json").read_text())
    assert halves == records


def test_perfect_answers_are_right(trained, capsys, monkeypatch):
    said = {
        record["question_id"]: record["multiple_choice_answer"]
        for record in trained.records(trained.annotations("val2014"))
    }
    monkeypatch.setattr(
        "vqa.task.VQATask.predictions",
        lambda self, outputs, batch: [{"question_id": i, "answer": said[i]} for i in batch.question_ids],
    )
    assert trained.evaluate("val", *trained.model(), "--result-name", "right") == 0
    assert "overall\t100.00\n" in capsys.readouterr().out


def test_the_model_and_the_folder_need_not_be_named(trained):
    flags = ("--cfg", str(trained.cfg), "--model-dir", str(trained.out))
    for command, folder in (("test", "test2015_test"), ("val", "val2014_val")):
        assert trained.evaluate(command, *flags, "--result-path", "") == 0
        assert list((trained.out / "output/toy/vqa/toy" / folder).glob("toy_vqa2_*.json"))


def test_do_test_and_resume_of_a_finished_run(trained):
    before = trained.checkpoint().stat().st_mtime_ns
    assert trained.train(flags=("--do-test",)) == 0
    assert trained.checkpoint().stat().st_mtime_ns == before, "nothing was left to train"
    path = trained.out / "output/toy/vqa/toy/test2015_test/toy_vqa2_test2015.json"
    assert len(json.loads(path.read_text())) == 11


@pytest.mark.parametrize(
    "options",
    [
        ("DATASET.BOXES=36", "TRAIN.PRECISION=bf16"),
        ("NETWORK.NO_GROUNDING=true", "NETWORK.VLBERT.with_pooler=true"),
        ("NETWORK.CLASSIFIER_TYPE=2fc", "DATASET.ANSWER_NORMALISE=both"),
        ("NETWORK.CLASSIFIER_TYPE=1fc", "NETWORK.CLASSIFIER_PRETRAINED=true"),
        (*PIXELS, "TRAIN.ASPECT_GROUPING=true"),
        (*PIXELS, "DATASET.ZIP_MODE=true", "NUM_WORKERS_PER_GPU=1"),
        ("DATASET.TRAIN_IMAGE_SET=train2014+valminusminival2014", "DATASET.VAL_IMAGE_SET=minival2014"),
    ],
)
def test_ways_to_train(world, options):
    assert world.train(*options) == 0


def test_the_archive_gives_the_same_weights_as_the_folder(world, trained):
    assert world.train("DATASET.ZIP_MODE=true", "NUM_WORKERS_PER_GPU=1") == 0
    weights = [read_weights(each.checkpoint())["state_dict"] for each in (world, trained)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


@pytest.mark.parametrize("form", [["vqa/val.py"], ["-m", "vqa.test"]])
def test_both_ways_to_start_a_command(form):
    argv = [sys.executable, *([str(ROOT / form[0])] if len(form) == 1 else form), "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, "--ckpt" in done.stdout) == (0, True)
