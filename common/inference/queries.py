"""A trained model for pictures of one's own: what it predicts, what it makes of words and regions, where it looks.

Letters: n regions, T text tokens, H hidden width, L layers, A heads, S = T + n + 1 places: text, regions, [END].
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from common.data.coco import CLASS_NAMES
from common.data.images import ImageSource, PreparedImage
from common.data.regions.types import Regions
from common.inference.attention import AttentionMaps, SequenceTokens
from common.inference.drawing import DrawnBox
from common.inference.grid import BoxSource


@dataclass(frozen=True)
class Query:
    """A picture and what is said or asked about it.

    Attributes:
        image: path, PIL picture, or (h, w, 3) uint8 array.
        text: the sentence.
        boxes: regions of the picture in any form that `common.engine.boxes` knows; None lets the finder look.
        name: what the picture is called where files name boxes, in messages and by files of maps; by default as its
            own file.
    """

    image: ImageSource
    text: str
    boxes: BoxSource | None = None
    name: str = ""

    @property
    def path(self) -> str:
        """The file of the picture; empty where that is not known."""
        source = getattr(self.image, "filename", "") if isinstance(self.image, Image.Image) else self.image
        return str(source) if isinstance(source, str | Path) else ""

    def called(self, number: int) -> str:
        """The name of the picture; without any, its number."""
        return str(self.name or self.path or f"picture {number}")


class ImageWithRegions(NamedTuple):
    """A picture with its regions.

    Attributes:
        name: how messages call it.
        image: RGB.
        picture: as the network sees it.
        regions: boxes (n, 4) in pixels of the picture, and their features where the network reads features.
    """

    name: str
    image: Image.Image
    picture: PreparedImage
    regions: Regions

    @property
    def classes(self) -> Tensor:
        """(n,) int64 COCO class 1..80, 0 if unknown."""
        ids = self.regions.class_ids
        return torch.zeros(len(self.regions.boxes), dtype=torch.int64) if ids is None else ids

    def kinds(self) -> list[str]:
        """The class of every region, empty where it is not known."""
        return [CLASS_NAMES[category] if category else "" for category in self.classes.tolist()]

    def drawn(self, chosen: Collection[int] = (), first: int = 1) -> list[DrawnBox]:
        """The regions to draw, with numbers from `first` on; one less is the whole image, drawn only if chosen."""
        whole = [DrawnBox(self.picture.whole, "image", True)] if first - 1 in chosen else []
        boxes = enumerate(zip(self.regions.boxes.tolist(), self.kinds(), strict=True), start=first)
        return whole + [
            DrawnBox(box, f"{number} {kind}".strip(), number in chosen) for number, (box, kind) in boxes
        ]


@dataclass(frozen=True)
class Encoding:
    """What the joint transformer makes of a picture and a text; all on the CPU.

    Attributes:
        places: what the states and the maps belong to.
        text: (T, H) final states of the text tokens.
        regions: (n, H) final states of the regions.
        pooled: (H,) the pooled first token; its final state where the model has no pooler.
        attention: (L, A, S, S) float32, see `AttentionMaps`; None unless asked for.
    """

    places: SequenceTokens
    text: Tensor
    regions: Tensor
    pooled: Tensor
    attention: Tensor | None = None

    def maps(self) -> AttentionMaps:
        """The attention with its places, as files and pages hold it.

        Raises:
            ValueError: this was encoded without `attention=True`.
        """
        if self.attention is None:
            raise ValueError("there are no maps: encode with attention=True")
        return AttentionMaps(self.places, self.attention.numpy())
