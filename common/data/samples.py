"""Assembles a `Sample` from an image, its boxes and its texts; shared by all datasets and by prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor

from common.batch import Sample, TextSequence
from common.data.images import PreparedImage, resize_boxes

SampleT = TypeVar("SampleT", bound=Sample)


def build_sample(
    sample_type: type[SampleT],
    index: int,
    record_id: str,
    image: PreparedImage,
    boxes: Tensor,
    texts: Sequence[TextSequence],
    *,
    flipped: bool = False,
    padded_size: tuple[int, int] | None = None,
    **fields: Any,
) -> SampleT:
    """Builds a sample of any task.

    Args:
        sample_type: `Sample`, or the subclass of a task.
        index: index of the item in its dataset.
        record_id: id by which users know the record.
        image: the image, flipped if `flipped`.
        boxes: (n, 4) x1, y1, x2, y2 in original pixels, not flipped.
        texts: text sequences; several for VCR.
        flipped: whether the image is flipped horizontally.
        padded_size: height and width to pad the image to; the size of the image by default.
        fields: further fields of the sample.
    """
    return sample_type(
        index=index,
        record_id=record_id,
        image=image.pixels,
        padded_size=padded_size or image.size[::-1],
        im_info=image.im_info,
        boxes=resize_boxes(boxes, image.im_info, flipped=flipped),
        texts=tuple(texts),
        **fields,
    )
