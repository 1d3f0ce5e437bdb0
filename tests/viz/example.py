"""Synthetic attention maps with the patterns that trained models have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.storage.store import Store
from common.inference.attention import AttentionMaps, SequenceTokens
from scripts.make_toy_data import ToyWorld, make_toy_data


def example(layers: int = 12, heads: int = 12, words: int = 12, regions: int = 10) -> AttentionMaps:
    """Maps of `words` + `regions` + 4 places: neighbours, a sink, the same side, and word k with region k."""
    generator = np.random.default_rng(0)
    boxes = [(0.0, 0.0, 639.0, 479.0)]
    for _ in range(regions):
        x, y = generator.uniform(0, 500), generator.uniform(0, 340)
        boxes.append((x, y, x + generator.uniform(30, 139), y + generator.uniform(30, 139)))
    tokens = ("[CLS]", *(f"word{number}" for number in range(words)), "[SEP]")
    labels = ("image", *(f"{number} thing" for number in range(1, regions + 1)))
    places = SequenceTokens(
        image_id="example", image="", size=(640, 480), tokens=tokens, boxes=tuple(boxes), labels=labels
    )
    return AttentionMaps(places, _maps(layers, heads, places, {k + 1: words + 3 + k for k in range(regions)}))


def toy_example(folder: Path) -> tuple[AttentionMaps, Image.Image]:
    """A picture of the toy world with its caption, boxes and synthetic 12 × 12 maps; words see what they name."""
    make_toy_data(str(folder / "toy"), ToyWorld(tasks=("pretrain",), train=2, val=2))
    coco = folder / "toy/coco"
    captions = json.loads((coco / "annotations/captions_val2017.json").read_text())
    instances = json.loads((coco / "annotations/instances_val2017.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}

    def objects(picture: int) -> list[dict]:
        return [one for one in instances["annotations"] if one["image_id"] == picture]

    picture = max(captions["images"], key=lambda one: (len(objects(one["id"])), -one["id"]))
    caption = next(one["caption"] for one in captions["annotations"] if one["image_id"] == picture["id"])
    tokens = ("[CLS]", *caption.lower().replace(".", " .").split(), "[SEP]")
    found = [(names[one["category_id"]], one["bbox"]) for one in objects(picture["id"])]
    size = (picture["width"], picture["height"])
    boxes = [(0.0, 0.0, size[0] - 1.0, size[1] - 1.0)]
    boxes += [(float(x), float(y), x + w - 1.0, y + h - 1.0) for _, (x, y, w, h) in found]
    labels = ("image", *(f"{number} {name}" for number, (name, _) in enumerate(found, start=1)))
    image = f"{coco}/val2017/{picture['file_name']}"
    places = SequenceTokens(
        image_id=str(picture["id"]), image=image, size=size, tokens=tokens, boxes=tuple(boxes), labels=labels
    )
    regions = {name: len(tokens) + 1 + k for k, (name, _) in enumerate(found)}
    pairs = {at: regions[token] for at, token in enumerate(tokens) if token in regions}
    return AttentionMaps(places, _maps(12, 12, places, pairs)), Store().image(image)


def _maps(layers: int, heads: int, places: SequenceTokens, pairs: dict[int, int]) -> np.ndarray:
    """(layers, heads, S, S) softmax of five patterns, mixed differently in every head."""
    generator = np.random.default_rng(1)
    side, text = len(places.names), len(places.tokens)
    patterns = np.zeros((5, side, side))
    patterns[0] = 7 * np.eye(side, k=1)  # the next place
    patterns[1] = 7 * np.eye(side, k=-1)
    patterns[2][:, text - 1] = 6  # [SEP] takes what a head does not need
    patterns[3][:text, :text] = patterns[3][text:, text:] = 2  # its own side
    for word, region in pairs.items():
        patterns[4][word, region] = patterns[4][region, word] = 6
        patterns[4][word - 1, region] = 4  # the colour before a noun
    mix = generator.dirichlet(np.full(5, 0.35), (layers, heads))
    scores = np.einsum("lhp,pij->lhij", mix, patterns)
    scores += generator.normal(0, 0.5, (layers, heads, side, side))
    weights = np.exp(scores)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
