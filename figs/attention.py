"""Draws the attention of words on regions: the image once per word, with the attended regions in color.

`python -m figs.attention --cfg YAML --ckpt CHECKPOINT --image IMAGE --text "What color is the ball?" --text ...`

Each text has one panel for each word in `--words`. By default that is `[MASK]`, where a VQA model reads its answer; for
other models it is the `MAX_PANELS` words with the strongest attention on one region.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

import vl_bert
from common.cli.predict import add_model_flags, load_from_flags
from common.cli.run import parser, run
from common.data.images import open_image
from common.errors import DataError, UsageError
from common.inference.attention import AttentionMaps
from common.inference.predictor import TrainedModel
from figs.style import (
    ACCENT,
    ACCENT_TINT,
    DENSITY,
    INK,
    MUTED,
    SMALL,
    WHITE,
    WIDTH,
    check_name,
    out_flag,
    page,
    panel,
    px,
    text_width,
)
from viz.explorer import region_positions, word_positions

MAX_PANELS = 4
"""More panels are too small in the README."""
MIN_LABEL = 0.05
"""Smaller weights have no label, and neither have regions whose label would cover that of a larger weight."""
LINE_HEIGHT, WORD_SPACE, INSET = 22.0, 4.5, 5.0
"""Line height, space between words, and padding of the marked word, in CSS pixels."""

Floats = NDArray[np.float64]


class Word(NamedTuple):
    """A word and the positions of its word pieces."""

    text: str
    positions: tuple[int, ...]


class WordAttention(NamedTuple):
    """The attention of one word on the regions.

    Attributes:
        words: all words of the text.
        word: index of the word.
        weights: (layers, heads, n) weights on the regions, without the whole image; mean over the word's pieces.
        answer: the model's answer at this position, if any.
    """

    words: tuple[str, ...]
    word: int
    weights: Floats
    answer: str = ""

    def display_text(self, index: int) -> str:
        """Returns the text of word `index`: the answer replaces the word that it was read at."""
        return self.answer if index == self.word and self.answer else self.words[index]


def merge_pieces(record: AttentionMaps) -> list[Word]:
    """Returns the words of the text, with word pieces joined."""
    words: list[Word] = []
    for position in word_positions(record.sequence):
        token = record.sequence.tokens[position]
        if token.startswith("##") and words:
            words[-1] = Word(words[-1].text + token[2:], (*words[-1].positions, position))
        else:
            words.append(Word(token, (position,)))
    return words


def word_attention(record: AttentionMaps, names: Sequence[str]) -> list[WordAttention]:
    """Returns the attention of the words in `names`, or of the default words if `names` is empty.

    Raises:
        DataError: the record has no regions or no words.
    """
    words, regions = merge_pieces(record), region_positions(record.sequence)
    if not words or not regions:
        raise DataError(f"{record.sequence.image}: {len(words)} words and {len(regions)} regions; needs both")
    maps = record.maps.astype(np.float64)
    weights = [maps[:, :, word.positions].mean(2)[..., regions] for word in words]
    texts = tuple(word.text for word in words)
    chosen = [index for index, text in enumerate(texts) if text in (names or ("[MASK]",))]
    if not chosen and not names:
        chosen = sorted(sorted(range(len(words)), key=lambda index: -weights[index].max())[:MAX_PANELS])
    return [WordAttention(texts, index, weights[index]) for index in chosen]


def most_distinctive_head(panels: Sequence[WordAttention]) -> tuple[int, int]:
    """Returns the layer and head in which each word attends to one region more than the other words do."""
    weights = np.stack([item.weights for item in panels])
    others = (weights.sum(0) - weights) / max(len(panels) - 1, 1)
    scores = (weights - others).max(-1).mean(0)
    layer, head = np.unravel_index(scores.argmax(), scores.shape)
    return int(layer), int(head)


def choose_head(panels: Sequence[WordAttention], layer: int | None, head: int | None) -> tuple[int, int]:
    """Checks `--layer` and `--head`; defaults to `most_distinctive_head`.

    Raises:
        UsageError: only one of them is given, or a number is out of range.
    """
    layers, heads = panels[0].weights.shape[:2]
    if (layer is None) != (head is None):
        raise UsageError("--layer and --head: give both or neither")
    if layer is None or head is None:
        return most_distinctive_head(panels)
    if not (0 <= layer < layers and 0 <= head < heads):
        raise UsageError(
            f"--layer {layer} --head {head}: the model has layers 0 to {layers - 1}, heads 0 to {heads - 1}"
        )
    return layer, head


def highlight_regions(
    image: Image.Image, boxes: Floats, weights: Floats, size: tuple[int, int]
) -> Image.Image:
    """Returns a resized copy of the image that fades out wherever no region has weight.

    Args:
        image: RGB.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the image; the last pixel is inside.
        weights: (n,) from 0 to 1; overlapping regions use the maximum.
        size: (width, height) of the result.
    """
    scale = np.array(size) / image.size
    strength = np.zeros((size[1], size[0], 1))
    for box, weight in zip(boxes, weights, strict=True):
        x1, y1 = np.floor(box[:2] * scale).astype(int)
        x2, y2 = np.ceil((box[2:] + 1) * scale).astype(int)
        part = strength[max(y1, 0) : y2, max(x1, 0) : x2]
        np.maximum(part, weight, out=part)
    colors = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.float64)
    faded = 150 + 0.25 * colors.mean(2, keepdims=True) + 0.2 * (colors - 64)
    return Image.fromarray((strength * colors + (1 - strength) * faded).clip(0, 255).astype(np.uint8))


def wrap_words(item: WordAttention, width: float) -> list[tuple[float, int, float]]:
    """Breaks a text into lines of `width` CSS pixels; longer words have their own line.

    Returns:
        For every word its x offset, line number from 0, and width; lengths in CSS pixels.
    """
    layout: list[tuple[float, int, float]] = []
    x, line = 0.0, 0
    for index, word in enumerate(item.words):
        word_width = text_width(item.display_text(index)) + (2 * INSET if index == item.word else 0)
        x += WORD_SPACE if x and word not in ".,?!" else 0
        if x and x + word_width > width:
            x, line = 0.0, line + 1
        layout.append((x, line, word_width))
        x += word_width
    return layout


def draw_attention(
    image: Image.Image, boxes: Floats, panels: Sequence[WordAttention], head: tuple[int, int], path: Path
) -> None:
    """Draws the panels.

    Args:
        image: RGB.
        boxes: (n, 4) regions without the whole image, in pixels of the image.
        panels: one word each.
        head: layer and head.
        path: the figure.
    """
    margin, gap = 24.0, 18.0
    count = max(len(panels), 2)  # limits the size of a single panel
    width = (WIDTH - 2 * margin - gap * (count - 1)) / count
    height = width * image.height / image.width
    lines = 1 + max(line for item in panels for _, line, _ in wrap_words(item, width))
    text_top = margin + height + LINE_HEIGHT
    largest = max(float(item.weights[head].max()) for item in panels)
    with page(path, text_top + LINE_HEIGHT * lines + 34) as sheet:
        for index, item in enumerate(panels):
            x = margin + index * (width + gap)
            _draw_image(sheet, (x, margin, width, height), image, boxes, item.weights[head], largest)
            for i, (left, line, word_width) in enumerate(wrap_words(item, width)):
                y = text_top + line * LINE_HEIGHT
                marked = i == item.word
                if marked:
                    panel(sheet, x + left, y - 9.5, word_width, 19, face=ACCENT_TINT, edge=ACCENT, radius=4)
                sheet.text(
                    x + left + INSET * marked,
                    y,
                    item.display_text(i),
                    color=ACCENT if marked else INK,
                    va="center_baseline",
                )
        marked_text = "answer, read at [MASK]," if any(item.answer for item in panels) else "word"
        note = (
            f"attention weights of the marked {marked_text} on each region; layer {head[0]}, head {head[1]}"
        )
        sheet.text(
            margin,
            text_top + LINE_HEIGHT * lines + 12,
            f"{note} (numbered from 0)",
            size=SMALL,
            color=MUTED,
            va="center",
        )


def _draw_image(
    sheet: Axes,
    bounds: tuple[float, float, float, float],
    image: Image.Image,
    boxes: Floats,
    weights: Floats,
    largest: float,
) -> None:
    """Draws the image with its boxes; a region with weight `largest` keeps its full color."""
    x, y, width, height = bounds
    strengths = weights / largest
    shown = highlight_regions(image, boxes, strengths, (round(width * DENSITY), round(height * DENSITY)))
    sheet.imshow(np.asarray(shown), extent=(x, x + width, y + height, y), aspect="auto", zorder=1)
    corners = (boxes + np.array([0, 0, 1, 1])) * (width / image.width) + np.array([x, y, x, y])
    for (left, top, right, bottom), strength in zip(corners, strengths.tolist(), strict=True):
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=ACCENT)
        frame.set(alpha=0.25 + 0.75 * strength, linewidth=px(1.25 + 0.75 * strength))
        sheet.add_patch(frame)
    labels: list[tuple[float, float]] = []
    for region in weights.argsort()[::-1]:
        left, top, _, bottom = corners[region]
        label = left, top - 16 if top - 16 > y else min(bottom + 1, y + height - 16)
        free = all(abs(label[0] - other[0]) > 44 or abs(label[1] - other[1]) > 16 for other in labels)
        if weights[region] >= MIN_LABEL and free:
            labels.append(label)
            text = f"{100 * weights[region]:.0f} %"
            panel(sheet, *label, text_width(text, SMALL) + 8, 15, face=ACCENT, edge=ACCENT, radius=3)
            sheet.text(left + 4, label[1] + 7.5, text, size=SMALL, color=WHITE, va="center_baseline")


def run_model(
    model: TrainedModel[Any, Any], image: str, text: str, boxes: str | None, names: Sequence[str]
) -> tuple[AttentionMaps, list[WordAttention]]:
    """Runs a model on an image and a text; returns the maps and the attention of the named words."""
    record = model.encode(image, text, boxes, attention=True).maps()
    panels = word_attention(record, names)
    if isinstance(model, vl_bert.VQAPredictor):
        answer = model.predict(image, text, boxes, top=1)[0].text
        panels = [
            item._replace(answer=answer) if item.words[item.word] == "[MASK]" else item for item in panels
        ]
    return record, panels


def main() -> None:
    """Runs the command line."""
    flags = parser("Draw the attention of words on the regions of an image.")
    add_model_flags(flags)
    flags.add_argument("--image", required=True, help="image to draw")
    flags.add_argument("--text", required=True, action="append", help="text or question; repeatable")
    flags.add_argument("--words", default="", help="comma-separated words to draw")
    flags.add_argument(
        "--layer", type=int, help="layer, from 0 (default: layer and head in which the words differ most)"
    )
    flags.add_argument("--head", type=int, help="attention head, from 0")
    out_flag(flags, "attention.png")
    args = flags.parse_args()
    check_name(args.out)
    names = [name.strip() for name in args.words.split(",") if name.strip()]
    config = vl_bert.read_config(args.cfg, args.set)
    model = load_from_flags(args, vl_bert.model_class(config), config)
    results = [run_model(model, args.image, text, args.boxes, names) for text in args.text]
    panels = [item for _, items in results for item in items]
    known = {word.text for record, _ in results for word in merge_pieces(record)}
    for name in names:
        if name not in known:
            raise UsageError(f'--words: "{name}" is not in --text; words: {", ".join(sorted(known))}')
    if len(panels) > MAX_PANELS:
        raise UsageError(f"--text and --words: {len(panels)} panels; at most {MAX_PANELS} fit")
    sequence = results[0][0].sequence
    boxes = np.array(sequence.boxes)[np.array(region_positions(sequence)) - len(sequence.tokens)]
    head = choose_head(panels, args.layer, args.head)
    draw_attention(open_image(args.image), boxes, panels, head, args.out)


if __name__ == "__main__":
    sys.exit(run(main))
