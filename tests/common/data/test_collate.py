from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.batch import Batch, Sample, TextSequence, ragged, stacked
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


def sample(index, boxes, size, canvas, *texts, **fields):
    return LabelledSample(
        index=index,
        record_id=f"r{index}",
        image=torch.full((3, *size), index, dtype=torch.uint8) if size else None,
        canvas=canvas,
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
