"""Page, colors, sizes and output files of the figures.

Lengths are CSS pixels, as the README shows them; text sizes are points (3 pt = 4 px).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import text_to_path
from PIL import Image

from common.errors import UsageError
from common.files import replace_file

WIDTH = 900
DENSITY = 2
"""Pixels of a PNG per CSS pixel."""

INK, MUTED, FAINT = "#20242c", "#68707d", "#dcdfe4"
CARD, EDGE, WHITE = "#fcfcfa", "#e4e4df", "#ffffff"
WORD, REGION, OTHER, ACCENT = "#2f6fb4", "#c8641b", "#5f6673", "#1f8a70"
WORD_TINT, REGION_TINT, OTHER_TINT, ACCENT_TINT = "#e3edf8", "#faeadb", "#eef0f3", "#e0f1ec"

FONT = "DejaVu Sans"  # bundled with matplotlib
TEXT, SMALL = 9.0, 7.5

_CSS_INCH, _POINTS = 96, 72
_RC: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": TEXT,
    "text.color": INK,
    "svg.fonttype": "path",  # independent of the viewer's fonts
    "svg.hashsalt": "vl-bert",  # makes the output reproducible
}


def px(length: float) -> float:
    """Converts CSS pixels to points, the unit of line widths and marker sizes."""
    return length * _POINTS / _CSS_INCH


@contextmanager
def page(path: Path, height: float) -> Iterator[Axes]:
    """Yields axes in CSS pixels from the upper left corner, and writes the figure to `path` (.svg or .png) on exit.

    Raises:
        UsageError: the suffix or the folder is wrong, or the file cannot be written.
    """
    check_name(path)
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH / _CSS_INCH, height / _CSS_INCH), dpi=_CSS_INCH)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        axes.set_axis_off()
        panel(axes, 0.5, 0.5, WIDTH - 1, height - 1, face=CARD, edge=EDGE, radius=14)
        yield axes
        for artist in axes.get_children():
            artist.set_clip_on(False)  # saves one attribute per artist
        try:
            replace_file(path, partial(_save, figure, path.suffix.lower()))
        except OSError as error:
            raise UsageError(f"--out {path}: cannot be written ({error.strerror})") from error


def plot_axes(page: Axes, x: float, y: float, width: float, height: float) -> Axes:
    """Adds axes for a plot at a position of a page, in CSS pixels."""
    figure = page.get_figure(root=True)
    assert figure is not None
    bottom = page.get_ylim()[0]
    return figure.add_axes((x / WIDTH, 1 - (y + height) / bottom, width / WIDTH, height / bottom))


def panel(
    axes: Axes,
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    face: str = WHITE,
    edge: str = EDGE,
    radius: float = 6,
    dashed: bool = False,
) -> None:
    """Draws a rounded rectangle inside the given bounds."""
    axes.add_patch(
        FancyBboxPatch(
            (x + radius, y + radius),
            width - 2 * radius,
            height - 2 * radius,
            boxstyle=f"round,pad={radius}",
            facecolor=face,
            edgecolor=edge,
            linewidth=px(1),
            linestyle=(0, (4, 3)) if dashed else "solid",
        )
    )


def text_width(text: str, size: float = TEXT) -> float:
    """Returns the width of text in CSS pixels."""
    font = FontProperties(family=FONT, size=size)
    return (
        float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) * _CSS_INCH / _POINTS
    )


def out_flag(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds `--out`, which defaults to the figure in the README."""
    default = Path(__file__).with_name(name)
    parser.add_argument("--out", type=Path, default=default, help=f"figure to write (default: figs/{name})")


def check_name(path: Path) -> None:
    """Checks the output path of a figure.

    Raises:
        UsageError: the suffix is not supported, or the folder does not exist.
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"--out {path}: must end in .svg or .png")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: no such directory: {path.parent}")


def _save(figure: Figure, suffix: str, path: Path) -> None:
    drawn = BytesIO()
    if suffix == ".svg":
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
        path.write_text(_rounded(drawn.getvalue().decode()), encoding="utf-8")
        return
    figure.savefig(drawn, format="png", transparent=True, dpi=DENSITY * _CSS_INCH)
    # A palette of 255 colors plus transparency halves the file size.
    full = Image.open(drawn)
    outside = full.getchannel("A").point(lambda alpha: 255 * (alpha < 128))
    opaque = Image.new("RGB", full.size, CARD)
    opaque.paste(full, mask=full.getchannel("A"))
    palette_image = opaque.quantize(255, Image.Quantize.MEDIANCUT, kmeans=2)
    colors = palette_image.getpalette() or []
    palette_image.putpalette(colors[:765] + [0] * (768 - len(colors[:765])))  # the last entry is transparent
    palette_image.paste(255, mask=outside)
    palette_image.save(path, format="PNG", optimize=True, transparency=255)


def _rounded(svg: str) -> str:
    """Rounds numbers to two decimals, except for glyph scales, and removes indentation: saves 80 % of the bytes."""
    short = re.sub(r"scale\([^)]*\)|(\.\d\d)\d+", lambda match: match[1] or match[0], svg)
    return re.sub(r"\s*\n\s*", "\n", short)
