"""Index arithmetic of packed sequences: no `nonzero`, no wait for the device (spec model.md 2.3).

Every row is `[text tokens][regions][END]`. Letters: Q rows, T text tokens, R regions, S = T + R + Q packed tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.batch import Lengths


@dataclass(frozen=True)
class Packing:
    """Where the parts of every row stand in the packed (S, ...) tensor.

    Attributes:
        lengths: tokens of each row (Q rows).
        text: (T,) slots of the text tokens.
        regions: (R,) slots of the regions.
        end: (Q,) slots of the [END] tokens.
        positions: (S,) position ids in the order text, regions, end; all regions of a row share one.
    """

    lengths: Lengths
    text: Tensor
    regions: Tensor
    end: Tensor
    positions: Tensor

    @classmethod
    def of(cls, text: Lengths, regions: Lengths, first_position: int = 0) -> Packing:
        """Packs rows of `text` and `regions` lengths; position ids start at `first_position`."""
        sizes = tuple(t + r + 1 for t, r in zip(text.sizes, regions.sizes, strict=True))
        lengths = Lengths(sizes, text.tensor + regions.tensor + 1)
        start = lengths.starts
        text_position, region_row = text.positions(), regions.rows()
        positions = torch.cat([text_position, text.tensor[region_row], text.tensor + 1]) + first_position
        return cls(
            lengths=lengths,
            text=start[text.rows()] + text_position,
            regions=(start + text.tensor)[region_row] + regions.positions(),
            end=start + lengths.tensor - 1,
            positions=positions,
        )

    def pack(self, values: Tensor) -> Tensor:
        """(S, H) given in the order text, regions, end, to their slots."""
        slots = torch.cat([self.text, self.regions, self.end])
        return torch.empty_like(values).index_copy(0, slots, values)

    @property
    def first(self) -> Tensor:
        """(Q,) slots of the first token of every row."""
        return self.lengths.starts


@dataclass(frozen=True)
class Padding:
    """How packed rows look as a rectangle, for kernels that need one.

    Attributes:
        lengths: tokens of each row.
        slots: (S,) place of every packed token in the flattened (Q * longest) rectangle.
    """

    lengths: Lengths
    slots: Tensor

    @classmethod
    def of(cls, lengths: Lengths) -> Padding:
        """The rectangle of rows of these lengths."""
        return cls(lengths, lengths.rows() * lengths.longest + lengths.positions())

    def pad(self, packed: Tensor) -> Tensor:
        """(S, ...) to (Q, longest, ...), zeros behind each row."""
        rows, longest = len(self.lengths), self.lengths.longest
        if rows * longest == len(packed):
            return packed.view(rows, longest, *packed.shape[1:])
        flat = packed.new_zeros(rows * longest, *packed.shape[1:]).index_copy(0, self.slots, packed)
        return flat.view(rows, longest, *packed.shape[1:])

    def unpad(self, padded: Tensor) -> Tensor:
        """(Q, longest, ...) back to (S, ...)."""
        return padded.flatten(0, 1).index_select(0, self.slots)

    def mask(self) -> Tensor | None:
        """(Q, longest) bool, True = real; None when every slot is real."""
        if len(set(self.lengths.sizes)) <= 1:
            return None
        index = torch.arange(self.lengths.longest, device=self.slots.device)
        return index < self.lengths.tensor[:, None]


def argmax_per_row(values: Tensor, lengths: Lengths) -> Tensor:
    """(B,) int64: where in a ragged (K,) tensor the largest value of each row stands; the first of equal ones.

    Args:
        values: (K,).
        lengths: of the B rows, none empty.
    """
    assert min(lengths.sizes, default=1) > 0, "an empty row has no largest value"
    rectangle = Padding.of(lengths)
    padded, real = rectangle.pad(values), rectangle.mask()
    if real is not None:
        padded = padded.masked_fill(~real, -math.inf)
    return lengths.starts + padded.argmax(1)
