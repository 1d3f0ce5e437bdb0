"""What a sentence means in pictures of one's own."""

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


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train(WIDE_INIT) == 0
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
    assert trained.evaluate("test", *trained.model(), "--split", "test", "--result-name", "x") == 0
    (result,) = (trained.out / "results").glob("x_*_test.json")
    expected = [record["box"] for record in json.loads(result.read_text())]
    found = model.predict_batch(queries(trained, "test"))
    np.testing.assert_allclose([one.box for one in found], expected, atol=0.3)
    assert len({one.region for one in found}) > 1


def test_scores_are_those_of_the_network(trained, model):
    (batch, outputs), *_ = trained.scored(
        trained.cfg, trained.checkpoint(), "val", "DATASET.VAL_IMAGE_SET=test"
    )
    assert batch.images.shape[-2:] == (64, 64), "pictures of both orientations, as a rule"
    found = [model.predict_batch([query])[0] for query in queries(trained, "test")]
    for one, logits in zip(found, batch.num_boxes.split(outputs.logits), strict=True):
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


def test_pictures_do_not_depend_on_each_other(model):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    boxes = [[1, 1, 20, 20], [5, 30, 50, 55]]
    queries = [
        Query(picture, "red car", boxes) for picture in (pixels, pixels.transpose(1, 0, 2), pixels[:, :70])
    ]
    queries += queries[:1]
    for together, query in zip(model.predict_batch(queries), queries, strict=True):
        np.testing.assert_allclose(
            together.scores, model.predict(query.image, query.text, query.boxes).scores, atol=1e-6
        )
    for together, query in zip(model.encode_batch(queries), queries, strict=True):
        alone = model.encode(query.image, query.text, query.boxes)
        torch.testing.assert_close(together.text, alone.text, atol=1e-6, rtol=1e-5)


def test_boxes_are_those_that_were_given(model):
    """A picture so large that the network sees few of its pixels."""
    picture = Image.new("RGB", (1700, 1300))
    box = [1391.3, 1200.25, 1699.0, 1299.0]
    found = [model.predict(picture, text, [box]) for text in ("red car", "left", "ball", "blue person")]
    expected = {0: (0, 0, 1699, 1299), 1: tuple(np.float32(box).tolist())}
    for one in found:
        assert one.box == expected[one.region]
    assert model.encode(picture, "red car", [box]).places.boxes == tuple(expected.values())


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4))])
def test_no_regions_are_announced(model, boxes, caplog):
    assert model.predict(Image.new("RGB", (9, 8)), "red car", boxes).region == 0
    assert caplog.messages == ["picture 1: has no regions: the model sees the whole picture alone"]
    assert model.encode(Image.new("RGB", (9, 8)), "red car", boxes).places.labels == ("image",)


def test_a_detector_that_finds_nothing_is_announced(trained, model, caplog):
    class Nothing:
        score_threshold = 0.25

        def __call__(self, images):
            if any(image.width > 100 for image in images):
                raise DataError("too narrow")
            none = torch.zeros(0)
            return [Regions(none.view(0, 4), class_ids=none.long(), scores=none) for _ in images]

    looking = RefCOCOPredictor(
        model.task, model.model, device=model.device, precision=model.precision, finder=Nothing()
    )
    looking.predict(Image.new("RGB", (9, 8)), "red car")
    assert caplog.messages == [
        "picture 1: has no regions with a confidence of at least 0.25 (--score-threshold): the model sees the whole "
        "picture alone"
    ]
    pictures = [Query(Image.new("RGB", (width, 8)), "red car") for width in (9, 101)]
    with pytest.raises(DataError, match=r"^picture 2: too narrow$"):
        looking.predict_batch(pictures)


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
