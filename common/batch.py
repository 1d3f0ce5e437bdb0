"""`Sample` (one item of a dataset) and `Batch` (several, ragged).

Rows of different length are concatenated, never padded: the boxes of a batch are one `(K, 4)` tensor beside the
`Lengths` of its rows. Lengths are also known on the host, so shapes do not need a device synchronization.

Shapes: B images, K boxes of all images, Q text sequences (VCR has one per choice), T tokens of all sequences, H x W
padded image size, M instance mask side, F width of a precomputed region feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self


class Record:
    """A dataclass of tensors and records that can be moved between devices."""

    def _map(self, name: str, *args: Any, **kwargs: Any) -> Self:
        changes = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor | Record):
                changes[item.name] = getattr(value, name)(*args, **kwargs)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """Copies every tensor to `device`. Copies from pinned memory are asynchronous."""
        return self._map("to", device, non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """Pins every tensor (called by the data loader)."""
        return self._map("pin_memory")


@dataclass(frozen=True)
class Lengths(Record):
    """Row lengths of a ragged tensor, on the host (`sizes`) and on the device (`tensor`).

    Attributes:
        sizes: length of every row.
        tensor: (R,) int64, the same numbers.
    """

    sizes: tuple[int, ...]
    tensor: Tensor

    @classmethod
    def of(cls, sizes: list[int] | tuple[int, ...], device: torch.device | str = "cpu") -> Lengths:
        return cls(tuple(sizes), torch.tensor(sizes, dtype=torch.int64, device=device))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def total(self) -> int:
        return sum(self.sizes)

    @property
    def longest(self) -> int:
        """Maximum length; 0 without rows."""
        return max(self.sizes, default=0)

    @property
    def starts(self) -> Tensor:
        """(R,) int64: index of the first item of every row."""
        return self.tensor.cumsum(0) - self.tensor

    def rows(self) -> Tensor:
        """(total,) int64: row of every item."""
        index = torch.arange(len(self.sizes), device=self.tensor.device)
        return torch.repeat_interleave(index, self.tensor, output_size=self.total)

    def positions(self) -> Tensor:
        """(total,) int64: position of every item in its row."""
        index = torch.arange(self.total, device=self.tensor.device)
        return index - self.starts[self.rows()]

    def split(self, values: Tensor) -> list[Tensor]:
        """Splits a ragged tensor (total, ...) into its rows."""
        return list(torch.split(values, list(self.sizes)))

    def repeat(self, rows: Lengths) -> Lengths:
        """Repeats row i `rows.sizes[i]` times: from boxes per image to boxes per text sequence."""
        sizes = tuple(size for size, times in zip(self.sizes, rows.sizes, strict=True) for _ in range(times))
        return Lengths(sizes, self.tensor[rows.rows()])


@dataclass(frozen=True)
class Ragged(Record):
    """A ragged tensor with its own lengths.

    Attributes:
        lengths: lengths of the B rows.
        values: (N, ...).
    """

    lengths: Lengths
    values: Tensor


def ragged() -> Any:
    """Declares a batch field that is concatenated: (n_i, ...) per sample, (sum n_i, ...) per batch."""
    return field(default=None, metadata={"collate": "ragged"})


def counted() -> Any:
    """Declares a concatenated field with lengths of its own: a `Ragged` per batch."""
    return field(default=None, metadata={"collate": "counted"})


def index_into(rows: Literal["boxes", "text"]) -> Any:
    """Declares a `counted` field of indices: (m_i,) int64 indices within a sample become indices within the batch.

    Args:
        rows: what they index: the boxes, or the tokens of the only text of a sample.
    """
    return field(default=None, metadata={"collate": "index", "into": rows})


def stacked() -> Any:
    """Declares a batch field that is stacked: (...) per sample, (B, ...) per batch."""
    return field(default=None, metadata={"collate": "stacked"})


@dataclass(frozen=True)
class TextSequence:
    """A text sequence as the model reads it, with special tokens except [END].

    Attributes:
        ids: (t,) int64 word-piece ids.
        types: (t,) int64 segment ids, 0 or 1.
        tags: (t,) int64 index of the box whose visual feature the token gets; 0 is the whole image.
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    tags: NDArray[np.int64]

    @classmethod
    def plain(cls, ids: Sequence[int]) -> TextSequence:
        """Returns a sequence of one segment whose tokens get the feature of the whole image."""
        numbers = np.array(ids, dtype=np.int64)
        return cls(numbers, np.zeros_like(numbers), np.zeros_like(numbers))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Text(Record):
    """All text sequences of a batch, concatenated.

    Attributes:
        per_image: number of sequences of each image (B rows, Q in all).
        lengths: number of tokens of each sequence (Q rows, T in all).
        ids: (T,) int64.
        types: (T,) int64.
        tags: (T,) int64, indices among the boxes of the image.
    """

    per_image: Lengths
    lengths: Lengths
    ids: Tensor
    types: Tensor
    tags: Tensor


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One item of a dataset. Tasks add labels in subclasses.

    Attributes:
        index: index in the dataset.
        record_id: id by which users know the record.
        image: (3, h, w) uint8, channels B, G, R; None if features are precomputed.
        padded_size: (H, W), minimum size that the image is padded to.
        im_info: (4,) float32 resized width and height, and their ratios to the original ones.
        boxes: (n, 4) float32 x1, y1, x2, y2 in resized pixels; box 0 is the whole image if the task adds it.
        texts: the text sequences of this item.
        box_classes: (n,) int64 class 0..80.
        box_masks: (n, M, M) bool instance masks inside the boxes.
        box_features: (n, F) float32 precomputed features.
    """

    index: int
    record_id: str
    image: Tensor | None
    padded_size: tuple[int, int]
    im_info: Tensor
    boxes: Tensor
    texts: tuple[TextSequence, ...]
    box_classes: Tensor | None = None
    box_masks: Tensor | None = None
    box_features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Batch(Record):
    """Several samples, ragged. Samples without image and boxes (text only) come last.

    Tasks add labels in subclasses, declared with `ragged()`, `stacked()`, `counted()` or `index_into()`.

    Attributes:
        record_ids: id of every sample.
        index: (B,) int64 dataset indices.
        images: (P, 3, H, W) uint8 B, G, R, zero-padded; or float, already normalized; or None. P is B minus the
            text-only samples.
        im_info: (B, 4) float32, see `Sample`.
        num_boxes: number of boxes of each image (B rows, K in all).
        boxes: (K, 4) float32.
        text: all text sequences.
        box_classes: (K,) int64 or None.
        box_masks: (K, M, M) bool or float, or None.
        box_features: (K, F) float32 or None.
    """

    record_ids: tuple[str, ...]
    index: Tensor
    images: Tensor | None
    num_boxes: Lengths
    text: Text
    im_info: Tensor = stacked()
    boxes: Tensor = ragged()
    box_classes: Tensor | None = ragged()
    box_masks: Tensor | None = ragged()
    box_features: Tensor | None = ragged()

    @property
    def num_samples(self) -> int:
        return len(self.record_ids)

    @property
    def num_images(self) -> int:
        """P, the number of samples with an image."""
        return sum(size > 0 for size in self.num_boxes.sizes)
