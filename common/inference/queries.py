"""Input and output records of `common.inference.predictor`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.data.coco import CLASS_NAMES
from common.data.images import ImageSource, PreparedImage
from common.data.regions.sources import RegionSource, clip_to_image, parse_boxes
from common.data.regions.types import Regions
from common.inference.attention import WHOLE_IMAGE, AttentionMaps, SequenceTokens
from common.inference.drawing import LabeledBox

BoxSource: TypeAlias = (
    str
    | Path
    | RegionSource
    | Regions
    | Sequence[Sequence[float]]
    | Mapping[str, Any]
    | NDArray[Any]
    | Tensor
)
"""Regions of an image: a file or folder (see `RegionSource`; an open one can serve many images), detections, or boxes
in a form that `parse_boxes` accepts."""


def resolve_boxes(source: BoxSource, name: str, size: tuple[int, int], feature_dim: int | None) -> Regions:
    """Reads the regions of an image and clips them to it.

    Args:
        source: see `BoxSource`.
        name: key of the image in annotation files.
        size: (width, height) of the image.
        feature_dim: width F of the features in region files; None to skip them.

    Raises:
        DataError: a file or a box is invalid.
    """
    if isinstance(source, str | Path):
        source = RegionSource(str(source))
    if isinstance(source, RegionSource):
        source = source.read(Path(name).name, feature_dim=feature_dim)
    if isinstance(source, Mapping):  # torchvision detectors return a dict of tensors
        source = {
            key: value.tolist() if isinstance(value, Tensor) else value for key, value in source.items()
        }
    if not isinstance(source, Regions):
        source = parse_boxes(source, f"the boxes of {name}", feature_dim)
    return clip_to_image(source, size)


@dataclass(frozen=True)
class Query:
    """An image and a text about it.

    Attributes:
        image: path, Pillow image, or (h, w, 3) uint8 array.
        text: sentence, question or expression.
        boxes: regions of the image; None to run the detector.
        name: key of the image in annotation files, and its name in messages and output files; defaults to the path.
    """

    image: ImageSource
    text: str
    boxes: BoxSource | None = None
    name: str = ""

    @property
    def path(self) -> str:
        """Path of the image file; empty if unknown."""
        source = getattr(self.image, "filename", "") if isinstance(self.image, Image.Image) else self.image
        return str(source) if isinstance(source, str | Path) else ""

    def display_name(self, number: int) -> str:
        """Returns the name or path of the image, or `image {number}` if it has neither."""
        return self.name or self.path or f"image {number}"


class ImageWithRegions(NamedTuple):
    """An image with its regions.

    Attributes:
        name: name in messages.
        image: RGB.
        prepared: the image as the model reads it.
        regions: boxes in original pixels; with features if the model reads features.
    """

    name: str
    image: Image.Image
    prepared: PreparedImage
    regions: Regions

    def class_names(self) -> list[str]:
        """Returns the class name of every region, empty if unknown."""
        class_ids = self.regions.class_ids
        if class_ids is None:
            return [""] * len(self.regions.boxes)
        return [CLASS_NAMES[class_id] if class_id else "" for class_id in class_ids.tolist()]

    def to_draw(self, highlighted: Collection[int] = (), first: int = 1) -> list[LabeledBox]:
        """Returns the regions as labeled boxes.

        Args:
            highlighted: numbers of the regions to highlight; `first - 1` is the whole image, drawn only if highlighted.
            first: number of the first region.
        """
        whole = [LabeledBox(self.prepared.whole_box, WHOLE_IMAGE, True)] if first - 1 in highlighted else []
        regions = enumerate(zip(self.regions.boxes.tolist(), self.class_names(), strict=True), start=first)
        return whole + [
            LabeledBox(box, f"{number} {name}".strip(), number in highlighted)
            for number, (box, name) in regions
        ]


@dataclass(frozen=True)
class Encoding:
    """Final states of the joint transformer for one image and one text, on the CPU.

    Shapes: n regions, T text tokens, H hidden width, L layers, A heads, S = T + n + 1 positions.

    Attributes:
        sequence: tokens and regions that the states belong to.
        text: (T, H) states of the text tokens.
        regions: (n, H) states of the regions.
        pooled: (H,) pooler output, or the first state if the model has no pooler.
        attention: (L, A, S, S) float32, see `AttentionMaps`; None unless requested.
    """

    sequence: SequenceTokens
    text: Tensor
    regions: Tensor
    pooled: Tensor
    attention: Tensor | None = None

    def maps(self) -> AttentionMaps:
        """Returns the attention maps.

        Raises:
            ValueError: the encoding was computed without `attention=True`.
        """
        if self.attention is None:
            raise ValueError("no attention maps: encode with attention=True")
        return AttentionMaps(self.sequence, self.attention.numpy())
