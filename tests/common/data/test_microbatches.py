from __future__ import annotations

import numpy as np
import pytest
import torch

from common.batch import Batch, Sample, TextSequence
from common.data.collate import (
    MicrobatchCollator,
    MicrobatchLimits,
    MicrobatchSize,
    collate_microbatches,
    split_into_microbatches,
)
from common.errors import DataError


def sample(index, boxes, *texts, size=(2, 3)):
    words = [np.arange(length) for length in texts]
    return Sample(
        index=index,
        record_id=f"r{index}",
        image=torch.full((3, *size), index, dtype=torch.uint8) if size else None,
        padded_size=size or (0, 0),
        im_info=torch.ones(4),
        boxes=torch.zeros(boxes, 4),
        texts=tuple(TextSequence(word, word, word) for word in words),
    )


def test_every_text_sees_all_regions_and_an_end():
    assert MicrobatchSize.of(sample(0, 3, 5, 2)) == (5 + 3 + 1 + 2 + 3 + 1, 3)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((0, 0), [[0, 1, 2, 3]]),
        ((100, 0), [[0, 1, 2, 3]]),
        # Places: 5, 7, 3, 6.
        ((12, 0), [[0, 1], [2, 3]]),
        ((11, 0), [[0], [1, 2], [3]]),
        ((1, 0), [[0], [1], [2], [3]]),
        ((6, 0), [[0], [1], [2], [3]]),
        # Boxes: 1, 2, 0, 4.
        ((0, 3), [[0, 1, 2], [3]]),
        ((0, 2), [[0], [1, 2], [3]]),
        ((12, 2), [[0], [1, 2], [3]]),
    ],
)
def test_parts_are_within_the_limits_and_in_order(limits, expected):
    samples = [sample(0, 1, 3), sample(1, 2, 4), sample(2, 0, 2), sample(3, 4, 1)]
    assert [
        [each.index for each in part] for part in split_into_microbatches(samples, MicrobatchLimits(*limits))
    ] == expected


def test_the_part_with_the_first_sample_is_last_and_pictures_keep_the_canvas_of_the_batch():
    samples = [
        sample(0, 1, 3),
        sample(1, 1, 3, size=(4, 1)),
        sample(2, 0, 3, size=None),
        sample(3, 0, 3, size=None),
    ]
    parts = collate_microbatches(samples, Batch, MicrobatchLimits(num_tokens=5))
    assert [part.record_ids for part in parts] == [("r3",), ("r2",), ("r1",), ("r0",)]
    assert [part.images is None for part in parts] == [True, True, False, False]
    assert parts[2].images.shape == parts[3].images.shape == (1, 3, 4, 3)
    assert parts[2].images[0, 0].tolist() == [[1, 0, 0]] * 4


def test_a_batch_of_texts_has_parts_too():
    texts = [sample(i, 0, 3, size=None) for i in range(3)]
    assert [
        part.num_samples for part in collate_microbatches(texts, Batch, MicrobatchLimits(num_tokens=8))
    ] == [
        1,
        2,
    ]


def test_a_sample_above_a_limit_is_named_once(caplog):
    collator = MicrobatchCollator(Batch, MicrobatchLimits(num_regions=2))
    assert [part.num_samples for part in collator([sample(0, 2, 3), sample(1, 3, 3)])] == [1, 1]
    assert len(collator([sample(2, 3, 3)])) == 1
    (record,) = caplog.records
    assert record.getMessage().startswith("record r1: 7 tokens, 3 regions, above")


def test_without_limits_a_batch_stays_one():
    assert isinstance(MicrobatchCollator(Batch)([sample(0, 2, 3)]), Batch)
    assert isinstance(MicrobatchCollator(Batch, MicrobatchLimits(1))([sample(0, 2, 3)]), tuple)
    error = DataError("gone")
    assert MicrobatchCollator(Batch)(error) is error
