"""Collates samples to batches and microbatches."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.batch import Batch, Lengths, Ragged, Sample, Text
from common.errors import UserError

logger = logging.getLogger(__name__)

BatchT = TypeVar("BatchT", bound=Batch)


def collate(samples: Sequence[Sample], batch_type: type[BatchT]) -> BatchT:
    """Collates samples to a batch.

    The fields of `batch_type` declare how they are collated (`ragged`, `stacked`, ...). A field is None in the batch
    if it is None in all samples.

    Args:
        samples: at least one; samples without an image come last.
        batch_type: batch class of the dataset.
    """
    num_boxes = Lengths.of([len(sample.boxes) for sample in samples])
    text = _join_texts(samples)
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(batch_type):
        if "collate" in item.metadata:
            values = [getattr(sample, item.name) for sample in samples]
            absent = [value is None for value in values]
            assert all(absent) or not any(absent), f"{item.name} is set in only some of the samples"
            rows = {"boxes": num_boxes, "text": text.lengths}.get(item.metadata.get("into", ""))
            fields[item.name] = None if any(absent) else _join(item.metadata["collate"], values, rows)
    return batch_type(
        record_ids=tuple(sample.record_id for sample in samples),
        index=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        images=_join_images(samples),
        num_boxes=num_boxes,
        text=text,
        **fields,
    )


def _join(kind: str, values: Sequence[Tensor], rows: Lengths | None) -> Tensor | Ragged:
    if kind == "stacked":
        return torch.stack(tuple(values))
    joined = torch.cat(tuple(values))
    if kind == "ragged":
        return joined
    lengths = Lengths.of([len(value) for value in values])
    if rows is not None:
        assert len(rows) == len(lengths), "one row per sample"
        joined = joined + rows.starts[lengths.rows()]
    return Ragged(lengths, joined)


def _join_images(samples: Sequence[Sample]) -> Tensor | None:
    """Pads images with zeros on the right and bottom to the largest `padded_size`."""
    images = [sample.image for sample in samples if sample.image is not None]
    if not images:
        return None
    with_image = samples[: len(images)]
    assert all(sample.image is not None for sample in with_image), "samples without an image come last"
    height, width = (max(sides) for sides in zip(*(sample.padded_size for sample in with_image), strict=True))
    padded = images[0].new_zeros(len(images), 3, height, width)
    for target, image in zip(padded, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    return padded


def _join_texts(samples: Sequence[Sample]) -> Text:
    texts = [text for sample in samples for text in sample.texts]
    ids, types, tags = (
        torch.from_numpy(np.concatenate([getattr(text, name) for text in texts], dtype=np.int64))
        for name in ("ids", "types", "tags")
    )
    return Text(
        per_image=Lengths.of([len(sample.texts) for sample in samples]),
        lengths=Lengths.of([len(text) for text in texts]),
        ids=ids,
        types=types,
        tags=tags,
    )


class MicrobatchSize(NamedTuple):
    """Size of a microbatch.

    Attributes:
        num_tokens: positions of all sequences; each has the text, all regions and [END].
        num_regions: boxes of all images.
    """

    num_tokens: int
    num_regions: int

    @classmethod
    def of(cls, sample: Sample) -> MicrobatchSize:
        num_boxes = len(sample.boxes)
        return cls(sum(len(text) + num_boxes + 1 for text in sample.texts), num_boxes)

    def plus(self, other: MicrobatchSize) -> MicrobatchSize:
        return MicrobatchSize(self.num_tokens + other.num_tokens, self.num_regions + other.num_regions)


class MicrobatchLimits(NamedTuple):
    """Maximum size of a microbatch; 0 is no limit.

    Attributes:
        num_tokens: `TRAIN.MAX_TOKENS`.
        num_regions: `TRAIN.MAX_REGIONS`.
    """

    num_tokens: int = 0
    num_regions: int = 0

    def fits(self, size: MicrobatchSize) -> bool:
        return all(value <= limit or not limit for value, limit in zip(size, self, strict=True))


NO_LIMITS = MicrobatchLimits()


def split_into_microbatches(samples: Sequence[Sample], limits: MicrobatchLimits) -> list[list[Sample]]:
    """Splits samples into microbatches, in order. A sample above a limit becomes a microbatch of its own."""
    microbatches: list[list[Sample]] = []
    total = MicrobatchSize(0, 0)
    for sample in samples:
        size = MicrobatchSize.of(sample)
        if microbatches and limits.fits(total.plus(size)):
            microbatches[-1].append(sample)
            total = total.plus(size)
        else:
            microbatches.append([sample])
            total = size
    return microbatches


def pad_to_common_size(samples: Sequence[Sample]) -> list[Sample]:
    """Pads all images to the same size, because padding reaches the features of an image through convolutions."""
    padded_sizes = [sample.padded_size for sample in samples if sample.image is not None]
    if not padded_sizes:
        return list(samples)
    height, width = (max(sides) for sides in zip(*padded_sizes, strict=True))
    return [
        sample if sample.image is None else dataclasses.replace(sample, padded_size=(height, width))
        for sample in samples
    ]


def collate_microbatches(
    samples: Sequence[Sample], batch_type: type[BatchT], limits: MicrobatchLimits
) -> tuple[BatchT, ...]:
    """Collates samples to one or more microbatches within the limits.

    Accumulating their gradients gives the gradient of the whole batch. The microbatch with the first sample comes last:
    it always has an image, and in the last backward pass of a step DDP waits for the gradient of every parameter.
    """
    microbatches = split_into_microbatches(pad_to_common_size(samples), limits)
    return tuple(collate(microbatch, batch_type) for microbatch in reversed(microbatches))


class MicrobatchCollator(Generic[BatchT]):
    """`collate_fn` of a data loader. Returns a batch without limits, otherwise a tuple of microbatches.

    Args:
        batch_type: class of the batches.
        limits: maximum size of a microbatch. Each worker warns about the first sample above it.
    """

    def __init__(self, batch_type: type[BatchT], limits: MicrobatchLimits = NO_LIMITS) -> None:
        self._batch_type = batch_type
        self._limits = limits
        self._warned = False

    def __call__(self, samples: Sequence[Sample] | UserError) -> BatchT | tuple[BatchT, ...] | UserError:
        if isinstance(samples, UserError):
            return samples
        if self._limits == NO_LIMITS:
            return collate(samples, self._batch_type)
        for sample in () if self._warned else samples:
            size = MicrobatchSize.of(sample)
            if not self._limits.fits(size):
                logger.warning(
                    "record %s: %d tokens, %d regions, above TRAIN.MAX_TOKENS %d or TRAIN.MAX_REGIONS %d: it becomes a "
                    "microbatch of its own (further records are not reported)",
                    sample.record_id,
                    *size,
                    *self._limits,
                )
                self._warned = True
                break
        return collate_microbatches(samples, self._batch_type, self._limits)
