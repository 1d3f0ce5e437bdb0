"""Draws the model, from an image and a sentence to the task heads: `python -m figs.architecture`."""

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

# Layout in CSS pixels; pairs are (top, bottom).
HEIGHT = 578.0
LEFT, RIGHT = 118.0, 878.0
HEADS, TRANSFORMER, SUM = (20.0, 86.0), (122.0, 184.0), (200.0, 346.0)

_CATEGORY = {category.noun: category for category in CATEGORIES}
SCENE = Scene(
    176,
    128,
    (
        SceneObject(_CATEGORY["kite"], "yellow", (0, 0), (66.0, 6.0, 97.0, 46.0)),
        SceneObject(_CATEGORY["ball"], "red", (1, 0), (12.0, 62.0, 66.0, 116.0)),
        SceneObject(PERSON, "blue", (1, 1), (106.0, 48.0, 160.0, 118.0)),
    ),
)
BACKGROUND = "#b9bdc4"
WHOLE: Box = (0, 0, SCENE.width, SCENE.height)
MASKED_REGION = 1  # index into the regions
SENTENCE = "red ball left of blue person"


class Column(NamedTuple):
    """One position of the input sequence.

    Attributes:
        token: vocabulary entry.
        visual: box of the visual feature; None if there is none.
        segment: A or B for text, C for the image.
        position: position id; the same for all regions.
        colors: text and background color of the cells.
    """

    token: str
    visual: Box | None
    segment: str
    position: int
    colors: tuple[str, str]


class Head(NamedTuple):
    """A task head.

    Attributes:
        name: the task.
        description: what it predicts.
        inputs: indices of the final states that it reads.
        pretraining: whether it is a pre-training head.
    """

    name: str
    description: str
    inputs: tuple[int, ...]
    pretraining: bool = False


def sequence() -> list[Column]:
    """Returns the input sequence of the example: [CLS] words [SEP] regions [END]."""
    words = SENTENCE.replace("ball", "[MASK]").split()
    tokens = ["[CLS]", *words, "[SEP]"]
    text = [
        Column(token, WHOLE, "A", index, (OTHER, OTHER_TINT) if token[0] == "[" else (WORD, WORD_TINT))
        for index, token in enumerate(tokens)
    ]
    boxes = [WHOLE, *(item.box for item in SCENE.objects)]
    regions = [Column("[IMG]", box, "C", len(text), (REGION, REGION_TINT)) for box in boxes]
    return [*text, *regions, Column("[END]", None, "C", len(text) + 1, (OTHER, OTHER_TINT))]


COLUMNS = sequence()
REGIONS = tuple(index for index, column in enumerate(COLUMNS) if column.token == "[IMG]")
MASK = next(index for index, column in enumerate(COLUMNS) if column.token == "[MASK]")
TASK_HEADS = (
    Head("VCR", "score of one answer", (0,)),
    Head("VQA", "answer at its [MASK]", (MASK,)),
    Head("masked words", "[MASK] is “ball”", (MASK,), True),
    Head("masked regions", "class of the region: kite", (REGIONS[MASKED_REGION],), True),
    Head("RefCOCO+", "which region is it?", REGIONS),
)

PITCH = (RIGHT - LEFT) / len(COLUMNS)
SENTENCE_Y = 382.0
IMAGE = (24.0, 436.0, 0.94)  # left, top, scale
LINEAR = (596.0, 436.0, 2 * (LEFT + (REGIONS[0] + len(REGIONS) / 2) * PITCH - 596), 52.0)  # below the regions


def center(index: int) -> float:
    """Returns the x coordinate of the center of a column."""
    return LEFT + (index + 0.5) * PITCH


def draw_scene(sheet: Axes, corner: tuple[float, float], scale: float, part: Box = WHOLE) -> None:
    """Draws a crop of the scene with its upper left corner at `corner`, without objects that the crop cuts."""
    left, top, right, bottom = part
    width, height = (right - left) * scale, (bottom - top) * scale
    sheet.add_patch(Rectangle(corner, width, height, facecolor=BACKGROUND))
    for item in SCENE.objects:
        x1, y1, x2, y2 = item.box
        if x1 < left or y1 < top or x2 > right or y2 > bottom:
            continue
        for shape, points, fill in item.category.parts:
            outline = [
                (corner[0] + (x - left) * scale, corner[1] + (y - top) * scale)
                for x, y in item.to_pixels(points)
            ]
            sheet.add_patch(_patch(shape, outline, _hex(fill or COLORS[item.color]), scale))


