"""What a sentence means in pictures of one's own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vl_bert
from common.engine.predictor import Query
from refcoco.predict import RefCOCOPredictor
from tests.refcoco.world import World
from tests.world import SPREAD


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train(SPREAD) == 0
    return world


def queries(world: World, split: str) -> list[Query]:
    boxes: dict[int, list[list[float]]] = {}
    for annotation in json.loads(world.sizes.read_text())["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes.setdefault(annotation["image_id"], []).append([x, y, x + width, y + height])
    return [
        Query(
            world.data / f"train2014/COCO_train2014_{ref['image_id']:012d}.jpg",
            sentence["sent"],
            boxes[ref["image_id"]],
        )
        for ref in world.split(split)
        for sentence in ref["sentences"]
    ]


@pytest.fixture(scope="module")
def model(trained):
    return trained.loaded()


def test_boxes_are_those_of_test_py(trained, model):
    assert type(model) is RefCOCOPredictor
    assert trained.evaluate("test", *trained.model(), "--split", "val", "--result-name", "x") == 0
    (result,) = (trained.out / "results").glob("x_*_val.json")
    expected = [record["box"] for record in json.loads(result.read_text())]
    found = model.predict_batch(queries(trained, "val"))
    np.testing.assert_allclose([one.box for one in found], expected, atol=1e-3)
    assert len({one.region for one in found}) > 1


def test_scores_are_those_of_the_network(trained, model):
    (batch, outputs), *_ = trained.scored(trained.cfg, trained.checkpoint(), "val")
    for one, logits in zip(
        model.predict_batch(queries(trained, "val")), batch.num_boxes.split(outputs.logits), strict=False
    ):
        np.testing.assert_allclose(one.scores, logits.sigmoid(), atol=1e-5)
        assert one.score == max(one.scores)
        assert one.scores[one.region] == one.score  # region 0 is the whole image, the first candidate


def test_a_grid_where_nothing_is_given(model, trained, caplog):
    query = queries(trained, "val")[0]
    found = model.predict(query.image, query.text)
    assert "a grid of " in caplog.text
    with Image.open(query.image) as picture:
        width, height = picture.size
    x1, y1, x2, y2 = found.box
    assert -0.1 <= x1 <= x2 <= width
    assert -0.1 <= y1 <= y2 <= height


def test_pictures_of_any_kind(model):
    boxes = [[1, 1, 6, 6]]
    for picture in (
        Image.new("CMYK", (9, 8)),
        Image.new("RGB", (1, 1)),
        np.zeros((8, 9), dtype=np.uint8),
        Image.new("RGB", (3000, 20)),
    ):
        found = model.predict(picture, "red car", None if picture is not None else boxes)
        assert 0 <= found.score <= 1


def test_the_command(trained, tmp_path, capsys):
    query = queries(trained, "val")[0]
    flags = (
        *(*trained.model(), "--image", str(query.image), "--expression", query.text),
        *("--boxes", str(trained.sizes), "--device", "cpu"),
    )
    assert trained.command("predict", *flags, "--json", "--save", str(tmp_path / "x.jpg")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["expression"] == query.text
    assert shown["scores"][shown["region"]] == shown["score"]
    with Image.open(tmp_path / "x.jpg") as saved:
        assert saved.format == "JPEG"
    assert trained.command("predict", *flags) == 0
    assert (
        "the whole image" if shown["region"] == 0 else f"region {shown['region']}"
    ) in capsys.readouterr().out


def test_half_precision(trained, model):
    query = queries(trained, "val")[0]
    half = vl_bert.load(trained.cfg, trained.checkpoint(), "cpu", overrides=trained.overrides(), fp16=True)
    own, other = (one.predict(query.image, query.text, query.boxes).scores for one in (model, half))
    np.testing.assert_allclose(own, other, atol=0.1)
    assert own != other


def test_region_states_are_those_of_their_regions(model, trained):
    query = queries(trained, "val")[0]
    swapped = Query(query.image, query.text, query.boxes[::-1])
    first, second = model.encode_batch([query, swapped])
    torch.testing.assert_close(first.regions[1:], second.regions[1:].flip(0))
    assert not torch.allclose(first.regions[1], first.regions[-1])
