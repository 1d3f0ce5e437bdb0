"""Pictures with regions drawn on them."""

from __future__ import annotations

import pytest
from PIL import Image

from common.engine.drawing import CHOSEN, DARK, PLAIN, DrawnBox, draw


def test_a_large_picture_keeps_its_size_and_colours():
    page = draw(
        Image.new("RGB", (960, 600), (10, 200, 30)), [DrawnBox((100, 100, 400, 300), "", True)], "red car"
    )
    assert page.width == 960
    assert page.height > 600
    assert page.getpixel((600, 400)) == (10, 200, 30)
    assert page.getpixel((102, 200)) == CHOSEN
    band = page.crop((0, 600, 960, page.height)).get_flattened_data()
    assert {DARK, PLAIN} <= set(band)


def test_a_small_picture_is_enlarged_with_its_boxes():
    page = draw(Image.new("RGB", (48, 48)), [DrawnBox((10, 10, 30, 30), "", True)], "")
    assert page.width == 480
    assert page.getpixel((101, 200)) == CHOSEN


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 2000)])
def test_any_shape_any_text(size):
    text = "what is " * 200 + "Größe 猫"
    page = draw(Image.new("RGB", size), [DrawnBox((5, 5, -3, -3), "1 cat"), DrawnBox((0, 0, 9e3, 9e3))], text)
    assert page.width >= size[0]


def test_a_chosen_box_is_on_top():
    boxes = [DrawnBox((100, 100, 400, 300), "", True), DrawnBox((100, 100, 400, 300))]
    assert draw(Image.new("RGB", (960, 600)), boxes, "").getpixel((102, 200)) == CHOSEN
