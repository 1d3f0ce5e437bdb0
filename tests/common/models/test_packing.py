"""Packed sequences, by hand."""

from __future__ import annotations

import torch

from common.batch import Lengths
from common.models.packing import Packing, Padding, argmax_per_row


def test_worked_example_of_the_spec():
    packing = Packing.of(Lengths.of([4, 2]), Lengths.of([2, 3]))
    assert packing.lengths.sizes == (7, 6)
    assert packing.text.tolist() == [0, 1, 2, 3, 7, 8]
    assert packing.regions.tolist() == [4, 5, 9, 10, 11]
    assert packing.end.tolist() == [6, 12]
    placed = packing.pack(packing.positions[:, None])[:, 0].tolist()
    assert placed == [0, 1, 2, 3, 4, 4, 5, 0, 1, 2, 2, 2, 3]


def test_positions_start_later_for_roberta():
    packing = Packing.of(Lengths.of([1]), Lengths.of([1]), first_position=2)
    assert packing.pack(packing.positions[:, None])[:, 0].tolist() == [2, 3, 4]


def test_a_row_without_regions_ends_behind_its_text():
    packing = Packing.of(Lengths.of([2, 1]), Lengths.of([0, 1]))
    assert packing.end.tolist() == [2, 5]
    assert packing.first.tolist() == [0, 3]


def test_padding_and_back():
    lengths = Lengths.of([2, 0, 3])
    padding = Padding.of(lengths)
    packed = torch.arange(1.0, 6.0)[:, None]
    padded = padding.pad(packed)
    assert padded[:, :, 0].tolist() == [[1, 2, 0], [0, 0, 0], [3, 4, 5]]
    assert padding.mask().tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert torch.equal(padding.unpad(padded), packed)


def test_equal_rows_need_no_mask():
    assert Padding.of(Lengths.of([2, 2])).mask() is None


def test_lengths():
    lengths = Lengths.of([2, 0, 1])
    assert (lengths.total, lengths.longest, len(lengths)) == (3, 2, 3)
    assert lengths.starts.tolist() == [0, 2, 2]
    assert lengths.rows().tolist() == [0, 0, 2]
    assert lengths.positions().tolist() == [0, 1, 0]
    repeated = lengths.repeat(Lengths.of([1, 2, 3]))
    assert repeated.sizes == (2, 0, 0, 1, 1, 1)
    assert repeated.tensor.tolist() == [2, 0, 0, 1, 1, 1]


def test_the_largest_of_every_row():
    values = torch.tensor([-3.0, -2, -9, 5, 1, 5])
    assert argmax_per_row(values, Lengths.of([2, 1, 3])).tolist() == [1, 2, 3]
    assert argmax_per_row(values, Lengths.of([3, 3])).tolist() == [1, 3]
