"""The page that all figures are drawn on."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from common.errors import UsageError
from figs.style import WIDTH, page, panel, plot_axes, text_width


def draw(path):
    with page(path, 120) as sheet:
        panel(sheet, 20, 20, 30.123456, 30, face="#ff0000")
        sheet.text(100, 60, "words → regions")
        plot_axes(sheet, 300, 10, 90, 60).plot([0, 1], [0, 1])
    return path


def test_svg_has_its_size_and_the_same_bytes_every_time(tmp_path):
    first, second = draw(tmp_path / "a.svg"), draw(tmp_path / "b.svg")
    text = first.read_text()
    assert 'width="675pt" height="90pt"' in text  # 900 x 120 CSS pixels
    assert first.read_bytes() == second.read_bytes()
    assert "<text" not in text  # glyphs are paths
    paths = "".join(re.findall(r' d="([^"]*)"', text))
    assert re.search(r"\.\d\d\b", paths)
    assert not re.search(r"\.\d{3}", paths)


def test_png_is_dense_and_clear_outside_of_the_card(tmp_path):
    with Image.open(draw(tmp_path / "a.png")) as file:
        picture = file.convert("RGBA")
    assert picture.size == (2 * WIDTH, 240)
    assert picture.getpixel((1, 1))[3] == 0
    assert picture.getpixel((1000, 100)) == (252, 252, 250, 255)
    assert picture.getpixel((70, 70)) == (255, 0, 0, 255)


def test_axes_stand_where_they_are_told(tmp_path):
    with page(tmp_path / "a.svg", 200) as sheet:
        box = plot_axes(sheet, 90, 20, 450, 100).get_position()
        assert [round(side, 6) for side in (box.x0, box.y0, box.width, box.height)] == [0.1, 0.4, 0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.jpg", "a.jpg: must end in .svg or .png"), ("none/a.svg", "no such directory: .*none")],
)
def test_wrong_names(tmp_path, name, message):
    with pytest.raises(UsageError, match=message), page(tmp_path / name, 100):
        pass


def test_a_place_that_is_taken(tmp_path):
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(UsageError, match=r"--out .*a.svg: cannot be written \(Is a directory\)"):
        draw(tmp_path / "a.svg")


def test_what_fails_leaves_the_old_figure(tmp_path):
    path = tmp_path / "a.svg"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), page(path, 100):
        _ = 1 / 0
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.svg", "old")]


def test_width_of_a_text():
    assert text_width("mm") == pytest.approx(2 * text_width("m"), rel=0.1)
    assert text_width("mm", 18) == pytest.approx(2 * text_width("mm", 9), rel=0.05)
    assert 8 < text_width("m", 9) < 14
