"""What the figures share: a page, its colours and sizes, and how it becomes a file.

Lengths are CSS pixels, so that a figure is as wide in the README as it says; text sizes are points (3 pt = 4 px).
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

FONT = "DejaVu Sans"  # comes with matplotlib
TEXT, SMALL = 9.0, 7.5

_CSS_INCH, _POINTS = 96, 72
_RC: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": TEXT,
    "text.color": INK,
    "svg.fonttype": "path",  # GitHub's viewers have fonts of their own
    "svg.hashsalt": "vl-bert",  # the same figure gives the same bytes
}


def px(length: float) -> float:
    """Returns CSS pixels in points, as matplotlib wants widths of lines and sizes of markers."""
    return length * _POINTS / _CSS_INCH


@contextmanager
def page(path: Path, height: float) -> Iterator[Axes]:
    """Gives a card to draw on, in CSS pixels from its upper left corner, and writes it to `path` (.svg or .png).

    Raises:
        UsageError: the name or the folder cannot be used, or the file not be written.
    """
    check_name(path)
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH / _CSS_INCH, height / _CSS_INCH), dpi=_CSS_INCH)
        axes = pixel_axes(figure)
        panel(axes, 0.5, 0.5, WIDTH - 1, height - 1, face=CARD, edge=EDGE, radius=14)
        yield axes
        for artist in axes.get_children():
            artist.set_clip_on(False)  # one attribute less of each
        try:
            replace_file(path, partial(_save, figure, path.suffix.lower()))
        except OSError as error:
            raise UsageError(f"--out {path}: cannot be written ({error.strerror})") from error


def pixel_axes(figure: Figure) -> Axes:
    """Returns axes over a whole figure, in CSS pixels, y downwards."""
    width, height = (float(side) * _CSS_INCH for side in figure.get_size_inches())
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def plot_axes(page: Axes, x: float, y: float, width: float, height: float) -> Axes:
    """Returns axes for a plot of its own at a place of a page, in its pixels."""
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
    """Draws a rounded rectangle, which stays inside the given one."""
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
    """Returns the width of a text, in CSS pixels."""
    font = FontProperties(family=FONT, size=size)
    return (
        float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) * _CSS_INCH / _POINTS
    )


def out_flag(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds `--out`, by default the file that the README shows."""
    default = Path(__file__).with_name(name)
    parser.add_argument("--out", type=Path, default=default, help=f"figure to write (default: figs/{name})")


def check_name(path: Path) -> None:
    """Checks where a figure shall go.

    Raises:
        UsageError: the name or the folder cannot be used.
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
    # 255 colours, and one for what is outside of the card: less than half the bytes.
    full = Image.open(drawn)
    outside = full.getchannel("A").point(lambda alpha: 255 * (alpha < 128))
    flat = Image.new("RGB", full.size, CARD)
    flat.paste(full, mask=full.getchannel("A"))
    few = flat.quantize(255, Image.Quantize.MEDIANCUT, kmeans=2)
    colours = few.getpalette() or []
    few.putpalette(colours[:765] + [0] * (768 - len(colours[:765])))  # the last is what is outside
    few.paste(255, mask=outside)
    few.save(path, format="PNG", optimize=True, transparency=255)


def _rounded(svg: str) -> str:
    """Cuts numbers after two digits, all but the scales of glyphs, and indentation: a fifth of the bytes."""
    short = re.sub(r"scale\([^)]*\)|(\.\d\d)\d+", lambda found: found[1] or found[0], svg)
    return re.sub(r"\s*\n\s*", "\n", short)
