"""Images with labeled boxes."""

from __future__ import annotations

import pytest
from PIL import Image

from common.inference.drawing import DARK, ORANGE, WHITE, LabeledBox, draw


def test_draw_keeps_size_and_colors():
    boxes = [LabeledBox((100, 100, 400, 300), "", True), LabeledBox((100, 100, 400, 300))]
    page = draw(Image.new("RGB", (960, 600), (10, 200, 30)), boxes, "red car")
    assert page.width == 960
    assert page.getpixel((600, 400)) == (10, 200, 30)
    assert page.getpixel((102, 200)) == ORANGE  # highlighted boxes are on top
    caption = page.crop((0, 600, 960, page.height)).getcolors(10_000)
    assert {DARK, WHITE} <= {color for _, color in caption}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((48, 48), (480, 480)),
        ((20_000, 100), (4096, 20)),
        ((1, 20_000), (240, 4096)),
        ((6000, 4000), (4096, 2731)),
    ],
)
def test_draw_resizes_small_and_large_images(size, expected):
    page = draw(Image.new("RGB", size), [LabeledBox((0, 0, *size), "1 cat", True)], "a cat")
    unit = 17 if size == (6000, 4000) else 2
    assert page.size == (expected[0], expected[1] + 14 * unit)


def test_draw_scales_boxes():
    page = draw(Image.new("RGB", (48, 48)), [LabeledBox((10, 10, 30, 30), "", True)], "")
    assert page.getpixel((101, 200)) == ORANGE


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 2000)])
def test_draw_any_shape_and_text(size):
    boxes = [LabeledBox((5, 5, -3, -3), "1 cat"), LabeledBox((0, 0, 9e3, 9e3))]
    page = draw(Image.new("RGB", size), boxes, "what is " * 200 + "Größe 猫")
    assert page.width >= size[0]


def test_draw_keeps_label_on_page():
    page = draw(Image.new("RGB", (480, 300)), [LabeledBox((470, 0, 479, 100), "1 umbrella", True)], "")
    row = [page.getpixel((x, 3)) for x in range(480)]
    assert row.count(ORANGE) > 40
