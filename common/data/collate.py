"""Joins samples to a batch, as the fields of the batch class declare it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from common.batch import Batch, Lengths, Ragged, Sample, Text, TextSequence

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
    """Copies each picture once, into the top left corner of the smallest canvas that holds all."""
    pictures = [sample.image for sample in samples if sample.image is not None]
    if not pictures:
        return None
    assert all(sample.image is not None for sample in samples[: len(pictures)]), "texts alone come last"
    canvases = [sample.canvas for sample in samples[: len(pictures)]]
    height, width = (max(sides) for sides in zip(*canvases, strict=True))
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
