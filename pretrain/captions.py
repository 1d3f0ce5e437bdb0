"""Pictures with captions: Conceptual Captions with the regions of a detector, COCO with annotated ones.

Data spec 1.6, 1.7, 4.4, 4.5.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, BeforeValidator, ConfigDict
from torch import Tensor

from common.batch import TextSequence
from common.config.fields import Split
from common.data.coco import CLASS_NAMES, CocoIndex, first_captions
from common.data.images import PreparedImage, read_image, resize_boxes
from common.data.masking import mask_regions, subtract_masked_regions, truncated_lengths
from common.data.regions.reader import (
    RegionFiles,
    parent_location,
    prepend_image_box,
    unpacked_path,
    unpacked_region_path,
)
from common.data.regions.types import Regions
from common.data.samplers import ItemKey
from common.data.storage.jsonl import JsonLines
from common.data.storage.store import Store
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError, DataError, did_you_mean
from pretrain.config import PretrainConfig, PretrainDatasetConfig
from pretrain.dataset import PretrainDataset, PretrainSample, int64

SPLITS = ["train", "val"]
COCO_YEAR = 2017
OWN_CAPTIONS = 0.5
"""Share of pictures that keep their caption where `NETWORK.WITH_REL_LOSS` is on."""


class Captioned(NamedTuple):
    """A picture and its caption.

    Attributes:
        name: the id by which users know the record.
        image: path of the picture.
        caption: what is said of it.
        regions: path of its region file; empty where regions are annotated.
    """

    name: str
    image: str
    caption: str
    regions: str = ""


class PictureDataset(PretrainDataset):
    """Pictures with captions. Subclasses say what is where.

    Args:
        config: the experiment.
        data: the entry of `DATASET` that describes it, the first.
        split: train or val.
        tokenizer: BERT's.

    Raises:
        ConfigError: there is no such split.
        DataError: a file is missing, or a record of it is wrong.
    """

    def __init__(
        self, config: PretrainConfig, data: PretrainDatasetConfig, split: Split, tokenizer: Tokenizer
    ) -> None:
        super().__init__(config, data, split, tokenizer)
        self._image_set = data.image_set(split)
        if self._image_set not in SPLITS:
            key = f"{config.dataset_keys[0]}.{split.upper()}_IMAGE_SET"
            hint = did_you_mean(self._image_set, SPLITS)
            raise ConfigError(f'{key}: "{self._image_set}": no such split{hint}; use {" or ".join(SPLITS)}')
        self._scales = config.SCALES
        self._flip_prob = config.loop(split).FLIP_PROB
        self._store = Store(cache=self._cache)

    @abstractmethod
    def captioned(self, index: int) -> Captioned:
        """Reads a record."""

    @abstractmethod
    def regions(self, record: Captioned) -> Regions:
        """Reads the regions of a picture with their class scores, the most important one first."""

    def described(self, index: int) -> tuple[str, Sequence[str]]:
        """Returns the path of a picture."""
        return self.captioned(index).image, ()

    def load(self, index: int, rng: random.Random) -> PretrainSample:
        """Reads one picture.

        Draws `random()` for a flip and for the caption, `randrange(len(self))` until it is another caption where
        one is wanted, then as `mask_words` and `mask_regions` do.
        """
        record = self.captioned(index)
        flipped = rng.random() < self._flip_prob
        other = self._draw_caption(index, rng)
        text = self.masked(self._words(record if other == index else self.captioned(other)), rng)
        found = self.regions(record)
        hidden, labelled = self._mask(record, found, rng)
        picture = self._picture(record, found, flipped)
        boxes, features = self._with_whole(found, picture, hidden)
        boxes = resize_boxes(boxes, picture.im_info, flipped=flipped)
        # The whole image is neither hidden nor classified.
        whole = torch.zeros(len(boxes) - len(hidden), dtype=torch.bool)
        hidden, labelled = torch.cat([whole, hidden]), torch.cat([whole, labelled])
        length, count = truncated_lengths(len(text.ids) + 2, len(boxes), self._data.SEQ_LEN)
        text = text.first(length - 2)
        masked_region_index = labelled[:count].nonzero()[:, 0]
        return PretrainSample(
            index=index,
            record_id=record.name,
            image=picture.pixels,
            padded_size=picture.size[::-1],
            im_info=picture.im_info,
            boxes=boxes[:count],
            texts=(TextSequence.plain([self._tokenizer.cls_id, *text.ids, self._tokenizer.sep_id]),),
            box_features=None if features is None else features[:count],
            relationship=int64([other == index]),
            masked_token_index=int64(text.places) + 1,
            word_labels=int64(text.labels),
            masked_region_index=masked_region_index,
            region_labels=self._labels(found, masked_region_index - len(whole)),
            hidden=hidden[:count],
            masked_pixel_boxes=boxes[hidden].long() if self.masks_pixels else None,
        )

    def _draw_caption(self, index: int, rng: random.Random) -> int:
        """Returns whose caption the picture gets: in half of the cases another's, if these are to be told apart."""
        other = index
        if rng.random() >= OWN_CAPTIONS and self._network.WITH_REL_LOSS:
            while other == index:
                other = rng.randrange(len(self))
        return other

    def _words(self, record: Captioned) -> list[str]:
        words = self._tokenizer.basic(record.caption)
        if not words:
            raise DataError(f"the caption of {record.name} has no word")
        return words

    def _mask(self, record: Captioned, found: Regions, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Returns which of n regions the model must not see, and which it must classify, both (n,) bool."""
        count = len(found.boxes)
        if not self._network.WITH_MVRC_LOSS:
            return torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        assert found.class_scores is not None
        if count and found.class_scores.shape[1] != self.num_classes:
            raise DataError(
                f"{record.regions or record.image}: its regions have {found.class_scores.shape[1]} class scores; "
                f"NETWORK.VLBERT.visual_region_classes is {self.num_classes}"
            )
        hidden, labelled = mask_regions(count, rng)
        return torch.tensor(hidden, dtype=torch.bool), torch.tensor(labelled, dtype=torch.bool)

    def _picture(self, record: Captioned, found: Regions, flipped: bool) -> PreparedImage:
        """Reads the picture, or places it by the size that its regions refer to."""
        if not self.reads_pixels and found.image_size is None:
            raise DataError(f"{record.regions}: has no image_w and image_h")
        picture = read_image(
            self._store,
            record.image,
            self._scales,
            flipped=flipped,
            decode=self.reads_pixels,
            original=None if self.reads_pixels else found.image_size,
        )
        if found.image_size not in (None, picture.original):
            raise DataError(
                f"{record.image}: has {picture.original} pixels (width, height), but its regions are of a picture "
                f"of {found.image_size}; make them again, or leave such records out by DATASET.ON_BAD_DATA: skip"
            )
        return picture

    def _with_whole(
        self, found: Regions, picture: PreparedImage, hidden: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Returns boxes (n, 4) in original pixels, the whole image first, and their features (n, F) if any."""
        mean = found._replace(image_feature=None)
        boxes, features = prepend_image_box(mean, picture, add=self._data.ADD_IMAGE_AS_A_BOX)
        if features is not None and len(features) > len(hidden) and self._network.WITH_MVRC_LOSS:
            features[0] = subtract_masked_regions(features[0], features[1:], hidden)
        return boxes, features

    def _labels(self, found: Regions, chosen: Tensor) -> Tensor:
        """Returns the class scores (r, C) of the chosen regions."""
        if not len(chosen):
            return torch.zeros(0, self.num_classes)
        assert found.class_scores is not None
        return found.class_scores[chosen]


def _not_one_text(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("must be a list of words, not one text")
    return value


class CaptionRecord(BaseModel):
    """A line of `{split}_frcnn.json`; other fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    image: str
    caption: Annotated[list[str], BeforeValidator(_not_one_text)]
    frcnn: str


class CaptionDataset(PictureDataset):
    """Conceptual Captions (data spec 1.6, 4.4). Records and region files are read when asked for."""

    def __init__(
        self, config: PretrainConfig, data: PretrainDatasetConfig, split: Split, tokenizer: Tokenizer
    ) -> None:
        super().__init__(config, data, split, tokenizer)
        self._records = JsonLines(data.path(f"{self._image_set}_frcnn.json"), CaptionRecord, self._cache)
        self._region_files = RegionFiles(data.PACKED_REGIONS, cache=self._cache)
        if len(self) < 2 and self._network.WITH_REL_LOSS:
            raise DataError(f"{self._records.path}: has one caption; NETWORK.WITH_REL_LOSS needs another one")
        if self.on_bad_data == "raise":
            record = self.captioned(0)
            self._region_files.check(record.regions, class_scores=True)
            if self.reads_pixels:
                self._store.check(parent_location(record.image))
            self[ItemKey(0, 0)]  # what is wrong with every record shows now, not in the first validation

    def __len__(self) -> int:
        return len(self._records)

    def record_id(self, index: int) -> str:
        """Returns the picture as the record names it; the number of a record that cannot be read."""
        try:
            return self._records[index].image
        except DataError:
            return str(index)

    def captioned(self, index: int) -> Captioned:
        """Reads a line."""
        record = self._records[index]
        image, regions = record.image, record.frcnn
        if not self._data.ZIP_MODE:
            image, regions = unpacked_path(image), unpacked_region_path(regions)
        place = self._data.path
        return Captioned(record.image, place(image), " ".join(record.caption), place(regions))

    def regions(self, record: Captioned) -> Regions:
        """Reads a region file; the region comes first whose class, or background, is surest."""
        found = self._region_files.read(record.regions, features=not self.reads_pixels, class_scores=True)
        assert found.class_scores is not None
        order = found.class_scores.amax(dim=1).argsort(descending=True, stable=True)
        return found._replace(
            boxes=found.boxes[order],
            features=None if found.features is None else found.features[order],
            class_scores=found.class_scores[order],
        )


class CocoCaptionDataset(PictureDataset):
    """The first caption of every picture of COCO 2017 in which something is annotated (data spec 1.7, 4.5)."""

    def __init__(
        self, config: PretrainConfig, data: PretrainDatasetConfig, split: Split, tokenizer: Tokenizer
    ) -> None:
        super().__init__(config, data, split, tokenizer)
        name = f"{self._image_set}{COCO_YEAR}"
        self._images = data.path(f"{name}.zip@/{name}" if data.ZIP_MODE else name)
        self._store = Store([self._images], self._cache)
        instances, captions = (
            data.path(f"annotations/{kind}_{name}.json") for kind in ("instances", "captions")
        )
        self._coco = CocoIndex(instances)
        self._captions = first_captions(captions)
        self._ids = self._coco.annotated_images()
        if not len(self._ids):
            raise DataError(f"{instances}: has no annotation")
        for image_id in self._ids.tolist():
            if image_id not in self._captions:
                raise DataError(f"{captions}: has no caption of image {image_id} of {instances}")
            if not self._coco.file_name(image_id):
                raise DataError(f"{instances}: image {image_id} has no file_name")

    def __len__(self) -> int:
        return len(self._ids)

    def record_id(self, index: int) -> str:
        """Returns the number of the image."""
        return str(self._ids[index])

    def captioned(self, index: int) -> Captioned:
        """Looks up an image."""
        image_id = int(self._ids[index])
        path = f"{self._images}/{self._coco.file_name(image_id)}"
        return Captioned(str(image_id), path, self._captions[image_id])

    def described(self, index: int) -> tuple[str, Sequence[str]]:
        """Returns the path of a picture and the classes of its annotated objects."""
        classes = self._coco.classes(int(self._ids[index]))
        return self.captioned(index).image, [CLASS_NAMES[number] for number in classes]

    def regions(self, record: Captioned) -> Regions:
        """Looks up the annotated boxes, in the order of the file."""
        image_id = int(record.name)
        corners, sides = np.hsplit(self._coco.boxes(image_id), 2)
        return Regions(
            boxes=torch.from_numpy(np.hstack([corners, corners + (sides - 1).clip(min=0)])).float(),
            image_size=self._coco.size(image_id),
            class_scores=F.one_hot(torch.from_numpy(self._coco.classes(image_id)), len(CLASS_NAMES)).float(),
        )
