import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.regions.json_format import encode_regions
from common.data.regions.sources import RegionSource
from common.data.regions.types import Regions
from common.inference.queries import Query, resolve_boxes

BOXES = torch.tensor([[1.0, 2, 3, 4]])


def test_display_name(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        assert Query(opened, "").display_name(3) == str(tmp_path / "a.png")
        assert Query(opened, "", name="b").display_name(3) == "b"
        assert Query(opened.copy(), "").display_name(3) == "image 3"


def test_resolve_boxes_with_classes(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"boxes": BOXES.tolist(), "classes": ["car"]}))
    for source in (
        Regions(BOXES, class_ids=torch.tensor([3]), scores=torch.ones(1)),
        path,
        str(path),
        tmp_path,
        {"boxes": BOXES, "classes": [3]},
        {"boxes": BOXES, "classes": torch.tensor([3])},
    ):
        regions = resolve_boxes(source, "folder/x.png", (10, 10), None)
        assert (regions.boxes.tolist(), regions.class_ids.tolist()) == ([[1, 2, 3, 4]], [3])
        assert (regions.features, regions.image_size) == (None, (10, 10))


@pytest.mark.parametrize("source", [BOXES, BOXES.tolist(), np.array([[1, 2, 3, 4]]), ((1, 2, 3, 4),)])
def test_resolve_boxes_without_classes(source):
    assert resolve_boxes(source, "x", (10, 10), None).class_ids.tolist() == [0]


def test_resolve_boxes_reads_open_file_once(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(
        json.dumps([{"image_id": 9, "bbox": [1, 2, 2, 2]}, {"image_id": 4, "bbox": [1, 1, 1, 1]}])
    )
    opened = RegionSource(str(path))
    path.unlink()
    for name, box in (("in/9.png", [1, 2, 3, 4]), ("4.png", [1, 1, 2, 2])):
        assert resolve_boxes(opened, name, (10, 10), None).boxes.tolist() == [box]


def test_resolve_boxes_reads_features(tmp_path):
    stored = Regions(BOXES, torch.ones(1, 6), torch.zeros(6), image_size=(10, 10))
    (tmp_path / "x.json").write_text(json.dumps(encode_regions("x", stored)))
    for source in (tmp_path / "x.json", RegionSource(str(tmp_path))):
        regions = resolve_boxes(source, "x.png", (10, 10), 6)
        assert (regions.features.tolist(), regions.image_feature.tolist()) == ([[1.0] * 6], [0.0] * 6)
    assert resolve_boxes(tmp_path / "x.json", "x.png", (10, 10), None).features is None
