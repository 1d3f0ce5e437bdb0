"""Draws what a model says of a picture: boxes with labels, and a line of text below."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)


PLAIN = (255, 255, 255)


CHOSEN = (255, 122, 26)


DARK = (24, 26, 31)


SIDES = (480, 4096)
"""Least and greatest long side in pixels: pictures are scaled to lie between, so that labels can be read."""


LEAST_WIDTH = 240


_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "unifont.ttf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "arial.ttf",
)
"""Files that Pillow looks for in the folders of the system."""


class DrawnBox(NamedTuple):
    """A region to draw.

    Attributes:
        corners: x1, y1, x2, y2 in pixels of the picture.
        label: what to write at it; nothing if empty.
        chosen: whether the model means this one.
    """

    corners: Sequence[float]
    label: str = ""
    chosen: bool = False


def draw(image: Image.Image, boxes: Sequence[DrawnBox], text: str) -> Image.Image:
    """Returns a copy of an RGB picture with boxes, the chosen ones on top, and `text` on a band below it."""
    longest = max(image.size)
    scale = min(max(longest, SIDES[0]), SIDES[1]) / longest
    width, height = (max(1, round(side * scale)) for side in image.size)
    page_width = max(width, LEAST_WIDTH)
    # On long pictures the short side decides: what is written there must not hide them.
    unit = max(2, round(min(max(width, height) / 240, page_width / 120, height / 40)))
    font = font_for("".join([text, *(box.label for box in boxes)]), 7 * unit)
    letter = font.getlength(text) / max(len(text), 1) or unit
    lines = textwrap.wrap(text, max(1, int(0.9 * (page_width - 8 * unit) / letter))) or [""]
    line_height = 10 * unit
    page = Image.new("RGB", (page_width, height + line_height * len(lines) + 4 * unit), DARK)
    page.paste(image.resize((width, height), Image.Resampling.LANCZOS) if scale != 1 else image)
    pen = ImageDraw.Draw(page)
    for box in sorted(boxes, key=lambda one: one.chosen):
        _draw_box(pen, box, scale, unit, font)
    for row, line in enumerate(lines):
        pen.text((4 * unit, height + 2 * unit + row * line_height), line, fill=PLAIN, font=font)
    return page


def _draw_box(
    pen: ImageDraw.ImageDraw, box: DrawnBox, scale: float, unit: int, font: ImageFont.FreeTypeFont
) -> None:
    colour = CHOSEN if box.chosen else PLAIN
    x1, y1, x2, y2 = (side * scale for side in box.corners)
    corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    pen.rectangle(corners, outline=DARK, width=unit + 2)
    pen.rectangle(corners, outline=colour, width=unit if box.chosen else max(1, unit // 2))
    if box.label:
        room = pen.im.size[0] - font.getlength(box.label) - unit
        start = (max(0, min(corners[0] + unit, room)), corners[1] + unit)
        left, top, right, bottom = pen.textbbox(start, box.label, font=font)
        pen.rectangle((left - unit, top - unit, right + unit, bottom + unit), fill=colour)
        pen.text(start, box.label, fill=DARK, font=font)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Returns Pillow's own font if it has all letters of a text, else the installed one that has most of them."""
    letters = set(text) - set(" \n\t")
    best, lacking = None, letters
    for font in _installed(size):
        lacks = {letter for letter in letters if _mask(font, letter) == _mask(font, "\uffff")}
        if best is None or len(lacks) < len(lacking):
            best, lacking = font, lacks
        if not lacks:
            break
    assert best is not None
    if lacking:
        logger.warning("no installed font has the letters %s", " ".join(sorted(lacking)))
    return best


def _installed(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont)
    yield own
    matplotlib = find_spec("matplotlib")
    folder = Path(matplotlib.origin or "").parent / "mpl-data/fonts/ttf" if matplotlib else Path()
    for name in (str(folder / _FONTS[0]), *_FONTS):
        with suppress(OSError):
            yield ImageFont.truetype(name, size)


def _mask(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    return bytes(font.getmask(letter))
