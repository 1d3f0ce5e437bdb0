"""Scenes of the toy world, and their images.

A scene is an image size and one to four objects, each in its own cell of a grid. The category, color and position of
an object are drawn independently and uniformly, so text without a color carries no information about the color.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

T = TypeVar("T")
Box = tuple[float, float, float, float]
Point = tuple[float, float]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (25, 150, 50),
    "blue": (35, 65, 220),
    "yellow": (245, 220, 35),
    "purple": (160, 40, 190),
    "white": (248, 248, 248),
}
SIZES = ((160, 120), (120, 160), (160, 120), (120, 160), (176, 128), (136, 136))
SKIN, DARK, METAL, GLASS = (225, 175, 140), (45, 40, 40), (90, 85, 80), (150, 190, 205)
Part = tuple[str, tuple[Point, ...], tuple[int, int, int] | None]


@dataclass(frozen=True)
class Category:
    """A category of objects.

    Attributes:
        name: COCO category name; VCR writes it without spaces.
        coco_id: COCO category id.
        noun: word for it in questions and captions.
        aspect: width / height of the icon.
        parts: (shape, points, fill) in the unit square, painted in order; fill None means the color of the object.
        outline: polygon around the icon, in the unit square.
    """

    name: str
    coco_id: int
    noun: str
    aspect: float
    parts: tuple[Part, ...]
    outline: tuple[Point, ...]

    @property
    def vcr_name(self) -> str:
        return self.name.replace(" ", "")


def _circle(corners: int = 12) -> tuple[Point, ...]:
    angles = np.arange(corners) * 2 * np.pi / corners
    return tuple((0.5 + 0.5 * float(np.cos(a)), 0.5 + 0.5 * float(np.sin(a))) for a in angles)


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> tuple[Point, ...]:
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


_CUP = ((0.0, 0.0), (0.76, 0.0), (0.66, 1.0), (0.1, 1.0))
_KITE = ((0.5, 0.0), (1.0, 0.4), (0.5, 1.0), (0.0, 0.4))
_CANOPY = ((0.0, 0.55), (0.08, 0.28), (0.28, 0.08), (0.5, 0.0), (0.72, 0.08), (0.92, 0.28), (1.0, 0.55))
_CAR = ((0.0, 0.85), (0.0, 0.4), (0.2, 0.35), (0.32, 0.0), (0.76, 0.0), (0.88, 0.35), (1.0, 0.4), (1.0, 0.85))
_SHIRT = ((0.0, 0.4), (0.25, 0.26), (0.75, 0.26), (1.0, 0.4), (0.94, 0.82), (0.06, 0.82))

CATEGORIES = (
    Category("person", 1, "person", 0.8, (
        ("polygon", _rectangle(0.18, 0.75, 0.44, 1.0), DARK), ("polygon", _rectangle(0.56, 0.75, 0.82, 1.0), DARK),
        ("polygon", _SHIRT, None), ("ellipse", ((0.33, 0.0), (0.67, 0.29)), SKIN),
    ), ((0.33, 0.0), (0.67, 0.0), *_SHIRT[2:4], (0.82, 1.0), (0.18, 1.0), *_SHIRT[5:], *_SHIRT[:2])),
    Category("car", 3, "car", 1.5, (
        ("polygon", _CAR, None), ("polygon", ((0.36, 0.1), (0.7, 0.1), (0.78, 0.35), (0.28, 0.35)), GLASS),
        ("ellipse", ((0.12, 0.65), (0.34, 1.0)), DARK), ("ellipse", ((0.66, 0.65), (0.88, 1.0)), DARK),
    ), (*_CAR, (0.77, 1.0), (0.23, 1.0))),
    Category("sports ball", 37, "ball", 1.0, (("ellipse", ((0.0, 0.0), (1.0, 1.0)), None),), _circle()),
    Category("cup", 47, "cup", 0.95, (
        ("ellipse", ((0.5, 0.2), (1.0, 0.75)), METAL), ("ellipse", ((0.58, 0.32), (0.88, 0.63)), GLASS),
        ("polygon", _CUP, None),
    ), (*_CUP[:2], (1.0, 0.35), (0.95, 0.65), *_CUP[2:])),
    Category("umbrella", 28, "umbrella", 1.2, (
        ("polygon", _rectangle(0.46, 0.5, 0.54, 1.0), DARK), ("polygon", _CANOPY, None),
    ), (*_CANOPY, (0.54, 0.55), (0.54, 1.0), (0.46, 1.0), (0.46, 0.55))),
    Category("kite", 38, "kite", 0.85, (
        ("polygon", _KITE, None), ("line", ((0.5, 0.0), (0.5, 1.0)), METAL),
    ), _KITE),
    Category("suitcase", 33, "suitcase", 1.25, (
        ("polygon", _rectangle(0.35, 0.0, 0.65, 0.2), METAL), ("polygon", _rectangle(0.0, 0.14, 1.0, 1.0), None),
    ), ((0.35, 0.0), (0.65, 0.0), (0.65, 0.14), *_rectangle(0.0, 0.14, 1.0, 1.0)[1:], (0.0, 0.14), (0.35, 0.14))),
    Category("chair", 62, "chair", 0.8, (
        ("polygon", _rectangle(0.0, 0.7, 0.14, 1.0), DARK), ("polygon", _rectangle(0.86, 0.7, 1.0, 1.0), DARK),
        ("polygon", _rectangle(0.1, 0.0, 0.9, 0.55), None), ("polygon", _rectangle(0.0, 0.5, 1.0, 0.78), None),
    ), ((0.1, 0.0), (0.9, 0.0), (0.9, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0), (0.0, 0.5), (0.1, 0.5))),
)  # fmt: skip
PERSON = CATEGORIES[0]
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene: its category, color, cell (row, column) and tight box (x1, y1, x2, y2) in pixels."""

    category: Category
    color: str
    cell: tuple[int, int]
    box: Box

    def to_pixels(self, points: tuple[Point, ...]) -> list[list[float]]:
        """Maps points of the unit square to pixels of the image."""
        x1, y1, x2, y2 = self.box
        return [[round(x1 + x * (x2 - x1), 2), round(y1 + y * (y2 - y1), 2)] for x, y in points]

    @property
    def outline(self) -> list[list[float]]:
        """The polygon around the object, in pixels."""
        return self.to_pixels(self.category.outline)

    def relation(self, other: SceneObject) -> str | None:
        """Returns where this object is relative to `other`: one of `RELATIONS`, or None on a diagonal."""
        rows, columns = self.cell[0] - other.cell[0], self.cell[1] - other.cell[1]
        if rows and columns:
            return None
        return ("left of" if columns < 0 else "right of") if columns else ("above" if rows < 0 else "below")


