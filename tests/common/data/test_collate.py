from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from common.batch import Batch, Ragged, Sample, TextSequence, counted, index_into, ragged, stacked
from common.data.collate import collate


@dataclass(frozen=True, kw_only=True)
class LabelledSample(Sample):
    label: Tensor | None = None
    scores: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledBatch(Batch):
    label: Tensor | None = stacked()
    scores: Tensor | None = ragged()


def sequence(*ids):
    return TextSequence(
        ids=np.array(ids, np.int64), types=np.ones(len(ids), np.int64), tags=np.arange(len(ids))
    )


def sample(index, boxes, size, padded_size, *texts, **fields):
    return LabelledSample(
        index=index,
        record_id=f"r{index}",
        image=torch.full((3, *size), index, dtype=torch.uint8) if size else None,
        padded_size=padded_size,
        im_info=torch.tensor([size[1] if size else 0, size[0] if size else 0, 1.0, 1.0]),
        boxes=torch.full((boxes, 4), float(index)),
        texts=texts,
        **fields,
    )


def test_rows_are_joined_end_to_end():
    first = sample(
        5, 2, (2, 3), (2, 4), sequence(1, 2, 3), sequence(4), label=torch.tensor(7), scores=torch.ones(2)
    )
    second = sample(
        6, 1, (4, 1), (4, 2), sequence(8, 9), sequence(), label=torch.tensor(8), scores=torch.zeros(1)
    )
    batch = collate([first, second], LabelledBatch)
    assert isinstance(batch, LabelledBatch)
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
    assert batch.label.tolist() == [7, 8]
    assert batch.scores.tolist() == [1, 1, 0]


def test_pictures_lie_in_the_corner_of_the_smallest_common_canvas():
    images = collate(
        [sample(5, 1, (2, 3), (2, 4), sequence(1)), sample(6, 1, (4, 1), (4, 2), sequence(1))], Batch
    ).images
    assert (images.dtype, images.shape) == (torch.uint8, (2, 3, 4, 4))
    assert images[0, 1].tolist() == [[5, 5, 5, 0], [5, 5, 5, 0], [0] * 4, [0] * 4]
    assert images[1, 2].tolist() == [[6, 0, 0, 0]] * 4


def test_what_no_sample_has_is_none():
    batch = collate(
        [sample(1, 1, None, (9, 9), sequence(1)), sample(2, 0, None, (9, 9), sequence(1))], LabelledBatch
    )
    assert batch.images is None
    assert batch.label is None
    assert batch.box_masks is None
    assert batch.num_boxes.sizes == (1, 0)


@dataclass(frozen=True, kw_only=True)
class MarkedSample(Sample):
    areas: Tensor | None = None
    box_places: Tensor
    masked_token_index: Tensor


@dataclass(frozen=True, kw_only=True)
class MarkedBatch(Batch):
    areas: Ragged | None = counted()
    box_places: Ragged = index_into("boxes")
    masked_token_index: Ragged = index_into("text")


def marked(index, boxes, words, size=(1, 1), **places):
    plain = sample(index, boxes, size, size or (1, 1), sequence(*range(words)))
    fields = {name: getattr(plain, name) for name in ("image", "padded_size", "im_info", "boxes", "texts")}
    places = {name: torch.tensor(value, dtype=torch.int64) for name, value in places.items()}
    return MarkedSample(index=index, record_id=str(index), **fields, **places)


def test_places_in_a_sample_become_places_in_the_batch():
    batch = collate(
        [
            marked(1, 3, 4, box_places=[1, 2], masked_token_index=[0, 3], areas=[[1, 2]]),
            marked(2, 2, 5, box_places=[0], masked_token_index=[], areas=[]),
            marked(3, 0, 2, None, box_places=[], masked_token_index=[1], areas=[[3, 4], [5, 6]]),
        ],
        MarkedBatch,
    )
    assert batch.box_places.values.tolist() == [1, 2, 3]
    assert (batch.box_places.lengths.sizes, batch.masked_token_index.lengths.sizes) == ((2, 1, 0), (2, 0, 1))
    assert batch.masked_token_index.values.tolist() == [0, 3, 10]
    assert (batch.areas.lengths.sizes, batch.areas.values.shape[0]) == ((1, 0, 2), 3)
    assert batch.to("cpu").areas.values.tolist() == batch.areas.values.tolist()


def test_texts_alone_stand_behind_the_pictures():
    batch = collate(
        [sample(5, 1, (2, 3), (2, 3), sequence(1)), sample(6, 0, None, (0, 0), sequence(2))], Batch
    )
    assert (batch.images.shape, batch.num_boxes.sizes) == ((1, 3, 2, 3), (1, 0))
    with pytest.raises(AssertionError, match="samples without an image come last"):
        collate([sample(6, 0, None, (0, 0), sequence(2)), sample(5, 1, (2, 3), (2, 3), sequence(1))], Batch)
