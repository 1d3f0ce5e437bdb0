"""Attention maps of one image and one text, in memory and on disk.

Shapes: L layers, A heads, T text tokens, n regions, S = T + n + 1 positions (text, regions, [END]).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from common.batch import Batch
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.files import replace_file, save_array, writing
from common.models.visual_linguistic_bert import Encoded

WHOLE_IMAGE = "image"
"""Label of the region that covers the whole image."""


class SequenceTokens(BaseModel):
    """The positions of an input sequence; stored as `{image_id}.json` beside `{image_id}.npy`.

    Attributes:
        image_id: stem of both file names.
        image: path of the image; empty if it has none.
        size: (width, height) of the image in pixels.
        tokens: (T) text tokens, including [CLS] and [SEP].
        boxes: (n) x1, y1, x2, y2 in pixels of the image.
        labels: (n) region labels: `image` for the whole image, else the region's number and class name.
        upright: True if the model saw the image rotated according to its EXIF orientation, False if as stored.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    image_id: str
    image: str
    size: tuple[int, int]
    tokens: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[str, ...]
    upright: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """(S) a name for every position."""
        return (*self.tokens, *self.labels, "[END]")


@dataclass(frozen=True)
class AttentionMaps:
    """Attention weights with the sequence that they belong to.

    Attributes:
        sequence: tokens and regions at the S positions.
        maps: (L, A, S, S) float32; `maps[l, h, i, j]` is the weight of position i on position j; rows sum to 1.
    """

    sequence: SequenceTokens
    maps: NDArray[np.float32]

    def save(self, folder: Path) -> Path:
        """Writes `{image_id}.json`, then `{image_id}.npy`, and returns the path of the latter.

        Args:
            folder: output folder, created if missing.

        Raises:
            DataError: the files cannot be written.
        """
        path = folder / f"{self.sequence.image_id}.npy"
        json_path = path.with_name(f"{self.sequence.image_id}.json")
        text = self.sequence.model_dump_json()
        with writing(json_path):
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(json_path, lambda file: file.write_text(text, encoding="utf-8"))
        with writing(path):
            replace_file(path, lambda file: save_array(file, self.maps))
        return path

    @classmethod
    def load(cls, path: Path) -> AttentionMaps:
        """Reads `{image_id}.npy` and the json file beside it.

        Raises:
            DataError: a file is missing or damaged, or the two do not match.
        """
        json_path = path.with_suffix(".json")
        try:
            sequence = SequenceTokens.model_validate_json(json_path.read_bytes())
            maps = _load_array(path)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise DataError(f"{json_path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        length = len(sequence.names)
        if maps.ndim != 4 or maps.shape[2:] != (length, length):
            raise DataError(
                f"{path}: has shape {maps.shape}; expected (layers, heads, {length}, {length}) for the positions in "
                f"{json_path}"
            )
        return cls(sequence, maps.astype(np.float32, copy=False))


def _load_array(path: Path) -> NDArray[np.floating[Any]]:
    with path.open("rb") as file:
        try:
            maps = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # a damaged header raises many exception types
            raise DataError(f"{path}: not an array of attention maps ({error})") from error
    if not np.issubdtype(maps.dtype, np.floating):
        raise DataError(
            f"{path}: not an array of attention maps (dtype {maps.dtype}, expected floating point)"
        )
    return maps


def region_labels(numbers: Iterable[int], class_names: Sequence[str], *, whole: bool) -> tuple[str, ...]:
    """Returns the labels of regions, see `SequenceTokens.labels`.

    Args:
        numbers: number of each region.
        class_names: class of each region, empty if unknown; may be shorter than `numbers`.
        whole: whether the whole image is the first region.
    """
    names = chain(class_names, repeat(""))
    labels = [f"{number} {name}".strip() for number, name in zip(numbers, names, strict=False)]
    return (WHOLE_IMAGE, *labels) if whole else tuple(labels)


def describe_sequences(
    batch: Batch, encoded: Encoded, images: Sequence[SequenceTokens], tokenizer: Tokenizer
) -> list[SequenceTokens]:
    """Returns the tokens and regions of every text sequence of a batch.

    Args:
        batch: B images, each with one or several texts.
        encoded: final states of the batch; the model may have kept only the first regions of an image.
        images: (B) descriptions of the images and their regions, without tokens.
        tokenizer: converts ids to tokens.
    """
    rows = zip(
        batch.text.per_image.rows().tolist(),
        batch.text.lengths.split(batch.text.ids.cpu()),
        encoded.num_regions,
        strict=True,
    )
    return [
        images[row].model_copy(
            update={
                "tokens": tuple(tokenizer.tokens(ids.tolist())),
                "boxes": images[row].boxes[:num_regions],
                "labels": images[row].labels[:num_regions],
            }
        )
        for row, ids, num_regions in rows
    ]


def attention_of(encoded: Encoded, row: int) -> Tensor:
    """Returns the (L, A, S, S) float32 maps of one sequence on the CPU; needs `kernel="explicit"` when encoding."""
    size = encoded.packing.lengths.sizes[row]
    return torch.stack([layer[row, :, :size, :size].float().cpu() for layer in encoded.output.attention])


def image_ids(record_ids: Sequence[str]) -> list[str]:
    """Returns a unique file stem for each record: `name`, `name-2`, ... for several texts of one image."""
    names: dict[str, None] = {}
    last: Counter[str] = Counter()
    for record_id in record_ids:
        name = stem = PurePath(record_id).stem
        while name in names:
            last[stem] = max(last[stem], 1) + 1
            name = f"{stem}-{last[stem]}"
        names[name] = None
    return list(names)
