import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.cli.box_flags import add_box_flags, boxes_from_flags, finder_from_flags
from common.data.regions.json_format import encode_regions
from common.data.regions.sources import RegionSource
from common.data.regions.types import Regions
from common.errors import UsageError
from common.inference.grid import GRID, GridDetector, regions_of

CPU = torch.device("cpu")


def test_a_grid_covers_the_picture_and_says_so_once(caplog):
    finder = GridDetector()
    first, second = finder([Image.new("RGB", (100, 40)), Image.new("RGB", (1, 1))])
    finder([Image.new("RGB", (5, 5))])
    assert [message[:69] for message in caplog.messages] == [
        "no boxes and no detector given: a grid of 14 regions stands in for de"
    ]
    assert first.boxes[:5].tolist() == [
        [0, 0, 99, 39], [0, 0, 49, 39], [50, 0, 99, 39], [0, 0, 99, 19], [0, 20, 99, 39],
    ]  # fmt: skip
    assert first.boxes[5:8].tolist() == [[0, 0, 49, 19], [25, 0, 74, 19], [50, 0, 99, 19]]
    assert first.boxes[-1].tolist() == [50, 20, 99, 39]
    assert len(first.boxes) == len(GRID) == len(first.class_ids) == len(first.scores)
    assert second.boxes.unique().tolist() == [0]


def test_announced_elsewhere_it_is_silent(caplog):
    GridDetector(announced=True)([Image.new("RGB", (5, 5))])
    assert caplog.messages == []


def test_regions_of_all_sources(tmp_path):
    size = (10, 10)
    boxes = torch.tensor([[1.0, 2, 3, 4]])
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"boxes": boxes.tolist(), "classes": ["car"]}))
    looked = Regions(boxes, class_ids=torch.tensor([3]), scores=torch.ones(1))
    tensors = {"boxes": boxes, "classes": torch.tensor([3])}
    for source in (looked, path, str(path), tmp_path, {"boxes": boxes, "classes": [3]}, tensors):
        regions = regions_of(source, "folder/x.png", size)
        assert (regions.boxes.tolist(), regions.class_ids.tolist()) == ([[1, 2, 3, 4]], [3])
        assert (regions.features, regions.image_size) == (None, size)
    for source in (boxes, boxes.tolist(), np.array([[1, 2, 3, 4]]), ((1, 2, 3, 4),)):
        assert regions_of(source, "x", size).class_ids.tolist() == [0]


def test_an_open_file_is_read_once(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(
        json.dumps([{"image_id": 9, "bbox": [1, 2, 2, 2]}, {"image_id": 4, "bbox": [1, 1, 1, 1]}])
    )
    opened = RegionSource(str(path))
    path.unlink()
    for name, box in (("in/9.png", [1, 2, 3, 4]), ("4.png", [1, 1, 2, 2])):
        assert regions_of(opened, name, (10, 10)).boxes.tolist() == [box]


def test_the_boxes_of_one_picture_are_not_for_several(tmp_path):
    parser = argparse.ArgumentParser()
    add_box_flags(parser)
    (tmp_path / "x.json").write_text("[[1, 2, 3, 4]]")
    args = parser.parse_args(["--boxes", str(tmp_path / "x.json")])
    assert boxes_from_flags(args, 1).is_single_image
    with pytest.raises(
        UsageError, match=r"--boxes .*x\.json: holds the boxes of one picture; for several, give"
    ):
        boxes_from_flags(args, 2)
    assert not boxes_from_flags(parser.parse_args(["--boxes", str(tmp_path)]), 2).is_single_image
    assert boxes_from_flags(parser.parse_args([]), 2) is None


def test_a_region_file_brings_its_features(tmp_path):
    stored = Regions(torch.tensor([[1.0, 2, 3, 4]]), torch.ones(1, 6), torch.zeros(6), image_size=(10, 10))
    (tmp_path / "x.json").write_text(json.dumps(encode_regions("x", stored)))
    regions = regions_of(tmp_path / "x.json", "x.png", (10, 10), 6)
    assert (regions.features.tolist(), regions.image_feature.tolist()) == ([[1.0] * 6], [0.0] * 6)
    assert regions_of(tmp_path / "x.json", "x.png", (10, 10), None).features is None
    assert regions_of(RegionSource(str(tmp_path)), "x.png", (10, 10), 6).features.tolist() == [[1.0] * 6]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--boxes", "a", "--detector", "b"], "--boxes and --detector: give one of them"),
        (["--detector", "a"], "--detector and --detector-weights: give both"),
        (["--detector-weights", "a"], "give both, or none"),
        (["--score-threshold", "2"], "--score-threshold: 2.0: must be from 0 to 1"),
        (["--max-boxes", "0"], "--max-boxes: 0: must be at least 1"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    parser = argparse.ArgumentParser()
    add_box_flags(parser)
    with pytest.raises(UsageError, match=message):
        finder_from_flags(parser.parse_args(flags), CPU)
    assert finder_from_flags(parser.parse_args(["--boxes", "a"]), CPU) is None
