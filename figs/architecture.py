"""Draws the model: from a picture and a sentence to the heads of all tasks.

`python -m figs.architecture`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Ellipse, Patch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from common.cli.run import run
from figs.style import (
    ACCENT,
    ACCENT_TINT,
    CARD,
    FAINT,
    INK,
    MUTED,
    OTHER,
    OTHER_TINT,
    REGION,
    REGION_TINT,
    SMALL,
    TEXT,
    WHITE,
    WORD,
    WORD_TINT,
    out_flag,
    page,
    panel,
    px,
    text_width,
)
from scripts.toy.world import CATEGORIES, COLORS, PERSON, Box, Scene, SceneObject

# Where things stand: tops and bottoms, CSS pixels.
HEIGHT = 578.0
LEFT, RIGHT = 118.0, 878.0
HEADS, TRANSFORMER, SUM = (20.0, 86.0), (122.0, 184.0), (200.0, 346.0)

_KIND = {category.noun: category for category in CATEGORIES}
SCENE = Scene(
    176,
    128,
    (
        SceneObject(_KIND["kite"], "yellow", (0, 0), (66.0, 6.0, 97.0, 46.0)),
        SceneObject(_KIND["ball"], "red", (1, 0), (12.0, 62.0, 66.0, 116.0)),
        SceneObject(PERSON, "blue", (1, 1), (106.0, 48.0, 160.0, 118.0)),
    ),
)
BACKGROUND = "#b9bdc4"
WHOLE: Box = (0, 0, SCENE.width, SCENE.height)
HIDDEN = 1  # of the regions
SENTENCE = "red ball left of blue person"


class Place(NamedTuple):
    """A column of the sequence.

    Attributes:
        token: its entry of the vocabulary.
        seen: part of the picture of its visual feature; None for none.
        segment: A and B are texts, C is the picture.
        position: all regions have the same.
        colours: of the text and of the cell.
    """

    token: str
    seen: Box | None
    segment: str
    position: int
    colours: tuple[str, str]


class Head(NamedTuple):
    """What reads the final states.

    Attributes:
        name: its task.
        reads: what it is for.
        places: columns that it reads.
        pretraining: whether it belongs to pre-training.
    """

    name: str
    reads: str
    places: tuple[int, ...]
    pretraining: bool = False


def sequence() -> list[Place]:
    """Returns the packed sequence of the example: [CLS] words [SEP] regions [END]."""
    words = SENTENCE.replace("ball", "[MASK]").split()
    tokens = ["[CLS]", *words, "[SEP]"]
    text = [
        Place(token, WHOLE, "A", place, (OTHER, OTHER_TINT) if token[0] == "[" else (WORD, WORD_TINT))
        for place, token in enumerate(tokens)
    ]
    boxes = [WHOLE, *(thing.box for thing in SCENE.objects)]
    regions = [Place("[IMG]", box, "C", len(text), (REGION, REGION_TINT)) for box in boxes]
    return [*text, *regions, Place("[END]", None, "C", len(text) + 1, (OTHER, OTHER_TINT))]


PLACES = sequence()
REGIONS = tuple(number for number, place in enumerate(PLACES) if place.token == "[IMG]")
MASK = next(number for number, place in enumerate(PLACES) if place.token == "[MASK]")
TASK_HEADS = (
    Head("VCR", "score of one answer", (0,)),
    Head("VQA", "answer at its [MASK]", (MASK,)),
    Head("masked words", "[MASK] is “ball”", (MASK,), True),
    Head("masked regions", "the hidden one: kite", (REGIONS[HIDDEN],), True),
    Head("RefCOCO+", "which one is meant?", REGIONS),
)

PITCH = (RIGHT - LEFT) / len(PLACES)
SENTENCE_AT = 382.0
PICTURE = (24.0, 436.0, 0.94)  # left, top, CSS pixels per pixel
LINEAR = (596.0, 436.0, 2 * (LEFT + (REGIONS[0] + len(REGIONS) / 2) * PITCH - 596), 52.0)  # under the regions


def middle(number: int) -> float:
    """Returns the middle of a column."""
    return LEFT + (number + 0.5) * PITCH


def draw_scene(sheet: Axes, corner: tuple[float, float], scale: float, part: Box = WHOLE) -> None:
    """Draws a part of the picture and the things in it from its upper left corner on, in CSS pixels per pixel."""
    left, top, right, bottom = part
    width, height = (right - left) * scale, (bottom - top) * scale
    sheet.add_patch(Rectangle(corner, width, height, facecolor=BACKGROUND))
    for thing in SCENE.objects:
        x1, y1, x2, y2 = thing.box
        if x1 < left or y1 < top or x2 > right or y2 > bottom:
            continue
        for shape, points, fill in thing.category.parts:
            placed = [
                (corner[0] + (x - left) * scale, corner[1] + (y - top) * scale)
                for x, y in thing.to_pixels(points)
            ]
            sheet.add_patch(_patch(shape, placed, _hex(fill or COLORS[thing.color]), scale))


def _patch(shape: str, points: Sequence[tuple[float, float]], colour: str, scale: float) -> Patch:
    if shape == "ellipse":
        (x1, y1), (x2, y2) = points
        return Ellipse(((x1 + x2) / 2, (y1 + y2) / 2), x2 - x1, y2 - y1, facecolor=colour)
    if shape == "line":
        return Polygon(points, closed=False, fill=False, edgecolor=colour, linewidth=px(2 * scale))
    return Polygon(points, facecolor=colour)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def write(sheet: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Writes a text around its middle."""
    sheet.text(x, y, text, ha="center", va="center_baseline", **style)


