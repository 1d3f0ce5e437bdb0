import pytest
import torch
from PIL import Image

from common.data.images import (
    clip_boxes,
    compute_im_info,
    flip_boxes,
    image_to_tensor,
    resize_boxes,
    target_size,
    vcr_padded_size,
)


@pytest.mark.parametrize(
    ("size", "scales", "expected"),
    [
        ((1920, 817), (600, 1200), (1198, 510)),
        ((1920, 1080), (600, 1200), (1066, 600)),
        ((640, 480), (600, 1000), (800, 600)),
        ((428, 640), (600, 1000), (600, 897)),
        ((1000, 600), (600, 1000), (1000, 600)),
        ((1001, 600), (600, 1000), (999, 599)),
        ((10, 10000), (600, 1000), (1, 1000)),
        ((9, 10000), (600, 1000), (1, 1000)),
        ((10000, 1), (600, 1000), (1000, 1)),
        ((1, 1), (600, 1000), (600, 600)),
    ],
)
def test_target_size(size, scales, expected):
    assert target_size(*size, scales) == expected


def test_no_side_vanishes_or_leaves_the_canvas():
    for width in range(1, 60):
        for height in range(1, 60):
            size = target_size(width, height, (8, 12))
            padded_size = vcr_padded_size(*size, (8, 12))
            assert 1 <= size[0] <= padded_size[1]
            assert 1 <= size[1] <= padded_size[0]


def test_canvas_is_height_and_width():
    assert vcr_padded_size(1198, 510, (600, 1200)) == (600, 1200)
    assert vcr_padded_size(600, 600, (600, 1200)) == (600, 1200)
    assert vcr_padded_size(510, 1198, (600, 1200)) == (1200, 600)


def test_flip():
    assert flip_boxes(torch.tensor([[10.0, 5.0, 110.0, 50.0]]), 800).tolist() == [[689, 5, 789, 50]]


def test_clip():
    boxes = torch.tensor([[-3.0, 2.0, 9.5, 30.0], [12.0, -1.0, 4.0, 3.0]])
    assert clip_boxes(boxes, 10, 20).tolist() == [[0, 2, 9, 19], [9, 0, 4, 3]]


def test_boxes_follow_the_picture():
    info = compute_im_info((100, 50), (200, 75))
    assert info.tolist() == [200, 75, 2, 1.5]
    boxes = torch.tensor([[0.0, 0.0, 99.0, 49.0], [10.0, 20.0, 100.0, 60.0]])
    assert resize_boxes(boxes, info, flipped=False).tolist() == [[0, 0, 198, 73.5], [20, 30, 199, 74]]
    assert resize_boxes(boxes, info, flipped=True).tolist() == [[1, 0, 199, 73.5], [0, 30, 179, 74]]


def test_image_is_blue_green_red_rows_first():
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 1), (1, 2, 3))
    pixels = image_to_tensor(image, (3, 2))
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 2, 3))
    assert pixels[:, 1, 0].tolist() == [3, 2, 1]
    assert pixels.sum() == 6
    assert image_to_tensor(image, (3, 2), flipped=True)[:, 1, 2].tolist() == [3, 2, 1]


def test_shrinking_averages_the_area():
    image = Image.new("RGB", (4, 1))
    image.putpixel((1, 0), (70, 70, 70))
    # A triangle of 4 pixels' width around x = 1 weighs the first three pixels 3, 3, 1.
    assert image_to_tensor(image, (2, 1))[0].tolist() == [[30, 10]]
