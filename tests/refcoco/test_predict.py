"""Referring expressions on the user's own images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vl_bert
from common.data.regions.types import Regions
from common.errors import DataError
from common.inference.queries import Query
from refcoco.predict import RefCOCOPredictor
from tests.refcoco.world import World
from tests.world import WIDE_INIT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train(WIDE_INIT) == 0
    return world


@pytest.fixture(scope="module")
def model(trained):
    return trained.loaded()


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


def test_predict_batch_matches_test_py(trained, model):
    assert type(model) is RefCOCOPredictor
    assert trained.evaluate("test", *trained.model(), "--split", "test", "--result-name", "x") == 0
    (result,) = (trained.out / "results").glob("x_*_test.json")
    expected = [record["box"] for record in json.loads(result.read_text())]
    groundings = model.predict_batch(queries(trained, "test"))
    np.testing.assert_allclose([item.box for item in groundings], expected, atol=0.3)
    assert len({item.region for item in groundings}) > 1


def test_predict_scores_match_network(trained, model):
    (batch, outputs), *_ = trained.scored(
        trained.cfg, trained.checkpoint(), "val", "DATASET.VAL_IMAGE_SET=test"
    )
    assert batch.images.shape[-2:] == (64, 64), "both orientations are padded to the same size"
    groundings = [model.predict_batch([query])[0] for query in queries(trained, "test")]
    for item, logits in zip(groundings, batch.num_boxes.split(outputs.logits), strict=True):
        np.testing.assert_allclose(item.scores, logits.sigmoid(), atol=1e-5)
        assert item.score == max(item.scores)
        assert item.scores[item.region] == item.score  # region 0 is the whole image, the first candidate


def test_predict_without_boxes_uses_grid(trained, caplog):
    query = queries(trained, "val")[0]
    item = trained.loaded().predict(query.image, query.text)  # a model warns only once
    assert "using a grid of 14 regions" in caplog.text
    with Image.open(query.image) as image:
        width, height = image.size
    x1, y1, x2, y2 = item.box
    assert -0.1 <= x1 <= x2 <= width
    assert -0.1 <= y1 <= y2 <= height


@pytest.mark.parametrize(
    "image",
    [
        Image.new("CMYK", (9, 8)),
        Image.new("RGB", (1, 1)),
        np.zeros((8, 9), dtype=np.uint8),
        Image.new("RGB", (3000, 20)),
    ],
)
def test_predict_image_types(model, image):
    assert 0 <= model.predict(image, "red car").score <= 1


def test_results_do_not_depend_on_batch(model):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    boxes = [[1, 1, 20, 20], [5, 30, 50, 55]]
    batch = [Query(image, "red car", boxes) for image in (pixels, pixels.transpose(1, 0, 2), pixels[:, :70])]
    batch += batch[:1]
    predictions, encodings = model.predict_batch(batch), model.encode_batch(batch)
    for query, prediction, encoding in zip(batch, predictions, encodings, strict=True):
        alone = model.predict(query.image, query.text, query.boxes)
        np.testing.assert_allclose(prediction.scores, alone.scores, atol=1e-6)
        states = model.encode(query.image, query.text, query.boxes).text
        torch.testing.assert_close(encoding.text, states, atol=1e-6, rtol=1e-5)


def test_boxes_are_returned_in_original_pixels(model):
    """The image is much larger than the network input."""
    image = Image.new("RGB", (1700, 1300))
    box = [1391.3, 1200.25, 1699.0, 1299.0]
    expected = {0: (0, 0, 1699, 1299), 1: tuple(np.float32(box).tolist())}
    for text in ("red car", "left", "ball", "blue person"):
        item = model.predict(image, text, [box])
        assert item.box == expected[item.region]
    assert model.encode(image, "red car", [box]).sequence.boxes == tuple(expected.values())


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4))])
def test_predict_without_regions_warns(model, boxes, caplog):
    assert model.predict(Image.new("RGB", (9, 8)), "red car", boxes).region == 0
    assert caplog.messages == ["image 1: no regions: the model reads only the whole image"]
    assert model.encode(Image.new("RGB", (9, 8)), "red car", boxes).sequence.labels == ("image",)


def test_detector_without_detections_warns_and_errors_name_the_image(model, caplog):
    class NoDetections:
        score_threshold = 0.25

        def __call__(self, images):
            if any(image.width > 100 for image in images):
                raise DataError("too narrow")
            none = torch.zeros(0)
            return [Regions(none.view(0, 4), class_ids=none.long(), scores=none) for _ in images]

    predictor = RefCOCOPredictor(
        model.task, model.model, device=model.device, precision=model.precision, detector=NoDetections()
    )
    predictor.predict(Image.new("RGB", (9, 8)), "red car")
    assert caplog.messages == [
        "image 1: no regions with a confidence of at least 0.25 (--score-threshold): the model reads only the whole "
        "image"
    ]
    batch = [Query(Image.new("RGB", (width, 8)), "red car") for width in (9, 101)]
    with pytest.raises(DataError, match=r"^image 2: too narrow$"):
        predictor.predict_batch(batch)


def test_command_prints_and_draws(trained, tmp_path, capsys):
    query = queries(trained, "val")[0]
    flags = (
        *(*trained.model(), "--image", str(query.image), "--expression", query.text),
        *("--boxes", str(trained.sizes), "--device", "cpu"),
    )
    assert trained.command("predict", *flags, "--json", "--save", str(tmp_path / "x.jpg")) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["expression"] == query.text
    assert record["scores"][record["region"]] == record["score"]
    with Image.open(tmp_path / "x.jpg") as saved:
        assert saved.format == "JPEG"
    assert trained.command("predict", *flags) == 0
    expected = "the whole image" if record["region"] == 0 else f"region {record['region']}"
    assert expected in capsys.readouterr().out


def test_half_precision(trained, model):
    query = queries(trained, "val")[0]
    half = vl_bert.load(trained.cfg, trained.checkpoint(), "cpu", overrides=trained.overrides(), fp16=True)
    scores, half_scores = (
        item.predict(query.image, query.text, query.boxes).scores for item in (model, half)
    )
    np.testing.assert_allclose(scores, half_scores, atol=0.1)
    assert scores != half_scores


def test_encoded_regions_follow_order_of_boxes(model, trained):
    query = queries(trained, "val")[0]
    reversed_boxes = Query(query.image, query.text, query.boxes[::-1])
    first, second = model.encode_batch([query, reversed_boxes])
    torch.testing.assert_close(first.regions[1:], second.regions[1:].flip(0))
    assert not torch.allclose(first.regions[1], first.regions[-1])
