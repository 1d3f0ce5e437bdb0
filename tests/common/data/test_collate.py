from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from common.batch import Batch, Ragged, Sample, TextSequence, counted, index_into, ragged, stacked
from common.data.collate import (
    MicrobatchCollator,
    MicrobatchLimits,
    MicrobatchSize,
    collate,
    collate_microbatches,
    split_into_microbatches,
)
from common.errors import DataError


@dataclass(frozen=True, kw_only=True)
class LabeledSample(Sample):
    label: Tensor | None = None
    scores: Tensor | None = None
    areas: Tensor | None = None
    box_index: Tensor | None = None
    token_index: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LabeledBatch(Batch):
    label: Tensor | None = stacked()
    scores: Tensor | None = ragged()


@dataclass(frozen=True, kw_only=True)
class IndexedBatch(Batch):
    areas: Ragged | None = counted()
    box_index: Ragged = index_into("boxes")
    token_index: Ragged = index_into("text")


def sample(index, boxes, *texts, size=(2, 3), padded_size=None, **fields):
    """Texts are lists of ids, or numbers of tokens."""
    ids = [np.arange(text) if isinstance(text, int) else np.array(text, np.int64) for text in texts]
    return LabeledSample(
        index=index,
        record_id=f"r{index}",
        image=torch.full((3, *size), index, dtype=torch.uint8) if size else None,
        padded_size=padded_size or size or (0, 0),
        im_info=torch.tensor([*(size or (0, 0))[::-1], 1.0, 1.0]),
        boxes=torch.full((boxes, 4), float(index)),
        texts=tuple(TextSequence(row, np.ones_like(row), np.arange(len(row))) for row in ids),
        **{name: torch.tensor(value) for name, value in fields.items()},
    )


def test_collate_concatenates_rows():
    first = sample(5, 2, [1, 2, 3], [4], label=7, scores=[1.0, 1.0])
    second = sample(6, 1, [8, 9], [], size=(4, 1), label=8, scores=[0.0])
    batch = collate([first, second], LabeledBatch)
    assert isinstance(batch, LabeledBatch)
    assert (batch.record_ids, batch.num_samples) == (("r5", "r6"), 2)
    assert batch.index.tolist() == [5, 6]
    assert batch.num_boxes.sizes == (2, 1)
    assert batch.boxes[:, 0].tolist() == [5, 5, 6]
    assert batch.im_info.tolist() == [[3, 2, 1, 1], [1, 4, 1, 1]]
    assert batch.text.per_image.sizes == (2, 2)
    assert batch.text.lengths.sizes == (3, 1, 2, 0)
    assert batch.text.ids.tolist() == [1, 2, 3, 4, 8, 9]
    assert batch.text.types.tolist() == [1] * 6
    assert batch.text.tags.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.text.ids.dtype == torch.int64
    assert (batch.label.tolist(), batch.scores.tolist()) == ([7, 8], [1, 1, 0])


def test_collate_pads_images_to_the_largest_padded_size():
    samples = [sample(5, 1, 1, padded_size=(2, 4)), sample(6, 1, 1, size=(4, 1), padded_size=(4, 2))]
    images = collate(samples, Batch).images
    assert (images.dtype, images.shape) == (torch.uint8, (2, 3, 4, 4))
    assert images[0, 1].tolist() == [[5, 5, 5, 0], [5, 5, 5, 0], [0] * 4, [0] * 4]
    assert images[1, 2].tolist() == [[6, 0, 0, 0]] * 4


def test_collate_sets_fields_to_none_that_no_sample_has():
    batch = collate([sample(1, 1, 1, size=None), sample(2, 0, 1, size=None)], LabeledBatch)
    assert (batch.images, batch.label, batch.box_masks) == (None, None, None)
    assert batch.num_boxes.sizes == (1, 0)
    with pytest.raises(AssertionError, match="label is set in only some of the samples"):
        collate([sample(1, 1, 1, label=1), sample(2, 1, 1)], LabeledBatch)


