"""Index arithmetic of packed sequences, without `nonzero` and without device synchronization.

Every row is `[text tokens][regions][END]`. Two rows with 3 and 1 text tokens and 2 and 1 regions are packed as

    index     0  1  2  3  4  5   6  7  8
    content   t  t  t  r  r  E   t  r  E
    position  0  1  2  3  3  4   0  1  2

Shapes: Q rows, T text tokens, R regions, S = T + R + Q packed tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.batch import Lengths


@dataclass(frozen=True)
class Packing:
    """Indices of the parts of every row in the packed (S, ...) tensor.

    Attributes:
        lengths: number of tokens of each row (Q rows).
        text: (T,) indices of the text tokens.
        regions: (R,) indices of the regions.
        end: (Q,) indices of the [END] tokens.
        positions: (S,) position ids in the order text, regions, end. All regions of a row share one.
    """

    lengths: Lengths
    text: Tensor
    regions: Tensor
    end: Tensor
    positions: Tensor

    @classmethod
    def of(cls, text: Lengths, regions: Lengths, first_position: int = 0) -> Packing:
        """Builds the indices of rows with these lengths. Position ids start at `first_position`."""
        sizes = tuple(t + r + 1 for t, r in zip(text.sizes, regions.sizes, strict=True))
        lengths = Lengths(sizes, text.tensor + regions.tensor + 1)
        start = lengths.starts
        text_position, region_row = text.positions(), regions.rows()
        # Regions have no order: all of a row share the position after its text, and [END] has the next one
        # (paper, section 3.2). The largest position is therefore that of the text length plus 1, whatever the
        # number of regions.
        positions = torch.cat([text_position, text.tensor[region_row], text.tensor + 1]) + first_position
        return cls(
            lengths=lengths,
            text=start[text.rows()] + text_position,
            regions=(start + text.tensor)[region_row] + regions.positions(),
            end=start + lengths.tensor - 1,
            positions=positions,
        )

    def pack(self, values: Tensor) -> Tensor:
        """Permutes (S, H) from the order text, regions, end to packed rows."""
        # The three index lists are a permutation of 0 .. S - 1, so that every row of the empty tensor is written.
        slots = torch.cat([self.text, self.regions, self.end])
        return torch.empty_like(values).index_copy(0, slots, values)

    @property
    def first(self) -> Tensor:
        """(Q,) indices of the first token of every row."""
        return self.lengths.starts


@dataclass(frozen=True)
class Padding:
    """Conversion between packed rows and a padded rectangle.

    Attributes:
        lengths: number of tokens of each row.
        slots: (S,) index of every packed token in the flattened (Q * longest) rectangle.
    """

    lengths: Lengths
    slots: Tensor

    @classmethod
    def of(cls, lengths: Lengths) -> Padding:
        return cls(lengths, lengths.rows() * lengths.longest + lengths.positions())

    def pad(self, packed: Tensor) -> Tensor:
        """Converts (S, ...) to (Q, longest, ...), with zeros as padding."""
        rows, longest = len(self.lengths), self.lengths.longest
        if rows * longest == len(packed):
            return packed.view(rows, longest, *packed.shape[1:])
        flat = packed.new_zeros(rows * longest, *packed.shape[1:]).index_copy(0, self.slots, packed)
        return flat.view(rows, longest, *packed.shape[1:])

    def unpad(self, padded: Tensor) -> Tensor:
        """Converts (Q, longest, ...) to (S, ...)."""
        return padded.flatten(0, 1).index_select(0, self.slots)

    def mask(self) -> Tensor | None:
        """Returns (Q, longest) bool, True for real tokens; None if there is no padding."""
        if len(set(self.lengths.sizes)) <= 1:
            return None
        index = torch.arange(self.lengths.longest, device=self.slots.device)
        return index < self.lengths.tensor[:, None]


def argmax_per_row(values: Tensor, lengths: Lengths) -> Tensor:
    """Returns (B,) int64 indices of the largest value of each row of a ragged tensor; the first of equal ones.

    Args:
        values: (K,).
        lengths: lengths of the B rows, none of them 0.
    """
    assert min(lengths.sizes, default=1) > 0, "an empty row has no largest value"
    rectangle = Padding.of(lengths)
    padded, real = rectangle.pad(values), rectangle.mask()
    if real is not None:
        padded = padded.masked_fill(~real, -math.inf)
    return lengths.starts + padded.argmax(1)
