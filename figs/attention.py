"""Draws what words look at: a picture several times, each with its regions lit by the attention of one word.

`python -m figs.attention --cfg YAML --ckpt CHECKPOINT --image PICTURE --text "What colour is the ball?" --text ...`

Every text has a panel for each of its words that `--words` names; by default for `[MASK]`, where a model of VQA gives
its answer, else for the `PANELS` words that look most at one region.
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
from viz.explorer import masked_region_index, masked_token_index

PANELS = 4
"""Panels at most; more are too small in the README."""
LEAST_SHARE = 0.05
"""A smaller share of the attention is not written at its region; nor is one where a larger one stands."""
LINE, SPACE, INSET = 22.0, 4.5, 5.0
"""Distance of lines and of words, and of a marked word to its frame, in CSS pixels."""
Floats = NDArray[np.float64]


class Word(NamedTuple):
    """A word of a text and the places of its pieces."""

    text: str
    places: tuple[int, ...]


class Look(NamedTuple):
    """One word and what it looks at.

    Attributes:
        words: all words of the text.
        word: which of them looks.
        shares: (layers, heads, n) share of its attention on each region but the whole picture, mean over its pieces.
        answer: what the model says at this place, if anything.
    """

    words: tuple[str, ...]
    word: int
    shares: Floats
    answer: str = ""

    def shown(self, number: int) -> str:
        """Returns what to write for a word: the answer where there is one."""
        return self.answer if number == self.word and self.answer else self.words[number]


def words_of(record: AttentionMaps) -> list[Word]:
    """Returns the words of a text, their pieces joined."""
    words: list[Word] = []
    for place in masked_token_index(record.places):
        token = record.places.tokens[place]
        if token.startswith("##") and words:
            words[-1] = Word(words[-1].text + token[2:], (*words[-1].places, place))
        else:
            words.append(Word(token, (place,)))
    return words


def looks_of(record: AttentionMaps, names: Sequence[str]) -> list[Look]:
    """Returns a look for each word of a text that has one of the names (see `--words`), or by default.

    Raises:
        DataError: the picture has no region, or the text no word.
    """
    words, regions = words_of(record), masked_region_index(record.places)
    if not words or not regions:
        raise DataError(f"{record.places.image}: {len(words)} words and {len(regions)} regions; needs both")
    maps = record.maps.astype(np.float64)
    shares = [maps[:, :, word.places].mean(2)[..., regions] for word in words]
    texts = tuple(word.text for word in words)
    chosen = [place for place, text in enumerate(texts) if text in (names or ("[MASK]",))]
    if not chosen and not names:
        chosen = sorted(sorted(range(len(words)), key=lambda place: -shares[place].max())[:PANELS])
    return [Look(texts, place, shares[place]) for place in chosen]


def telling_head(looks: Sequence[Look]) -> tuple[int, int]:
    """Returns the layer and the head in which each word prefers a region most, more than the other words do."""
    shares = np.stack([look.shares for look in looks])
    others = (shares.sum(0) - shares) / max(len(looks) - 1, 1)
    found = (shares - others).max(-1).mean(0)
    layer, head = np.unravel_index(found.argmax(), found.shape)
    return int(layer), int(head)


def lit(image: Image.Image, boxes: Floats, weights: Floats, size: tuple[int, int]) -> Image.Image:
    """Returns a picture that keeps its colours only where regions have weight.

    Args:
        image: RGB.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of it, the last pixel inside.
        weights: (n,) from 0 to 1; where regions overlap, the largest counts.
        size: width and height of the result.
    """
    scale = np.array(size) / image.size
    strength = np.zeros((size[1], size[0], 1))
    for box, weight in zip(boxes, weights, strict=True):
        x1, y1 = np.floor(box[:2] * scale).astype(int)
        x2, y2 = np.ceil((box[2:] + 1) * scale).astype(int)
        part = strength[max(y1, 0) : y2, max(x1, 0) : x2]
        np.maximum(part, weight, out=part)
    colours = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.float64)
    pale = 150 + 0.25 * colours.mean(2, keepdims=True) + 0.2 * (colours - 64)
    return Image.fromarray((strength * colours + (1 - strength) * pale).clip(0, 255).astype(np.uint8))


def flow(look: Look, width: float) -> list[tuple[float, int, float]]:
    """Sets a text in lines.

    Args:
        look: its words.
        width: of a line, in CSS pixels; a longer word has a line of its own.

    Returns:
        For every word where it begins, in CSS pixels, its line from 0, and its width.
    """
    places: list[tuple[float, int, float]] = []
    x, line = 0.0, 0
    for number, word in enumerate(look.words):
        wide = text_width(look.shown(number)) + (2 * INSET if number == look.word else 0)
        x += SPACE if x and word not in ".,?!" else 0
        if x and x + wide > width:
            x, line = 0.0, line + 1
        places.append((x, line, wide))
        x += wide
    return places


def draw_attention(
    image: Image.Image, boxes: Floats, looks: Sequence[Look], head: tuple[int, int], path: Path
) -> None:
    """Draws the panels.

    Args:
        image: RGB.
        boxes: (n, 4) regions but the whole picture, in pixels of it.
        looks: one for each panel.
        head: layer and head to show, from 0.
        path: the figure.
    """
    margin, gap = 24.0, 18.0
    count = max(len(looks), 2)  # one alone would be huge
    width = (WIDTH - 2 * margin - gap * (count - 1)) / count
    height = width * image.height / image.width
    lines = 1 + max(line for look in looks for _, line, _ in flow(look, width))
    below = margin + height + LINE
    full = max(float(look.shares[head].max()) for look in looks)
    with page(path, below + LINE * lines + 34) as sheet:
        for number, look in enumerate(looks):
            x = margin + number * (width + gap)
            _draw_picture(sheet, (x, margin, width, height), image, boxes, look.shares[head], full)
            _draw_text(sheet, (x, below), flow(look, width), look)
        asked = "answer, read at [MASK]," if any(look.answer for look in looks) else "word"
        note = f"share of its attention that the marked {asked} gives to each region; "
        note += f"layer {head[0]}, head {head[1]} (counted from 0)"
        sheet.text(margin, below + LINE * lines + 12, note, size=SMALL, color=MUTED, va="center")


def _draw_picture(
    sheet: Axes,
    place: tuple[float, float, float, float],
    image: Image.Image,
    boxes: Floats,
    shares: Floats,
    full: float,
) -> None:
    """Draws a picture, fully lit where the share of a region is `full`."""
    x, y, width, height = place
    weights = shares / full
    shown = lit(image, boxes, weights, (round(width * DENSITY), round(height * DENSITY)))
    sheet.imshow(np.asarray(shown), extent=(x, x + width, y + height, y), aspect="auto", zorder=1)
    corners = (boxes + np.array([0, 0, 1, 1])) * (width / image.width) + np.array([x, y, x, y])
    for (left, top, right, bottom), weight in zip(corners, weights, strict=True):
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=ACCENT)
        frame.set(alpha=0.25 + 0.75 * float(weight), linewidth=px(1.25 + 0.75 * float(weight)))
        sheet.add_patch(frame)
    tags: list[tuple[float, float]] = []
    for number in shares.argsort()[::-1]:
        left, top, _, bottom = corners[number]
        tag = left, top - 16 if top - 16 > y else min(bottom + 1, y + height - 16)
        free = all(abs(tag[0] - other[0]) > 44 or abs(tag[1] - other[1]) > 16 for other in tags)
        if shares[number] >= LEAST_SHARE and free:
            tags.append(tag)
            text = f"{100 * shares[number]:.0f} %"
            panel(sheet, *tag, text_width(text, SMALL) + 8, 15, face=ACCENT, edge=ACCENT, radius=3)
            sheet.text(left + 4, tag[1] + 7.5, text, size=SMALL, color=WHITE, va="center_baseline")


def _draw_text(
    sheet: Axes, corner: tuple[float, float], places: Sequence[tuple[float, int, float]], look: Look
) -> None:
    """Writes a text below its picture, with the looking word marked."""
    for number, (left, line, wide) in enumerate(places):
        x, y = corner[0] + left, corner[1] + line * LINE
        marked = number == look.word
        if marked:
            panel(sheet, x, y - 9.5, wide, 19, face=ACCENT_TINT, edge=ACCENT, radius=4)
        colour = ACCENT if marked else INK
        sheet.text(x + INSET * marked, y, look.shown(number), color=colour, va="center_baseline")


def look_at(
    model: TrainedModel[Any], image: str, text: str, boxes: str | None, names: Sequence[str]
) -> tuple[AttentionMaps, list[Look]]:
    """Runs a model on a picture and a text; returns its maps and the looks of the named words, see `looks_of`."""
    record = model.encode(image, text, boxes, attention=True).maps()
    looks = looks_of(record, names)
    if isinstance(model, vl_bert.VQAPredictor):
        answer = model.predict(image, text, boxes, top=1)[0].text
        looks = [
            look._replace(answer=answer) if look.words[look.word] == "[MASK]" else look for look in looks
        ]
    return record, looks


def choose_head(looks: Sequence[Look], layer: int | None, head: int | None) -> tuple[int, int]:
    """Returns the layer and the head that `--layer` and `--head` name, or `telling_head`.

    Raises:
        UsageError: only one is given, or the model has no such one.
    """
    layers, heads = looks[0].shares.shape[:2]
    if (layer is None) != (head is None):
        raise UsageError("--layer and --head: give both, or none of them")
    if layer is None or head is None:
        return telling_head(looks)
    if not (0 <= layer < layers and 0 <= head < heads):
        raise UsageError(
            f"--layer {layer} --head {head}: the model has layers 0 to {layers - 1}, heads 0 to {heads - 1}"
        )
    return layer, head


def main() -> None:
    """Reads the command line and draws the figure."""
    flags = parser("Draw what words look at in a picture.")
    add_model_flags(flags)
    flags.add_argument("--image", required=True, help="the picture")
    flags.add_argument(
        "--text", required=True, action="append", help="what is said or asked; may be repeated"
    )
    flags.add_argument("--words", default="", help="words to show, with commas between them")
    flags.add_argument(
        "--layer", type=int, help="layer, from 0 (default: where words differ most in what they look at)"
    )
    flags.add_argument("--head", type=int, help="head of it, from 0")
    out_flag(flags, "attention.png")
    args = flags.parse_args()
    check_name(args.out)
    names = [name.strip() for name in args.words.split(",") if name.strip()]
    model = load_from_flags(args, vl_bert.model_class(args.cfg, args.set))
    found = [look_at(model, args.image, text, args.boxes, names) for text in args.text]
    looks = [look for _, of_text in found for look in of_text]
    known = {word for record, _ in found for word in (one.text for one in words_of(record))}
    for name in names:
        if name not in known:
            raise UsageError(f'--words: "{name}" is in no --text; there are {", ".join(sorted(known))}')
    if len(looks) > PANELS:
        raise UsageError(f"--text and --words: {len(looks)} panels; at most {PANELS} fit")
    record = found[0][0]
    regions = masked_region_index(record.places)
    boxes = np.array(record.places.boxes)[np.array(regions) - len(record.places.tokens)]
    draw_attention(open_image(args.image), boxes, looks, choose_head(looks, args.layer, args.head), args.out)


if __name__ == "__main__":
    sys.exit(run(main))
