"""The commands of VCR from pixels to the leaderboard file, on a small world."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from common.models.pretrained import read_weights
from tests.vcr.world import CFGS, World
from tests.world import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    for part in CFGS:
        assert world.train(cfg=CFGS[part]) == 0
    return world


def test_training_writes_what_the_readme_says(trained):
    folder = trained.checkpoint().parent
    names = {re.sub(r"\d{4}(-\d\d){4}", "DATE", path.name) for path in folder.iterdir()}
    assert names == {
        "model.py",
        "resolved.yaml",
        "tensorboard_logs",
        "toy_a-0000.model",
        "toy_a-best.model",
        "toy_q2a.yaml",
        "toy_q2a_DATE.log",
    }
    log = next(folder.glob("*.log")).read_text()
    assert "Epoch[0] Batch [0]" in log
    assert "Best Val Acc:" in log
    assert "effective batch size 4" in log


def test_validation(trained, capsys):
    assert trained.evaluate("val", *trained.model("Q2A"), *trained.model("QA2R"), "--result-name", "x") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^Evaluate\.\.\.\nQ->A\t[\d.]+\nQA->R\t[\d.]+\nQ->AR\t[\d.]+$", printed, re.MULTILINE)
    first = {letter: np.load(trained.out / f"results/x_{letter}_pred.npy") for letter in "ar"}
    for logits in first.values():
        assert (logits.shape, logits.dtype) == ((6, 4), np.float64)
    both = (*trained.model("Q2A"), *trained.model("QA2R"))
    assert trained.evaluate("val", *both, "--result-name", "x", "--use-cache") == 0
    assert capsys.readouterr().out.splitlines()[-4:] == printed.splitlines()[-4:]
    assert trained.evaluate("val", *both, "--result-name", "y", "--a-bs", "1", "--r-bs", "5") == 0
    for letter, logits in first.items():
        other = np.load(trained.out / f"results/y_{letter}_pred.npy")
        np.testing.assert_allclose(other, logits, atol=1e-5, err_msg="batches of another size")


def test_the_leaderboard_file(trained):
    assert trained.evaluate("test", *trained.model("Q2A"), *trained.model("QA2R")) == 0
    folder = trained.out / "results"
    written = {path.name for path in folder.iterdir() if "toy" in path.name}
    assert written == {
        "toy_a_test_ckpt_Q2A.model",
        "toy_a_test_result_Q2A.csv",
        "toy_a_test_result_Q2A.npy",
        "toy_r_test_ckpt_QA2R.model",
        "toy_r_test_result_QA2R.csv",
        "toy_r_test_result_QA2R.npy",
        "toy_test_result_Q2AR.csv",
    }
    table = pd.read_csv(folder / "toy_test_result_Q2AR.csv")
    assert table.shape == (5, 21)
    assert list(table["annot_id"]) == [trained.record("test", line)["annot_id"] for line in range(5)]
    groups = table.drop(columns="annot_id").to_numpy().reshape(5, 5, 4)
    np.testing.assert_allclose(groups.sum(axis=2), 1, atol=1e-5)


def test_features_are_computed_once_for_all_conditions(trained, monkeypatch):
    from common.models.fast_rcnn import FastRCNN

    images, forward = [], FastRCNN.forward
    monkeypatch.setattr(
        FastRCNN, "forward", lambda self, batch: images.append(len(batch.images)) or forward(self, batch)
    )
    assert trained.evaluate("test", *trained.model("QA2R"), "--result-name", "once") == 0
    assert sum(images) == 5


def test_a_checkpoint_of_the_other_task(trained, capsys):
    model = ("--a-cfg", str(CFGS["Q2A"]), "--a-ckpt", str(trained.checkpoint("QA2R")))
    for command in ("val", "test"):
        assert trained.evaluate(command, *model, "--result-name", "other") == 1
        error = capsys.readouterr().err
        assert (
            "toy_r-best.model: was trained with DATASET.TASK: QA2R, which is another task; expected Q2A"
            in error
        )


def test_do_test_and_resume_of_a_finished_run(trained):
    best = trained.checkpoint()
    before = best.stat().st_mtime_ns
    assert trained.train(flags=("--do-test",)) == 0
    assert best.stat().st_mtime_ns == before, "nothing was left to train"
    assert (best.parents[1] / "vcr1images_test/toy_a_test_result_Q2A.csv").exists()


@pytest.mark.parametrize(
    "option",
    ["DATASET.ZIP_MODE=true", "NETWORK.BLIND=true", "NUM_WORKERS_PER_GPU=2", "TRAIN.PRECISION=bf16"],
)
def test_ways_to_train(world, option):
    assert world.train(option) == 0


def test_the_archive_gives_the_same_weights_as_the_folder(world, trained):
    assert world.train("DATASET.ZIP_MODE=true", "NUM_WORKERS_PER_GPU=1") == 0
    ours, theirs = (read_weights(w.checkpoint())["state_dict"] for w in (world, trained))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("form", [["vcr/val.py"], ["-m", "vcr.val"]])
def test_both_ways_to_start_a_command(form, tmp_path):
    argv = [sys.executable, *([str(ROOT / form[0])] if len(form) == 1 else form), "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, "--a-cfg" in done.stdout) == (0, True)
