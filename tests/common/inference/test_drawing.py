"""Pictures with regions drawn on them."""

from __future__ import annotations

import pytest
from PIL import Image

from common.inference.drawing import CHOSEN, DARK, PLAIN, DrawnBox, draw, font_for


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


@pytest.mark.parametrize(
    ("size", "expected"),
    [((20_000, 100), (4096, 20)), ((1, 20_000), (240, 4096)), ((6000, 4000), (4096, 2731))],
)
def test_long_and_large_pictures_can_be_read(size, expected):
    page = draw(Image.new("RGB", size), [DrawnBox((0, 0, *size), "1 cat", True)], "a cat")
    unit = 17 if size == (6000, 4000) else 2
    assert page.size == (expected[0], expected[1] + 14 * unit)


def test_a_label_stays_on_the_page():
    page = draw(Image.new("RGB", (480, 300)), [DrawnBox((470, 0, 479, 100), "1 umbrella", True)], "")
    row = [page.getpixel((x, 3)) for x in range(480)]
    assert row.count(CHOSEN) > 40


@pytest.mark.parametrize("text", ["кошка и собака", "γάτα"])
def test_letters_of_other_alphabets(text):
    pytest.importorskip("matplotlib")
    font = font_for(text, 14)
    assert font.getname()[0] == "DejaVu Sans"
    assert font_for("a cat", 14).getname() != font.getname()


def test_letters_that_no_font_has(caplog):
    draw(Image.new("RGB", (480, 300)), [], "a \U0010fffe")
    assert caplog.messages == ["no installed font has the letters \U0010fffe"]


def test_a_chosen_box_is_on_top():
    boxes = [DrawnBox((100, 100, 400, 300), "", True), DrawnBox((100, 100, 400, 300))]
    assert draw(Image.new("RGB", (960, 600)), boxes, "").getpixel((102, 200)) == CHOSEN
