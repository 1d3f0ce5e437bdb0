"""Attention maps of one picture and one text, on disk and in memory (train_eval spec 8.1).

Letters: L layers, A heads, T text tokens, n regions, S = T + n + 1 places: text, regions, [END].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path, PurePath
from typing import Any, NamedTuple

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


class SequenceTokens(BaseModel):
    """What stands at the places of a map: `{image_id}.json` beside `{image_id}.npy`.

    Attributes:
        image_id: name of both files.
        image: path of the picture; empty where it has none.
        size: width and height of the picture, in pixels.
        tokens: (T) text tokens as the model reads them, [CLS] and [SEP] included.
        boxes: (n) x1, y1, x2, y2 in pixels of the picture.
        labels: (n) what to call each region: `image` for the whole picture, else its number and class.
        upright: whether the model saw the picture turned as its EXIF data say; else as it is stored.
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
        """(S) a name for every place."""
        return (*self.tokens, *self.labels, "[END]")


@dataclass(frozen=True)
class AttentionMaps:
    """What every place looks at.

    Attributes:
        places: what stands where.
        maps: (L, A, S, S) float32; `maps[l, h, i, j]` is how much place i takes from place j, rows sum to 1.
    """

    places: SequenceTokens
    maps: NDArray[np.float32]

    def save(self, folder: Path) -> Path:
        """Writes `{image_id}.json` and `{image_id}.npy`, which is returned and appears last.

        Args:
            folder: of the files; made where it is missing.

        Raises:
            DataError: they cannot be written.
        """
        path = folder / f"{self.places.image_id}.npy"
        text = self.places.model_dump_json()
        beside = folder / f"{self.places.image_id}.json"
        with writing(beside):
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(beside, lambda file: file.write_text(text, encoding="utf-8"))
        with writing(path):
            replace_file(path, lambda file: save_array(file, self.maps))
        return path

    @classmethod
    def load(cls, path: Path) -> AttentionMaps:
        """Reads `{image_id}.npy` and the json beside it.

        Raises:
            DataError: a file is missing or damaged, or they do not belong together.
        """
        beside = path.with_suffix(".json")
        try:
            places = SequenceTokens.model_validate_json(beside.read_bytes())
            maps = _load(path)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise DataError(f"{beside}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        side = len(places.names)
        if maps.ndim != 4 or maps.shape[2:] != (side, side):
            raise DataError(
                f"{path}: has the shape {maps.shape}; expected (layers, heads, {side}, {side}), as {beside} "
                "names the places"
            )
        return cls(places, maps.astype(np.float32, copy=False))


class SequenceSource(NamedTuple):
    """What a picture and its regions are called.

    Attributes:
        image_id: name of its files.
        image: path of the picture, if any.
        numbers: of the regions; there may be more.
        kinds: class of each region, as far as they are known; of unknown ones an empty text.
        boxes: x1, y1, x2, y2 of each region in pixels of the picture, the whole picture included; None for those of
            the batch, taken back from the resized picture.
    """

    image_id: str
    image: str
    numbers: Iterable[int]
    kinds: Sequence[str]
    boxes: Sequence[Sequence[float]] | None = None


def describe_sequences(
    batch: Batch,
    encoded: Encoded,
    named: Sequence[SequenceSource],
    tokenizer: Tokenizer,
    *,
    whole: bool,
    upright: bool = False,
) -> list[SequenceTokens]:
    """Tells what stands at the places of every text sequence of a batch.

    Args:
        batch: the batch.
        encoded: what the network made of it.
        named: its pictures.
        tokenizer: BERT's.
        whole: whether the first box of each picture is the whole image.
        upright: see `SequenceTokens`.
    """
    corners = (batch.boxes / batch.im_info[batch.num_boxes.rows(), 2:4].repeat(1, 2)).cpu()
    sizes = (batch.im_info[:, :2] / batch.im_info[:, 2:4]).round().long().tolist()
    pictures = list(zip(named, sizes, batch.num_boxes.split(corners), strict=True))
    texts = zip(
        batch.text.per_image.rows().tolist(),
        batch.text.lengths.split(batch.text.ids.cpu()),
        encoded.num_regions,
        strict=True,
    )
    found = []
    for row, ids, count in texts:
        (image_id, image, numbers, kinds, given), size, placed = pictures[row]
        boxes = placed.tolist() if given is None else given
        regions = zip(numbers, chain(kinds, repeat("")), range(len(boxes) - whole), strict=False)
        labels = ["image"] * whole + [f"{number} {kind}".strip() for number, kind, _ in regions]
        found.append(
            SequenceTokens(
                image_id=image_id,
                image=image,
                size=tuple(size),
                tokens=tuple(tokenizer.tokens(ids.tolist())),
                boxes=tuple(map(tuple, boxes[:count])),
                labels=tuple(labels[:count]),
                upright=upright,
            )
        )
    return found


def attention_of(encoded: Encoded, row: int) -> Tensor:
    """Returns (L, A, S, S) float32 on the CPU: the maps of one sequence, encoded with `kernel="explicit"`."""
    size = encoded.packing.lengths.sizes[row]
    return torch.stack([layer[row, :, :size, :size].float().cpu() for layer in encoded.output.attention])


def image_ids(record_ids: Sequence[str]) -> list[str]:
    """Returns names for files: the number of a COCO picture, or the name of a file without its ending.

    A picture with several captions has a file for each: `name`, `name-2`, ... No name stands twice.
    """
    names: dict[str, None] = {}
    last: Counter[str] = Counter()
    for record_id in record_ids:
        name = stem = PurePath(record_id).stem
        while name in names:
            last[stem] = max(last[stem], 1) + 1
            name = f"{stem}-{last[stem]}"
        names[name] = None
    return list(names)


def _load(path: Path) -> NDArray[np.floating[Any]]:
    with path.open("rb") as file:
        try:
            maps = np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # a damaged head raises many kinds
            raise DataError(f"{path}: not an array of attention maps ({error})") from error
    if not np.issubdtype(maps.dtype, np.floating):
        raise DataError(
            f"{path}: not an array of attention maps (it holds {maps.dtype}, no floating-point numbers)"
        )
    return maps
