"""The commands of RefCOCO from pixels to the result file, on a small world."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from common.config.schema import load_config
from common.errors import CheckpointError
from common.evaluation.checkpoints import load_model
from common.models.pretrained import read_weights
from refcoco.config import RefCOCOConfig
from refcoco.task import RefCOCOTask
from tests.refcoco.world import World
from tests.world import ROOT, run_command

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train() == 0
    return world


def sentences(world: World, split: str) -> list[tuple[int, int]]:
    return [(ref["ref_id"], one["sent_id"]) for ref in world.split(split) for one in ref["sentences"]]


def test_training_writes_what_the_readme_says(trained):
    folder = trained.out / "output/toy/refcoco/toy/train_train"
    for name in ("model.py", "resolved.yaml", "toy-0000.model", "toy-best.model", "toy.yaml"):
        assert (folder / name).is_file()
    (log,) = (path.read_text() for path in folder.glob("toy_*.log"))
    assert re.search(r"RefAcc=[\d.]+.*ClsAcc=[\d.]+.*ClsPosAcc=\S+.*ClsPosFrac=[\d.]+.*ClsLoss=[\d.]+", log)
    assert "Best Val RefAcc:" in log


@pytest.mark.parametrize("split", ["val", "testA", "testB", "test"])
def test_the_result_file(trained, split, capsys):
    flags = () if split == "val" else ("--split", split)
    assert trained.evaluate("test", *trained.model(), *flags) == 0
    printed = capsys.readouterr().out
    folder = trained.out / "results"
    path = folder / f"toy_refcoco+_{split}.json"
    assert re.search(rf"result json saved to {re.escape(str(path))}\.\n", printed)
    accuracies = re.findall(r"(Evaluate on split: \w+\.\.\.|Accuracy[\w ]*: [\d.]+\.)\n", printed)
    assert accuracies[0] == f"Evaluate on split: {split}..."
    assert [line.split(":")[0] for line in accuracies[1:]] == ["Accuracy", "Accuracy by region identity"]
    records = json.loads(path.read_text())
    assert [(record["ref_id"], record["sent_id"]) for record in records] == sentences(trained, split)
    for record in records:
        assert list(record) == ["ref_id", "sent_id", "box"]
        assert all(type(value) is float for value in record["box"])
    assert (folder / "toy_test_ckpt_Q2AR.model").exists()


def test_defaults_of_the_test(trained, monkeypatch):
    argv = ["test", "--cfg", str(trained.cfg), "--model-dir", str(trained.out), *trained.settings([])]
    monkeypatch.setattr(sys, "argv", argv)
    trained.commands["test"]()
    assert (trained.out / "output/toy/refcoco/toy/val_test/toy_refcoco+_val.json").exists()


def test_do_test_covers_all_test_sets(trained, capsys):
    assert trained.train(flags=("--do-test",)) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"Evaluate on split: (\w+)", printed) == ["val", "testA", "testB"]
    folder = trained.checkpoint().parents[1]
    for split in ("val", "testA", "testB"):
        assert (folder / f"{split}_test/toy_refcoco+_{split}.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["DATASET.TRAIN_BOXES=proposal+gt", "DATASET.VAL_BOXES=proposal", "TRAIN.FLIP_PROB=0.5"],
        ["NUM_WORKERS_PER_GPU=2", "TRAIN.ASPECT_GROUPING=false", "TRAIN.GRAD_ACCUMULATE_STEPS=2"],
        ["TRAIN.PRECISION=bf16"],
    ],
)
def test_ways_to_train(world, options):
    assert world.train(*options) == 0


def test_the_archive_gives_the_same_weights_as_the_folder(world, trained):
    assert world.train("DATASET.ZIP_MODE=true", "NUM_WORKERS_PER_GPU=1") == 0
    ours, theirs = (read_weights(w.checkpoint())["state_dict"] for w in (world, trained))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_serves_all_data_sets_of_its_task_alone(trained, tmp_path):
    changes = trained.overrides("DATASET.DATASET=refcocog")
    task, cpu = RefCOCOTask(load_config(RefCOCOConfig, trained.cfg, changes)), torch.device("cpu")
    load_model(task, trained.checkpoint(), cpu)
    content = read_weights(trained.checkpoint())
    for written in ("DATASET: [{DATASET: vqa}]", "DATASET: {DATASET: vcr}"):
        torch.save({**content, "config": written}, tmp_path / "x.model")
        with pytest.raises(CheckpointError, match=r"another task; expected refcoco or refcoco\+ or refcocog"):
            load_model(task, tmp_path / "x.model", cpu)
    # What tells nothing passes, such as the files of the reference implementation.
    for written in ("DATASET: [", "DATASET: {}", "7", 7, None):
        torch.save({**content, "config": written}, tmp_path / "x.model")
        load_model(task, tmp_path / "x.model", cpu)


def test_proposals_have_no_identity(trained, capsys):
    flags = ("--set", "DATASET.TEST_BOXES=proposal", "--result-name", "proposals")
    assert trained.evaluate("test", *trained.model(), *flags) == 0
    printed = capsys.readouterr().out
    assert "Accuracy: " in printed
    assert "region identity" not in printed


@pytest.mark.dist
def test_two_processes_train_and_test(world):
    """Aspect grouping is on, and the groups do not fall evenly on the processes."""
    # One by one: pictures are padded to the largest of their batch, which scores depend on.
    settings = world.settings(["TRAIN.BATCH_IMAGES=2", "TEST.BATCH_IMAGES=1"])
    script = [ROOT / "scripts/dist_run_single.sh", 2, "refcoco/train_end2end.py", world.cfg, world.out]
    run_command(*script, "--do-test", *settings)
    folder = world.checkpoint().parents[1]
    two = {split: folder / f"{split}_test/toy_refcoco+_{split}.json" for split in ("val", "testA", "testB")}
    for split, path in two.items():
        assert world.evaluate("test", *world.model(), "--split", split, "--bs", "1") == 0
        one = json.loads((world.out / f"results/{path.name}").read_text())
        both = json.loads(path.read_text())
        assert [record["sent_id"] for record in both] == [record["sent_id"] for record in one]
        for ours, theirs in zip(both, one, strict=True):
            assert ours["box"] == pytest.approx(theirs["box"], abs=1e-3)


@pytest.mark.parametrize(
    "form", [("refcoco/test.py",), ("-m", "refcoco.test"), ("refcoco/train_end2end.py",)]
)
def test_the_ways_to_start_a_command(form):
    done = subprocess.run(
        [sys.executable, *form, "--help"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0
    assert "--model-dir" in done.stdout
