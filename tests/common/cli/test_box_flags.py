import argparse

import pytest
import torch

from common.cli.box_flags import add_box_flags, boxes_from_flags, detector_from_flags
from common.errors import UsageError


@pytest.fixture
def parse():
    parser = argparse.ArgumentParser()
    add_box_flags(parser)
    return parser.parse_args


def test_boxes_of_single_image_are_not_used_for_several(parse, tmp_path):
    (tmp_path / "x.json").write_text("[[1, 2, 3, 4]]")
    args = parse(["--boxes", str(tmp_path / "x.json")])
    assert boxes_from_flags(args, 1).is_single_image
    with pytest.raises(
        UsageError, match=r"--boxes .*x\.json: has the boxes of one image; for several images"
    ):
        boxes_from_flags(args, 2)
    assert not boxes_from_flags(parse(["--boxes", str(tmp_path)]), 2).is_single_image
    assert boxes_from_flags(parse([]), 2) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--boxes", "a", "--detector", "b"], "--boxes and --detector: give one of them"),
        (["--detector", "a"], "--detector and --detector-weights: give both"),
        (["--detector-weights", "a"], "give both or neither"),
        (["--score-threshold", "2"], "--score-threshold: 2.0: must be from 0 to 1"),
        (["--max-boxes", "0"], "--max-boxes: 0: must be at least 1"),
    ],
)
def test_bad_flags_raise(parse, flags, message):
    with pytest.raises(UsageError, match=message):
        detector_from_flags(parse(flags), torch.device("cpu"))


def test_no_detector_with_boxes(parse):
    assert detector_from_flags(parse(["--boxes", "a"]), torch.device("cpu")) is None