def _patch(shape: str, points: Sequence[tuple[float, float]], color: str, scale: float) -> Patch:
    if shape == "ellipse":
        (x1, y1), (x2, y2) = points
        return Ellipse(((x1 + x2) / 2, (y1 + y2) / 2), x2 - x1, y2 - y1, facecolor=color)
    if shape == "line":
        return Polygon(points, closed=False, fill=False, edgecolor=color, linewidth=px(2 * scale))
    return Polygon(points, facecolor=color)


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def write(sheet: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Writes centered text."""
    sheet.text(x, y, text, ha="center", va="center_baseline", **style)


def arrow(sheet: Axes, *points: tuple[float, float], color: str = MUTED, tip: bool = True) -> None:
    """Draws a line through points, with an arrow head at the end."""
    x, y = zip(*points, strict=True)
    sheet.plot(x, y, color=color, linewidth=px(1.4), solid_joinstyle="round")
    if tip:
        shape = {
            "arrowstyle": "-|>",
            "color": color,
            "shrinkA": 0,
            "shrinkB": 0,
            "linewidth": 0,
            "mutation_scale": 8,
        }
        sheet.annotate("", points[-1], points[-2], arrowprops=shape)


def box(
    sheet: Axes, bounds: tuple[float, float, float, float], name: str, details: str, *, dashed: bool = False
) -> None:
    """Draws a module of the network with its name and a second line."""
    x, y, width, height = bounds
    panel(sheet, *bounds, face=CARD if dashed else WHITE, edge=MUTED if dashed else FAINT, dashed=dashed)
    write(sheet, x + width / 2, y + height / 2 - 9, name)
    write(sheet, x + width / 2, y + height / 2 + 9, details, size=SMALL, color=MUTED)


def draw_heads(sheet: Axes) -> None:
    top, bottom = HEADS
    gap = 12.0
    width = (RIGHT - LEFT - gap * (len(TASK_HEADS) - 1)) / len(TASK_HEADS)
    for index, head in enumerate(TASK_HEADS):
        x = LEFT + index * (width + gap)
        face, edge, color = (ACCENT_TINT, ACCENT, ACCENT) if head.pretraining else (WHITE, FAINT, INK)
        panel(sheet, x, top, width, bottom - top, face=face, edge=edge)
        write(sheet, x + width / 2, top + 18, head.name, color=color, fontweight="bold")
        write(sheet, x + width / 2, top + 36, head.description, size=SMALL)
        kind = "pre-training" if head.pretraining else "fine-tuning"
        write(sheet, x + width / 2, top + 53, kind, size=SMALL, color=MUTED)
        draw_head_inputs(sheet, head, x, width)


def draw_head_inputs(sheet: Axes, head: Head, x: float, width: float) -> None:
    """Draws lines from the final states that a head reads to the head at `x`."""
    bottom, top = HEADS[1], TRANSFORMER[0]
    single = len(head.inputs) == 1
    target = min(max(center(head.inputs[0]), x + 14), x + width - 14) if single else x + width / 2
    level = bottom + (14 if single else 22)
    color = ACCENT if head.pretraining else MUTED
    for index in head.inputs:
        points = (center(index), top), (center(index), level), (target, level)
        arrow(sheet, *points, color=color, tip=False)
    arrow(sheet, (target, level), (target, bottom), color=color)


def draw_transformer(sheet: Axes) -> None:
    top, bottom = TRANSFORMER
    panel(sheet, LEFT, top, RIGHT - LEFT, bottom - top, face=WHITE, edge=FAINT, radius=8)
    columns = [center(index) for index in range(len(COLUMNS))]
    ends = [end for x1, x2 in product(columns, columns) for end in ((x1, bottom - 3), (x2, top + 3))]
    lines = Path(ends, [Path.MOVETO, Path.LINETO] * len(columns) ** 2)
    sheet.add_patch(PathPatch(lines, fill=False, edgecolor=FAINT, linewidth=px(0.5)))
    name, details = "Transformer", "12 or 24 BERT layers; every position attends to all positions"
    width = text_width(details, SMALL) + 28
    x, y = (LEFT + RIGHT) / 2, (top + bottom) / 2
    panel(sheet, x - width / 2, y - 21, width, 42, face=WHITE, edge=FAINT, radius=8)
    write(sheet, x, y - 9, name, fontweight="bold")
    write(sheet, x, y + 9, details, size=SMALL, color=MUTED)


def draw_embeddings(sheet: Axes) -> None:
    """Draws the four embeddings of every position, which are summed."""
    top, bottom = SUM
    rows = {"token": (6, 28), "visual feature": (40, 44), "segment": (90, 22), "position": (118, 22)}
    for name, (y, height) in rows.items():
        sheet.text(LEFT - 14, top + y + height / 2, name, ha="right", va="center_baseline")
    for index, column in enumerate(COLUMNS):
        x, wide = LEFT + index * PITCH, PITCH - 8
        panel(sheet, x + 1, top, PITCH - 2, bottom - top, face=WHITE, edge=FAINT)
        arrow(sheet, (center(index), top), (center(index), TRANSFORMER[1]))
        color, tint = column.colors
        texts = {"token": column.token, "segment": column.segment, "position": str(column.position)}
        for name, text in texts.items():
            y, height = rows[name]
            panel(sheet, x + 4, top + y, wide, height, face=tint, edge=tint, radius=4)
            write(sheet, center(index), top + y + height / 2, text, color=color, size=TEXT - 0.5)
        y, height = rows["visual feature"]
        masked = index == REGIONS[MASKED_REGION]
        _draw_visual(sheet, (x + 4, top + y, wide, height), column.visual, masked=masked)


def _draw_visual(
    sheet: Axes, bounds: tuple[float, float, float, float], part: Box | None, *, masked: bool
) -> None:
    """Draws the crop of the image that a visual feature is computed from."""
    x, y, width, height = bounds
    middle = x + width / 2, y + height / 2
    if part is None or masked:
        panel(sheet, *bounds, face=CARD, edge=MUTED, radius=4, dashed=True)
        write(sheet, *middle, "masked" if masked else "none", size=SMALL, color=MUTED)
        return
    wide, high = part[2] - part[0], part[3] - part[1]
    scale = min(width / wide, height / high)
    draw_scene(sheet, (middle[0] - wide * scale / 2, middle[1] - high * scale / 2), scale, part)


def draw_sources(sheet: Axes) -> None:
    """Draws the sentence and the arrow from the region features below their columns."""
    low, first, last = SUM[1] + 6, LEFT + REGIONS[0] * PITCH, LEFT + (REGIONS[-1] + 1) * PITCH
    for start, end, color in ((LEFT, first, WORD), (first, last, REGION)):
        bracket = (start + 4, low), (start + 4, low + 5), (end - 4, low + 5), (end - 4, low)
        arrow(sheet, *bracket, color=color, tip=False)
    x = (LEFT + first) / 2
    arrow(sheet, (x, SENTENCE_Y - 12), (x, low + 6), color=WORD)
    write(sheet, x, SENTENCE_Y, f"“{SENTENCE}”", color=WORD, size=TEXT + 1)
    note = "word pieces, one of them masked; each also has the visual feature of the whole image"
    write(sheet, x, SENTENCE_Y + 19, note, size=SMALL, color=MUTED)
    arrow(sheet, (LINEAR[0] + LINEAR[2] / 2, LINEAR[1]), (LINEAR[0] + LINEAR[2] / 2, low + 6), color=REGION)


def draw_image(sheet: Axes) -> None:
    """Draws the image and its boxes."""
    x, y, scale = IMAGE
    draw_scene(sheet, (x, y), scale)
    for x1, y1, x2, y2 in (WHOLE, *(item.box for item in SCENE.objects)):
        corner, size = (x + x1 * scale, y + y1 * scale), ((x2 - x1) * scale, (y2 - y1) * scale)
        sheet.add_patch(Rectangle(corner, *size, fill=False, edgecolor=WHITE, linewidth=px(1.6)))


def draw_region_features(sheet: Axes) -> None:
    """Draws the path from boxes to region features."""
    x, y, width, height = LINEAR
    rail, below = y + height / 2, y + height + 16
    parts = (("ResNet", "feature map"), ("RoIAlign", "per box"), ("C5", "last stage, mean"))
    steps = [(226.0 + 122 * index, y, 100.0, height) for index in range(len(parts))]
    for step, (name, details) in zip(steps, parts, strict=True):
        box(sheet, step, name, details)
    ends = [IMAGE[0] + SCENE.width * IMAGE[2] + 4, *(step[0] + step[2] for step in steps)]
    for end, start in zip(ends, (*(step[0] for step in steps), x), strict=True):
        arrow(sheet, (end, rail), (start, rail))
    sheet.text(steps[0][0], y - 11, "Fast R-CNN", size=SMALL, color=REGION, va="center_baseline")
    box(sheet, LINEAR, "linear layer", "one vector per region")
    geometry = (steps[0][0], below, ends[-1] - steps[0][0], height)
    box(sheet, geometry, "box geometry", "sine and cosine of center and size, in percent")
    arrow(sheet, (ends[-1], below + height / 2), (x + 36, below + height / 2), (x + 36, y + height))
    box(
        sheet,
        (RIGHT - 208, below, 208, height),
        "or: precomputed",
        "detector features from a file",
        dashed=True,
    )
    arrow(sheet, (x + width - 54, below), (x + width - 54, y + height))


def main() -> None:
    """Runs the command line."""
    flags = argparse.ArgumentParser(description="Draw the model.")
    out_flag(flags, "architecture.svg")
    args = flags.parse_args()
    with page(args.out, HEIGHT) as sheet:
        draw_heads(sheet)
        draw_transformer(sheet)
        draw_embeddings(sheet)
        draw_sources(sheet)
        draw_image(sheet)
        draw_region_features(sheet)


if __name__ == "__main__":
    sys.exit(run(main))