def arrow(sheet: Axes, *points: tuple[float, float], colour: str = MUTED, tip: bool = True) -> None:
    """Draws a line through points, with a tip at its end."""
    x, y = zip(*points, strict=True)
    sheet.plot(x, y, color=colour, linewidth=px(1.4), solid_joinstyle="round")
    if tip:
        shape = {
            "arrowstyle": "-|>",
            "color": colour,
            "shrinkA": 0,
            "shrinkB": 0,
            "linewidth": 0,
            "mutation_scale": 8,
        }
        sheet.annotate("", points[-1], points[-2], arrowprops=shape)


def box(
    sheet: Axes, place: tuple[float, float, float, float], name: str, more: str, *, dashed: bool = False
) -> None:
    """Draws a part of the network: its name, and what it does."""
    x, y, width, height = place
    panel(sheet, *place, face=CARD if dashed else WHITE, edge=MUTED if dashed else FAINT, dashed=dashed)
    write(sheet, x + width / 2, y + height / 2 - 9, name)
    write(sheet, x + width / 2, y + height / 2 + 9, more, size=SMALL, color=MUTED)


def draw_heads(sheet: Axes) -> None:
    """Draws the heads."""
    top, bottom = HEADS
    gap = 12.0
    width = (RIGHT - LEFT - gap * (len(TASK_HEADS) - 1)) / len(TASK_HEADS)
    for number, head in enumerate(TASK_HEADS):
        x = LEFT + number * (width + gap)
        face, edge, colour = (ACCENT_TINT, ACCENT, ACCENT) if head.pretraining else (WHITE, FAINT, INK)
        panel(sheet, x, top, width, bottom - top, face=face, edge=edge)
        write(sheet, x + width / 2, top + 18, head.name, color=colour, fontweight="bold")
        write(sheet, x + width / 2, top + 36, head.reads, size=SMALL)
        kind = "pre-training" if head.pretraining else "fine-tuning"
        write(sheet, x + width / 2, top + 53, kind, size=SMALL, color=MUTED)
        draw_reading(sheet, head, x, width)


def draw_reading(sheet: Axes, head: Head, x: float, width: float) -> None:
    """Draws lines from the columns that a head reads to the head, which stands at `x`."""
    bottom, top = HEADS[1], TRANSFORMER[0]
    alone = len(head.places) == 1
    goal = min(max(middle(head.places[0]), x + 14), x + width - 14) if alone else x + width / 2
    level = bottom + (14 if alone else 22)
    colour = ACCENT if head.pretraining else MUTED
    for place in head.places:
        arrow(sheet, (middle(place), top), (middle(place), level), (goal, level), colour=colour, tip=False)
    arrow(sheet, (goal, level), (goal, bottom), colour=colour)


def draw_transformer(sheet: Axes) -> None:
    """Draws the transformer."""
    top, bottom = TRANSFORMER
    panel(sheet, LEFT, top, RIGHT - LEFT, bottom - top, face=WHITE, edge=FAINT, radius=8)
    columns = [middle(number) for number in range(len(PLACES))]
    ends = [end for x1, x2 in product(columns, columns) for end in ((x1, bottom - 3), (x2, top + 3))]
    lines = Path(ends, [Path.MOVETO, Path.LINETO] * len(columns) ** 2)
    sheet.add_patch(PathPatch(lines, fill=False, edgecolor=FAINT, linewidth=px(0.5)))
    name, more = "Transformer", "12 or 24 layers of BERT; every place attends to all others"
    width = text_width(more, SMALL) + 28
    x, y = (LEFT + RIGHT) / 2, (top + bottom) / 2
    panel(sheet, x - width / 2, y - 21, width, 42, face=WHITE, edge=FAINT, radius=8)
    write(sheet, x, y - 9, name, fontweight="bold")
    write(sheet, x, y + 9, more, size=SMALL, color=MUTED)