@dataclass(frozen=True)
class Scene:
    """An image size in pixels and the objects in the image, in random order."""

    width: int
    height: int
    objects: tuple[SceneObject, ...]


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Returns a separate random stream per purpose, so that no file depends on which others are written."""
    return np.random.default_rng([seed, zlib.crc32("/".join(map(str, purpose)).encode())])


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Returns one of `options`, uniformly; `rng.choice` would convert them to arrays."""
    return options[int(rng.integers(len(options)))]


def make_scene(rng: np.random.Generator, counts: tuple[int, ...] = (2, 2, 3)) -> Scene:
    """Draws a scene.

    Args:
        rng: random stream.
        counts: choices for the number of objects, each 1 to 4.
    """
    width, height = pick(rng, SIZES)
    count = pick(rng, counts)
    # Two objects get half of the image each, more get a quarter, so that objects are large.
    rows, columns = pick(rng, ((1, 2), (2, 1))) if count == 2 else (min(count, 2),) * 2
    cells = rng.permutation(rows * columns)[:count].tolist() if count > 1 else [0]
    cell_width, cell_height = width / columns - 4, height / rows - 4
    objects = []
    for row, column in (divmod(cell, columns) for cell in cells):
        category: Category = pick(rng, CATEGORIES)
        h = min(cell_height, cell_width / category.aspect) * rng.uniform(0.84, 1.0)
        w = h * category.aspect
        x = column * width / columns + 2 + rng.uniform(0, cell_width - w)
        y = row * height / rows + 2 + rng.uniform(0, cell_height - h)
        box = (round(x, 2), round(y, 2), round(x + w, 2), round(y + h, 2))
        objects.append(SceneObject(category, pick(rng, list(COLORS)), (row, column), box))
    return Scene(width, height, tuple(objects))


def paint(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Paints the scene on a muted, textured background."""
    base = rng.uniform(75, 140) + rng.uniform(-14, 14, 3)
    blobs = (base + rng.normal(0, 11, (5, 5, 3))).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(blobs).resize((scene.width, scene.height), Image.Resampling.BICUBIC)
    grain = rng.integers(-6, 7, (scene.height, scene.width, 1))
    image = Image.fromarray((np.asarray(image, dtype=np.int16) + grain).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for scene_object in scene.objects:
        shade = rng.uniform(0.92, 1.0)
        color = tuple(int(channel * shade) for channel in COLORS[scene_object.color])
        for shape, points, fill in scene_object.category.parts:
            pixels = [(x, y) for x, y in scene_object.to_pixels(points)]
            if shape == "ellipse":
                draw.ellipse(pixels, fill=fill or color)
            elif shape == "line":
                draw.line(pixels, fill=fill or color, width=2)
            else:
                draw.polygon(pixels, fill=fill or color)
    return image


def write_json(path: Path, value: object) -> None:
    """Writes a json file and creates its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file and creates its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def save_image(scene: Scene, rng: np.random.Generator, path: Path) -> None:
    """Paints the scene and writes a JPEG file without chroma subsampling, which would blur the colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    paint(scene, rng).save(path, quality=90, subsampling=0)


def jittered(box: Box, scene: Scene, rng: np.random.Generator, pixels: float) -> Box:
    """Returns the box as a detector would: each side is off by up to `pixels`, inside the image."""
    x1, y1, x2, y2 = (np.asarray(box) + rng.uniform(-pixels, pixels, 4)).tolist()
    return (
        round(max(x1, 0.0), 2),
        round(max(y1, 0.0), 2),
        round(min(x2, scene.width - 1.0), 2),
        round(min(y2, scene.height - 1.0), 2),
    )
