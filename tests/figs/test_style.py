"""Page and output files of the figures."""

from __future__ import annotations

import re

import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from common.errors import UsageError
from figs.style import WIDTH, page, panel, plot_axes, text_width


def draw(path):
    with page(path, 120) as sheet:
        panel(sheet, 20, 20, 30.123456, 30, face="#ff0000")
        sheet.text(100, 60, "words → regions")
        plot_axes(sheet, 300, 10, 90, 60).plot([0, 1], [0, 1])
    return path


def test_svg_is_reproducible(tmp_path):
    first, second = draw(tmp_path / "a.svg"), draw(tmp_path / "b.svg")
    text = first.read_text()
    assert 'width="675pt" height="90pt"' in text  # 900 x 120 CSS pixels
    assert first.read_bytes() == second.read_bytes()
    assert "<text" not in text  # glyphs are paths
    paths = "".join(re.findall(r' d="([^"]*)"', text))
    assert re.search(r"\.\d\d\b", paths)
    assert not re.search(r"\.\d{3}", paths)


def test_png_is_transparent_outside_of_card(tmp_path):
    with Image.open(draw(tmp_path / "a.png")) as file:
        image = file.convert("RGBA")
    assert image.size == (2 * WIDTH, 240)
    assert image.getpixel((1, 1))[3] == 0
    assert image.getpixel((1000, 100)) == (252, 252, 250, 255)
    assert image.getpixel((70, 70)) == (255, 0, 0, 255)


def test_plot_axes_bounds(tmp_path):
    with page(tmp_path / "a.svg", 200) as sheet:
        box = plot_axes(sheet, 90, 20, 450, 100).get_position()
        assert [round(side, 6) for side in (box.x0, box.y0, box.width, box.height)] == [0.1, 0.4, 0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.jpg", "a.jpg: must end in .svg or .png"), ("none/a.svg", "no such directory: .*none")],
)
def test_page_bad_path(tmp_path, name, message):
    with pytest.raises(UsageError, match=message), page(tmp_path / name, 100):
        pass


def test_page_unwritable_path(tmp_path):
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(UsageError, match=r"--out .*a.svg: cannot be written \(Is a directory\)"):
        draw(tmp_path / "a.svg")


def test_page_keeps_old_figure_on_error(tmp_path):
    path = tmp_path / "a.svg"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), page(path, 100):
        _ = 1 / 0
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.svg", "old")]


def test_text_width():
    assert text_width("mm") == pytest.approx(2 * text_width("m"), rel=0.1)
    assert text_width("mm", 18) == pytest.approx(2 * text_width("mm", 9), rel=0.05)
    assert 8 < text_width("m", 9) < 14
