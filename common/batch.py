"""The records that travel from datasets to models: `Sample` (one item) and `Batch` (several, ragged).

Rows of different length are stored end to end, never padded: a batch of boxes is one `(K, 4)` tensor beside the
`Lengths` of its rows. Lengths are known on the host as well, so that shapes follow without waiting for a GPU.

Letters: B images, K boxes of all images, Q text sequences (VCR has one per answer choice), T tokens of all
sequences, H x W picture padded_size, M instance-mask side, F width of a precomputed region feature.
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
    """A dataclass of tensors and other records that moves between devices as a whole."""

    def _map(self, name: str, *args: Any, **kwargs: Any) -> Self:
        changes = {}
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor | Record):
                changes[item.name] = getattr(value, name)(*args, **kwargs)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """Copies every tensor to `device`; copies from pinned memory do not block."""
        return self._map("to", device, non_blocking=non_blocking)

    def pin_memory(self) -> Self:
        """Moves every tensor to page-locked memory (called by the data loader)."""
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
        """Lengths from host numbers."""
        return cls(tuple(sizes), torch.tensor(sizes, dtype=torch.int64, device=device))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def total(self) -> int:
        """Sum of all lengths."""
        return sum(self.sizes)

    @property
    def longest(self) -> int:
        """Largest length, 0 without rows."""
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
        """(total,) int64: place of every item in its row."""
        index = torch.arange(self.total, device=self.tensor.device)
        return index - self.starts[self.rows()]

    def split(self, values: Tensor) -> list[Tensor]:
        """Cuts a ragged tensor (total, ...) into its rows."""
        return list(torch.split(values, list(self.sizes)))

    def repeat(self, rows: Lengths) -> Lengths:
        """Repeats row i `rows.sizes[i]` times: the lengths of boxes as every text sequence sees them."""
        sizes = tuple(size for size, times in zip(self.sizes, rows.sizes, strict=True) for _ in range(times))
        return Lengths(sizes, self.tensor[rows.rows()])


@dataclass(frozen=True)
class Ragged(Record):
    """Rows of their own lengths, end to end.

    Attributes:
        lengths: of the B rows.
        values: (N, ...).
    """

    lengths: Lengths
    values: Tensor


def ragged() -> Any:
    """Declares a batch field whose rows are joined end to end: (n_i, ...) per sample, (sum n_i, ...) per batch."""
    return field(default=None, metadata={"collate": "ragged"})


def counted() -> Any:
    """Declares a `ragged` field whose lengths no other field has: a `Ragged` per batch."""
    return field(default=None, metadata={"collate": "counted"})


def index_into(rows: Literal["boxes", "text"]) -> Any:
    """Declares a `counted` field of places: those of a sample, (m_i,) int64, become those in the batch.

    Args:
        rows: what they are places of: the boxes, or the tokens of the only text of a sample.
    """
    return field(default=None, metadata={"collate": "index", "into": rows})


def stacked() -> Any:
    """Declares a batch field with one equal-shaped tensor per sample: (...) per sample, (B, ...) per batch."""
    return field(default=None, metadata={"collate": "stacked"})


@dataclass(frozen=True)
class TextSequence:
    """One text sequence as the model reads it, special tokens included, [END] excluded.

    Attributes:
        ids: (t,) int64 word-piece ids.
        types: (t,) int64 segment ids, 0 or 1.
        tags: (t,) int64 row of the box whose visual feature the token carries; 0 is the whole image.
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    tags: NDArray[np.int64]

    @classmethod
    def plain(cls, ids: Sequence[int]) -> TextSequence:
        """Tokens of one segment that look at the whole image."""
        numbers = np.array(ids, dtype=np.int64)
        return cls(numbers, np.zeros_like(numbers), np.zeros_like(numbers))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Text(Record):
    """All text sequences of a batch, end to end.

    Attributes:
        per_image: how many sequences belong to each image (lengths of B rows, Q in all).
        lengths: tokens of each sequence (Q rows, T in all).
        ids: (T,) int64.
        types: (T,) int64.
        tags: (T,) int64, local to the image's boxes.
    """

    per_image: Lengths
    lengths: Lengths
    ids: Tensor
    types: Tensor
    tags: Tensor


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One item of a dataset. Tasks subclass it with their labels.

    Attributes:
        index: position in the dataset.
        record_id: the id by which users know the record.
        image: (3, h, w) uint8, channels B, G, R; None when features are precomputed.
        padded_size: (H, W), the least size that the picture is padded to.
        im_info: (4,) float32: resized width and height, and their ratios to the original ones.
        boxes: (n, 4) float32 x1, y1, x2, y2 in resized pixels; row 0 is the whole image where the task adds it.
        texts: the text sequences of this item.
        box_classes: (n,) int64 category 0..80.
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
    """Several samples, ragged; those that are text alone, without a box, stand behind those with a picture.

    Tasks subclass it with their labels, declared `ragged()`, `stacked()`, `counted()` or `index_into()`.

    Attributes:
        record_ids: the id of every sample.
        index: (B,) int64 dataset indices.
        images: (P, 3, H, W) uint8 B, G, R, zero beyond the picture; or float, then already normalised; or None. P
            is B less the samples that are text alone.
        im_info: (B, 4) float32, see `Sample`.
        num_boxes: boxes of each image (B rows, K in all).
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
        """Samples in this batch."""
        return len(self.record_ids)

    @property
    def num_pictures(self) -> int:
        """P, the samples that are not text alone; they come first."""
        return sum(size > 0 for size in self.num_boxes.sizes)
