"""Losses, metrics, predictions, accuracies and the start from a pre-training checkpoint, by hand."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
import torch

from refcoco.model import RefCOCOOutputs
from refcoco.task import RefCOCOTask
from tests.refcoco.test_model import batch, thin_task

LOGITS = torch.tensor([0.0, 2, -1, -9, 5, 1, 7, -3])


def two(**changes):
    """Images of 3, 1 and 4 boxes, resized to twice the width and four times the height."""
    corners = [[0, 0, 38, 36], [4, 8, 16, 28], [20, 0, 39, 16]]
    boxes = torch.tensor([*corners, corners[0], *corners, [2, 4, 6, 8]], dtype=torch.float32)
    values = {
        "boxes": boxes,
        "label": torch.tensor([0.0, 1, 0, 1, 0, 0, 1, 0]),
        "target": torch.tensor([[2.0, 2, 8, 7], [0, 0, 19, 5], [2, 2, 8, 7]]),
        "target_region": torch.tensor([1, -1, 1]),
    }
    return dataclasses.replace(batch(), **{**values, **changes})


@pytest.fixture(scope="module")
def task():
    return thin_task()[0]


def test_the_loss_is_the_mean_over_all_boxes(task):
    # ln 2; softplus of -2, -1, 9, 5, 1, -7, -3
    expected = (0.693147 + 0.126928 + 0.313262 + 9.000123 + 5.006715 + 1.313262 + 0.000911 + 0.048587) / 8
    assert task.losses(RefCOCOOutputs(LOGITS), two())["cls_loss"].item() == pytest.approx(expected, abs=1e-6)


def test_metrics(task):
    found = task.metrics(RefCOCOOutputs(LOGITS), two(), "train")
    assert {name: (ratio.total.item(), ratio.count.item()) for name, ratio in found.items()} == {
        "RefAcc": (3, 3),
        "ClsAcc": (5, 8),
        "ClsPosAcc": (2, 3),
        "ClsPosFrac": (3, 8),
    }
    assert list(task.metrics(RefCOCOOutputs(LOGITS), two(), "val")) == ["RefAcc"]


def test_predictions_are_in_original_pixels(task):
    records = task.predictions(RefCOCOOutputs(LOGITS), two())
    assert [(record["ref_id"], record["sent_id"]) for record in records] == [(7, 70), (8, 71), (9, 72)]
    assert [record["box"] for record in records] == [[2, 2, 8, 7], [0, 0, 19, 9], [10, 0, 19.5, 4]]
    # The second box has 20 x 10 pixels, its target 20 x 6 of them; the third has nothing of its target.
    assert [record["hit"] for record in records] == [True, True, False]
    assert [record["same_region"] for record in records] == [True, None, False]


def test_exactly_half_is_a_hit(task):
    targets = two().target.clone()
    for height, hit in ((4.0, True), (3.9, False)):
        targets[1] = torch.tensor([0, 0, 19, height])
        records = task.predictions(RefCOCOOutputs(LOGITS), two(target=targets))
        assert records[1]["hit"] is hit


def test_the_result_file(task, tmp_path, caplog):
    record = {"ref_id": 7, "sent_id": 70, "box": [1.0, 2, 3, 4], "hit": True, "same_region": False}
    records = [
        record,
        {**record, "sent_id": 71, "hit": False},
        {**record, "sent_id": 72, "same_region": None},
    ]
    tested = task.test_tasks()[1]
    path = tested.result_file(tmp_path, "name")
    assert path.name == "name_refcoco+_testA.json"
    with caplog.at_level(logging.INFO):
        tested.write_predictions(records, path)
    assert json.loads(path.read_text()) == [
        {"ref_id": 7, "sent_id": sentence, "box": [1, 2, 3, 4]} for sentence in (70, 71, 72)
    ]
    assert caplog.messages == [
        f"result json saved to {path}.",
        "Evaluate on split: testA...",
        "Accuracy: 66.66666666666666.",
        "Accuracy by region identity: 0.0.",
    ]


@pytest.mark.parametrize(
    ("options", "splits"),
    [
        ([], ["val", "testA", "testB"]),
        (["DATASET.DATASET=refcoco", "DATASET.SPLIT_BY=google"], ["val", "testA", "testB"]),
        (["DATASET.DATASET=refcocog", "DATASET.SPLIT_BY=umd"], ["val", "test"]),
        (["DATASET.DATASET=refcocog", "DATASET.SPLIT_BY=google"], ["val"]),
    ],
)
def test_what_a_trained_model_is_tested_on(options, splits):
    assert [tested.config.DATASET.TEST_IMAGE_SET for tested in thin_task(*options)[0].test_tasks()] == splits


def test_config_rejects_flipped_tests():
    config = thin_task()[0].config
    assert config.problems() == []
    flipping = config.model_copy(update={"TEST": config.TEST.model_copy(update={"FLIP_PROB": 0.5})})
    (problem,) = flipping.problems()
    assert problem.startswith("TEST.FLIP_PROB: 0.5: must be 0")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_head_starts_from_the_region_head_of_pretraining(tmp_path, prefix):
    _, model = thin_task()
    state = {
        prefix + name.replace("final_mlp.0.", "vlbert.mvrc_head.transform."): (
            torch.randn_like(value) if value.is_floating_point() else value
        )
        for name, value in RefCOCOTask.state_dict_names.to_official(model.state_dict()).items()
        if not name.startswith("final_mlp.2")
    }
    path = tmp_path / "pretrained.model"
    torch.save({"state_dict": state}, path)
    rules = [
        "vlbert.mvrc_head.transform->final_mlp.0",
        "module.vlbert.mvrc_head.transform->module.final_mlp.0",
        "vlbert->vlbert",
        "module.vlbert->module.vlbert",
    ]
    task, model = thin_task(
        f"NETWORK.PARTIAL_PRETRAIN={path}",
        f"NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES=[{', '.join(rules)}]",
    )
    report = task.load_pretrained(model)[-1]
    assert torch.equal(
        model.final_mlp[0].dense.weight, state[f"{prefix}vlbert.mvrc_head.transform.dense.weight"]
    )
    assert report.missing == ("final_mlp.2.weight", "final_mlp.2.bias")
