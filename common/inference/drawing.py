"""Draws labeled boxes on an image and a line of text below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

WHITE = (255, 255, 255)
ORANGE = (255, 122, 26)
DARK = (24, 26, 31)

LONG_SIDE = (480, 4096)
"""Smallest and largest long side of a drawing in pixels; images are resized to fit, so that labels are readable."""
MIN_WIDTH = 240


class LabeledBox(NamedTuple):
    """A box to draw.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the image.
        label: text at the upper left corner.
        highlighted: whether to draw it in orange, on top of the other boxes.
    """

    box: Sequence[float]
    label: str = ""
    highlighted: bool = False


def draw(image: Image.Image, boxes: Sequence[LabeledBox], caption: str) -> Image.Image:
    """Returns a copy of an RGB image with boxes drawn on it and a caption on a dark band below it."""
    longest = max(image.size)
    scale = min(max(longest, LONG_SIDE[0]), LONG_SIDE[1]) / longest
    width, height = (max(1, round(side * scale)) for side in image.size)
    page_width = max(width, MIN_WIDTH)
    # Line width; letters are 7 units high. The short side limits it: labels must not cover a narrow image.
    unit = max(2, round(min(max(width, height) / 240, page_width / 120, height / 40)))
    font = ImageFont.load_default(7 * unit)
    letter_width = font.getlength(caption) / max(len(caption), 1) or unit
    lines = textwrap.wrap(caption, max(1, int(0.9 * (page_width - 8 * unit) / letter_width))) or [""]
    page = Image.new("RGB", (page_width, height + 10 * unit * len(lines) + 4 * unit), DARK)
    page.paste(image.resize((width, height), Image.Resampling.LANCZOS) if scale != 1 else image)
    canvas = ImageDraw.Draw(page)
    for box, label, highlighted in sorted(boxes, key=lambda item: item.highlighted):
        color = ORANGE if highlighted else WHITE
        xs, ys = sorted(x * scale for x in box[::2]), sorted(y * scale for y in box[1::2])
        corners = (xs[0], ys[0], xs[1], ys[1])
        canvas.rectangle(corners, outline=DARK, width=unit + 2)  # keeps white lines visible on white
        canvas.rectangle(corners, outline=color, width=unit if highlighted else max(1, unit // 2))
        if label:
            right_limit = page_width - font.getlength(label) - unit
            start = (max(0, min(xs[0] + unit, right_limit)), ys[0] + unit)
            left, top, right, bottom = canvas.textbbox(start, label, font=font)
            canvas.rectangle((left - unit, top - unit, right + unit, bottom + unit), fill=color)
            canvas.text(start, label, fill=DARK, font=font)
    for row, line in enumerate(lines):
        canvas.text((4 * unit, height + (2 + 10 * row) * unit), line, fill=WHITE, font=font)
    return page
