"""Batches in parts, none of them above a limit: memory depends on the limit, not on the luck of a draw."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from common.batch import Batch, Sample
from common.data.collate import collate
from common.errors import UserError

logger = logging.getLogger(__name__)

BatchT = TypeVar("BatchT", bound=Batch)


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

    def hold(self, size: Size) -> bool:
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
        if parts and limits.hold(together):
            parts[-1].append(sample)
            total = together
        else:
            parts.append([sample])
            total = size
    return parts


def share_canvas(samples: Sequence[Sample]) -> list[Sample]:
    """Gives all pictures the canvas that holds each, as what surrounds a picture reaches its features."""
    canvases = [sample.canvas for sample in samples if sample.image is not None]
    if not canvases:
        return list(samples)
    height, width = (max(sides) for sides in zip(*canvases, strict=True))
    return [
        sample if sample.image is None else dataclasses.replace(sample, canvas=(height, width))
        for sample in samples
    ]


def collate_parts(samples: Sequence[Sample], batch_type: type[BatchT], limits: Limits) -> tuple[BatchT, ...]:
    """Joins samples to a batch in as many parts as the limits ask for; together they compute what the whole would.

    The part with the first sample comes last. It always has a picture, and several processes wait in the last
    part for the gradient of every parameter.
    """
    parts = split(share_canvas(samples), limits)
    return tuple(collate(part, batch_type) for part in reversed(parts))


class PartsCollator(Generic[BatchT]):
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
        return collate_parts(samples, self._batch_type, self._limits)

    def _warn(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            size = Size.of(sample)
            if not self._limits.hold(size):
                self._warned = True
                logger.warning(
                    "record %s: %d tokens and regions in its sequences, %d boxes, above TRAIN.MAX_TOKENS %d or "
                    "TRAIN.MAX_REGIONS %d: it goes through the model alone (further records are not named)",
                    sample.record_id,
                    *size,
                    *self._limits,
                )
                return
