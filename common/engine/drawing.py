"""Draws what a model says of a picture: boxes with labels, and a line of text below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

PLAIN = (255, 255, 255)
CHOSEN = (255, 122, 26)
DARK = (24, 26, 31)
LEAST_SIDE = 480
"""Smaller pictures are enlarged, so that labels can be read."""


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
    scale = max(1.0, LEAST_SIDE / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    unit = max(2, round(max(width, height) / 240))
    font = ImageFont.load_default(size=7 * unit)
    lines = textwrap.wrap(text, max(12, round(width / (3.8 * unit)))) or [""]
    line_height = 10 * unit
    page = Image.new("RGB", (max(width, LEAST_SIDE // 2), height + line_height * len(lines) + 4 * unit), DARK)
    page.paste(image.resize((width, height), Image.Resampling.LANCZOS if scale > 1 else None))
    pen = ImageDraw.Draw(page)
    for box in sorted(boxes, key=lambda one: one.chosen):
        _draw_box(pen, box, scale, unit, font)
    for row, line in enumerate(lines):
        pen.text((4 * unit, height + 2 * unit + row * line_height), line, fill=PLAIN, font=font)
    return page


def _draw_box(
    pen: ImageDraw.ImageDraw,
    box: DrawnBox,
    scale: float,
    unit: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    colour = CHOSEN if box.chosen else PLAIN
    x1, y1, x2, y2 = (side * scale for side in box.corners)
    corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    pen.rectangle(corners, outline=DARK, width=unit + 2)
    pen.rectangle(corners, outline=colour, width=unit if box.chosen else max(1, unit // 2))
    if box.label:
        left, top, right, bottom = pen.textbbox((corners[0] + unit, corners[1] + unit), box.label, font=font)
        pen.rectangle((left - unit, top - unit, right + unit, bottom + unit), fill=colour)
        pen.text((corners[0] + unit, corners[1] + unit), box.label, fill=DARK, font=font)