def draw_embeddings(sheet: Axes) -> None:
    """Draws the four embeddings of every place, which are added."""
    top, bottom = SUM
    rows = {"token": (6, 28), "visual feature": (40, 44), "segment": (90, 22), "position": (118, 22)}
    for name, (y, height) in rows.items():
        sheet.text(LEFT - 14, top + y + height / 2, name, ha="right", va="center_baseline")
    for number, place in enumerate(PLACES):
        x, wide = LEFT + number * PITCH, PITCH - 8
        panel(sheet, x + 1, top, PITCH - 2, bottom - top, face=WHITE, edge=FAINT)
        arrow(sheet, (middle(number), top), (middle(number), TRANSFORMER[1]))
        colour, tint = place.colours
        texts = {"token": place.token, "segment": place.segment, "position": str(place.position)}
        for name, text in texts.items():
            y, height = rows[name]
            panel(sheet, x + 4, top + y, wide, height, face=tint, edge=tint, radius=4)
            write(sheet, middle(number), top + y + height / 2, text, color=colour, size=TEXT - 0.5)
        y, height = rows["visual feature"]
        _draw_seen(sheet, (x + 4, top + y, wide, height), place.seen, hidden=number == REGIONS[HIDDEN])


def _draw_seen(
    sheet: Axes, place: tuple[float, float, float, float], part: Box | None, *, hidden: bool
) -> None:
    """Draws what the visual feature of a place has seen."""
    x, y, width, height = place
    centre = x + width / 2, y + height / 2
    if part is None or hidden:
        panel(sheet, *place, face=CARD, edge=MUTED, radius=4, dashed=True)
        write(sheet, *centre, "hidden" if hidden else "none", size=SMALL, color=MUTED)
        return
    wide, high = part[2] - part[0], part[3] - part[1]
    scale = min(width / wide, height / high)
    draw_scene(sheet, (centre[0] - wide * scale / 2, centre[1] - high * scale / 2), scale, part)


def draw_sources(sheet: Axes) -> None:
    """Draws the sentence and the vectors of the regions under their columns."""
    low, first, last = SUM[1] + 6, LEFT + REGIONS[0] * PITCH, LEFT + (REGIONS[-1] + 1) * PITCH
    for start, end, colour in ((LEFT, first, WORD), (first, last, REGION)):
        bracket = (start + 4, low), (start + 4, low + 5), (end - 4, low + 5), (end - 4, low)
        arrow(sheet, *bracket, colour=colour, tip=False)
    x = (LEFT + first) / 2
    arrow(sheet, (x, SENTENCE_AT - 12), (x, low + 6), colour=WORD)
    write(sheet, x, SENTENCE_AT, f"“{SENTENCE}”", color=WORD, size=TEXT + 1)
    note = "word pieces, one of them masked; each also carries the feature of the whole picture"
    write(sheet, x, SENTENCE_AT + 19, note, size=SMALL, color=MUTED)
    arrow(sheet, (LINEAR[0] + LINEAR[2] / 2, LINEAR[1]), (LINEAR[0] + LINEAR[2] / 2, low + 6), colour=REGION)


def draw_picture(sheet: Axes) -> None:
    """Draws the picture and its boxes."""
    x, y, scale = PICTURE
    draw_scene(sheet, (x, y), scale)
    for x1, y1, x2, y2 in (WHOLE, *(thing.box for thing in SCENE.objects)):
        corner, size = (x + x1 * scale, y + y1 * scale), ((x2 - x1) * scale, (y2 - y1) * scale)
        sheet.add_patch(Rectangle(corner, *size, fill=False, edgecolor=WHITE, linewidth=px(1.6)))


def draw_region_features(sheet: Axes) -> None:
    """Draws how the boxes of the picture become vectors."""
    x, y, width, height = LINEAR
    rail, below = y + height / 2, y + height + 16
    parts = (("ResNet", "feature map"), ("RoIAlign", "of each box"), ("C5", "last stage, mean"))
    steps = [(226.0 + 122 * number, y, 100.0, height) for number in range(len(parts))]
    for step, (name, more) in zip(steps, parts, strict=True):
        box(sheet, step, name, more)
    ends = [PICTURE[0] + SCENE.width * PICTURE[2] + 4, *(step[0] + step[2] for step in steps)]
    for end, start in zip(ends, (*(step[0] for step in steps), x), strict=True):
        arrow(sheet, (end, rail), (start, rail))
    sheet.text(steps[0][0], y - 11, "Fast R-CNN", size=SMALL, color=REGION, va="center_baseline")
    box(sheet, LINEAR, "linear layer", "one vector per region")
    geometry = (steps[0][0], below, ends[-1] - steps[0][0], height)
    box(sheet, geometry, "box geometry", "sine and cosine of centre and size, in percent")
    arrow(sheet, (ends[-1], below + height / 2), (x + 36, below + height / 2), (x + 36, y + height))
    box(
        sheet,
        (RIGHT - 208, below, 208, height),
        "or: precomputed",
        "features of a detector, from a file",
        dashed=True,
    )
    arrow(sheet, (x + width - 54, below), (x + width - 54, y + height))


def main() -> None:
    """Reads the command line and draws the figure."""
    flags = argparse.ArgumentParser(description="Draw the model.")
    out_flag(flags, "architecture.svg")
    args = flags.parse_args()
    with page(args.out, HEIGHT) as sheet:
        draw_heads(sheet)
        draw_transformer(sheet)
        draw_embeddings(sheet)
        draw_sources(sheet)
        draw_picture(sheet)
        draw_region_features(sheet)


if __name__ == "__main__":
    sys.exit(run(main))
