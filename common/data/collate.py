"""Joins samples to a batch, as the fields of the batch class declare it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.batch import Batch, Lengths, Ragged, Sample, Text, TextSequence
from common.errors import UserError

logger = logging.getLogger(__name__)

BatchT = TypeVar("BatchT", bound=Batch)


def collate(samples: Sequence[Sample], batch_type: type[BatchT]) -> BatchT:
    """Joins samples to a batch.

    Every field of `batch_type` that declares how it is joined is read from the samples' attribute of the same name;
    it is None in the batch when it is None in all samples.

    Args:
        samples: at least one; those without a picture, if any, come last.
        batch_type: the batch class of their dataset.
    """
    num_boxes = Lengths.of([len(sample.boxes) for sample in samples])
    text = _join_texts(samples)
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(batch_type):
        if "collate" in item.metadata:
            values = [getattr(sample, item.name) for sample in samples]
            absent = [value is None for value in values]
            assert all(absent) or not any(absent), f"{item.name} is set in a part of the samples only"
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
    """Copies each picture once, into the top left corner of the smallest padded_size that holds all."""
    pictures = [sample.image for sample in samples if sample.image is not None]
    if not pictures:
        return None
    assert all(sample.image is not None for sample in samples[: len(pictures)]), "texts alone come last"
    padded_sizes = [sample.padded_size for sample in samples[: len(pictures)]]
    height, width = (max(sides) for sides in zip(*padded_sizes, strict=True))
    images = pictures[0].new_zeros(len(pictures), 3, height, width)
    for image, picture in zip(images, pictures, strict=True):
        image[:, : picture.shape[1], : picture.shape[2]] = picture
    return images


def _join_texts(samples: Sequence[Sample]) -> Text:
    texts = [text for sample in samples for text in sample.texts]
    return Text(
        per_image=Lengths.of([len(sample.texts) for sample in samples]),
        lengths=Lengths.of([len(text) for text in texts]),
        ids=_join_column(texts, "ids"),
        types=_join_column(texts, "types"),
        tags=_join_column(texts, "tags"),
    )


def _join_column(texts: Sequence[TextSequence], name: str) -> Tensor:
    return torch.from_numpy(np.concatenate([getattr(text, name) for text in texts], dtype=np.int64))


class Size(NamedTuple):
    """How much of a model's memory samples ask for.

    Attributes:
        places: of their sequences: the text, for each text all regions, and [END].
        boxes: of their pictures.
    """

    places: int
    boxes: int

    @classmethod
    def of(cls, sample: Sample) -> Size:
        """The size of one sample."""
        boxes = len(sample.boxes)
        return cls(sum(len(text) + boxes + 1 for text in sample.texts), boxes)

    def plus(self, other: Size) -> Size:
        """The size of both together."""
        return Size(self.places + other.places, self.boxes + other.boxes)


class Limits(NamedTuple):
    """What may go through a model at once; 0 sets no limit.

    Attributes:
        places: `TRAIN.MAX_TOKENS`.
        boxes: `TRAIN.MAX_REGIONS`.
    """

    places: int = 0
    boxes: int = 0

    def fits(self, size: Size) -> bool:
        """Tells whether so much may go through at once."""
        return all(value <= limit or not limit for value, limit in zip(size, self, strict=True))


NO_LIMITS = Limits()


def split(samples: Sequence[Sample], limits: Limits) -> list[list[Sample]]:
    """Cuts samples into parts within the limits, in their order; a sample above a limit is a part of its own."""
    parts: list[list[Sample]] = []
    total = Size(0, 0)
    for sample in samples:
        size = Size.of(sample)
        together = total.plus(size)
        if parts and limits.fits(together):
            parts[-1].append(sample)
            total = together
        else:
            parts.append([sample])
            total = size
    return parts


def pad_to_common_size(samples: Sequence[Sample]) -> list[Sample]:
    """Gives all pictures the padded_size that holds each, as what surrounds a picture reaches its features."""
    padded_sizes = [sample.padded_size for sample in samples if sample.image is not None]
    if not padded_sizes:
        return list(samples)
    height, width = (max(sides) for sides in zip(*padded_sizes, strict=True))
    return [
        sample if sample.image is None else dataclasses.replace(sample, padded_size=(height, width))
        for sample in samples
    ]


def collate_microbatches(
    samples: Sequence[Sample], batch_type: type[BatchT], limits: Limits
) -> tuple[BatchT, ...]:
    """Joins samples to a batch in as many parts as the limits ask for; together they compute what the whole would.

    The part with the first sample comes last. It always has a picture, and several processes wait in the last
    part for the gradient of every parameter.
    """
    parts = split(pad_to_common_size(samples), limits)
    return tuple(collate(part, batch_type) for part in reversed(parts))


class MicrobatchCollator(Generic[BatchT]):
    """What a loader's worker calls to join samples; one call without limits returns a batch, else its parts.

    Args:
        batch_type: class of the batches.
        limits: of a part. The first sample above them is a warning of each worker.
    """

    def __init__(self, batch_type: type[BatchT], limits: Limits = NO_LIMITS) -> None:
        self._batch_type = batch_type
        self._limits = limits
        self._warned = False

    def __call__(self, samples: Sequence[Sample] | UserError) -> BatchT | tuple[BatchT, ...] | UserError:
        """Joins what could be read; passes an error on."""
        if isinstance(samples, UserError):
            return samples
        if self._limits == NO_LIMITS:
            return collate(samples, self._batch_type)
        if not self._warned:
            self._warn(samples)
        return collate_microbatches(samples, self._batch_type, self._limits)

    def _warn(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            size = Size.of(sample)
            if not self._limits.fits(size):
                self._warned = True
                logger.warning(
                    "record %s: %d tokens and regions in its sequences, %d boxes, above TRAIN.MAX_TOKENS %d or "
                    "TRAIN.MAX_REGIONS %d: it goes through the model alone (further records are not named)",
                    sample.record_id,
                    *size,
                    *self._limits,
                )
                return