def test_collate_converts_indices_within_samples_to_indices_within_the_batch():
    none = np.zeros(0, np.int64)
    batch = collate(
        [
            sample(1, 3, 4, box_index=[1, 2], token_index=[0, 3], areas=[[1, 2]]),
            sample(2, 2, 5, box_index=[0], token_index=none, areas=none.reshape(0, 2)),
            sample(3, 0, 2, size=None, box_index=none, token_index=[1], areas=[[3, 4], [5, 6]]),
        ],
        IndexedBatch,
    )
    assert (batch.box_index.values.tolist(), batch.box_index.lengths.sizes) == ([1, 2, 3], (2, 1, 0))
    assert (batch.token_index.values.tolist(), batch.token_index.lengths.sizes) == ([0, 3, 10], (2, 0, 1))
    assert (batch.areas.lengths.sizes, batch.areas.values.shape[0]) == ((1, 0, 2), 3)
    assert batch.to("cpu").areas.values.tolist() == batch.areas.values.tolist()


def test_collate_requires_samples_without_image_last():
    with_image, text_only = sample(5, 1, 1), sample(6, 0, 1, size=None)
    batch = collate([with_image, text_only], Batch)
    assert (batch.images.shape, batch.num_boxes.sizes) == ((1, 3, 2, 3), (1, 0))
    with pytest.raises(AssertionError, match="samples without an image come last"):
        collate([text_only, with_image], Batch)


def test_microbatch_size_counts_text_regions_and_end_of_every_sequence():
    assert MicrobatchSize.of(sample(0, 3, 5, 2)) == (5 + 3 + 1 + 2 + 3 + 1, 3)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((0, 0), [[0, 1, 2, 3]]),
        ((100, 0), [[0, 1, 2, 3]]),
        # Tokens: 5, 7, 3, 6.
        ((12, 0), [[0, 1], [2, 3]]),
        ((11, 0), [[0], [1, 2], [3]]),
        ((1, 0), [[0], [1], [2], [3]]),
        ((6, 0), [[0], [1], [2], [3]]),
        # Regions: 1, 2, 0, 4.
        ((0, 3), [[0, 1, 2], [3]]),
        ((0, 2), [[0], [1, 2], [3]]),
        ((12, 2), [[0], [1, 2], [3]]),
    ],
)
def test_split_into_microbatches_keeps_limits_and_order(limits, expected):
    samples = [sample(0, 1, 3), sample(1, 2, 4), sample(2, 0, 2), sample(3, 4, 1)]
    microbatches = split_into_microbatches(samples, MicrobatchLimits(*limits))
    assert [[each.index for each in microbatch] for microbatch in microbatches] == expected


def test_collate_microbatches_puts_the_first_sample_last_and_pads_to_a_common_size():
    texts = [sample(index, 0, 3, size=None) for index in (2, 3)]
    samples = [sample(0, 1, 3), sample(1, 1, 3, size=(4, 1)), *texts]
    microbatches = collate_microbatches(samples, Batch, MicrobatchLimits(num_tokens=5))
    assert [batch.record_ids for batch in microbatches] == [("r3",), ("r2",), ("r1",), ("r0",)]
    assert [batch.images is None for batch in microbatches] == [True, True, False, False]
    assert microbatches[2].images.shape == microbatches[3].images.shape == (1, 3, 4, 3)
    assert microbatches[2].images[0, 0].tolist() == [[1, 0, 0]] * 4
    (alone,) = collate_microbatches(texts, Batch, MicrobatchLimits(num_tokens=8))
    assert alone.num_samples == 2


def test_microbatch_collator_warns_once_about_a_sample_above_a_limit(caplog):
    collator = MicrobatchCollator(Batch, MicrobatchLimits(num_regions=2))
    assert [batch.num_samples for batch in collator([sample(0, 2, 3), sample(1, 3, 3)])] == [1, 1]
    assert len(collator([sample(2, 3, 3)])) == 1
    (record,) = caplog.records
    assert record.getMessage().startswith("record r1: 7 tokens, 3 regions, above")


def test_microbatch_collator_returns_one_batch_without_limits():
    assert isinstance(MicrobatchCollator(Batch)([sample(0, 2, 3)]), Batch)
    assert isinstance(MicrobatchCollator(Batch, MicrobatchLimits(1))([sample(0, 2, 3)]), tuple)
    error = DataError("gone")
    assert MicrobatchCollator(Batch)(error) is error
