"""Images with captions: Conceptual Captions with detected regions, COCO with annotated ones."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, BeforeValidator, ConfigDict

from common.batch import TextSequence
from common.config.fields import Split
from common.data.coco import CLASS_NAMES, CocoIndex, first_captions
from common.data.images import read_image
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
from common.data.samples import build_sample
from common.data.storage.jsonl import JsonLines
from common.data.storage.store import Store
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError, DataError, did_you_mean
from pretrain.config import PretrainConfig, PretrainDatasetConfig
from pretrain.dataset import PretrainDataset, PretrainSample, int64

SPLITS = ["train", "val"]
COCO_YEAR = 2017
OWN_CAPTION_PROB = 0.5
"""Probability that an image keeps its caption if `NETWORK.WITH_REL_LOSS` is on."""


class CaptionExample(NamedTuple):
    """An image and its caption.

    Attributes:
        name: id by which users know the record.
        image: path of the image.
        caption: the caption.
        regions: path of the region file; empty if regions are annotated.
    """

    name: str
    image: str
    caption: str
    regions: str = ""


class CaptionedImages(PretrainDataset):
    """Images with captions. Subclasses read records and regions.

    Args:
        config: the experiment.
        data: the first entry of `DATASET`.
        split: train or val.
        tokenizer: BERT's tokenizer.

    Raises:
        ConfigError: the split is unknown.
        DataError: a file is missing, or a record is invalid.
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
    def example(self, index: int) -> CaptionExample:
        """Reads a record."""

    @abstractmethod
    def regions(self, example: CaptionExample) -> Regions:
        """Reads the regions of an image with their class scores, most important first."""

    def describe(self, index: int) -> tuple[str, Sequence[str]]:
        return self.example(index).image, ()

    def load(self, index: int, rng: random.Random) -> PretrainSample:
        """Reads one image.

        Draws `random()` for a flip and for the caption, `randrange(len(self))` until it is another caption if one is
        needed, then as `mask_words` and `mask_regions` do.
        """
        example = self.example(index)
        flipped = rng.random() < self._flip_prob
        # With the relationship loss, half of the images get the caption of another one.
        caption_index = index
        if rng.random() >= OWN_CAPTION_PROB and self._network.WITH_REL_LOSS:
            while caption_index == index:
                caption_index = rng.randrange(len(self))
        caption_source = example if caption_index == index else self.example(caption_index)
        words = self._tokenizer.basic(caption_source.caption)
        if not words:
            raise DataError(f"the caption of {caption_source.name} has no word")
        text = self.mask_text(words, rng)

        regions = self.regions(example)
        num_regions = len(regions.boxes)
        is_masked = is_labeled = [False] * num_regions
        if self._network.WITH_MVRC_LOSS:
            assert regions.class_scores is not None
            if num_regions and regions.class_scores.shape[1] != self.num_classes:
                raise DataError(
                    f"{example.regions or example.image}: regions have {regions.class_scores.shape[1]} class scores; "
                    f"NETWORK.VLBERT.visual_region_classes is {self.num_classes}"
                )
            is_masked, is_labeled = mask_regions(num_regions, rng)

        if not self.reads_pixels and regions.image_size is None:
            raise DataError(f"{example.regions}: has no image_w and image_h")
        image = read_image(
            self._store,
            example.image,
            self._scales,
            flipped=flipped,
            decode=self.reads_pixels,
            original=None if self.reads_pixels else regions.image_size,
        )
        if regions.image_size not in (None, image.original):
            raise DataError(
                f"{example.image}: has {image.original} pixels (width, height), but its regions are for an image of "
                f"{regions.image_size}; extract them again, or skip such records with DATASET.ON_BAD_DATA: skip"
            )

        # As in the reference, the whole-image feature is always the mean over the regions, minus the masked ones.
        boxes, features = prepend_image_box(
            regions._replace(image_feature=None), image, add=self._data.ADD_IMAGE_AS_A_BOX
        )
        num_image_boxes = len(boxes) - num_regions
        masked = torch.tensor([False] * num_image_boxes + is_masked, dtype=torch.bool)
        labeled = torch.tensor([False] * num_image_boxes + is_labeled, dtype=torch.bool)
        if features is not None and num_image_boxes and self._network.WITH_MVRC_LOSS:
            features[0] = subtract_masked_regions(features[0], features[1:], masked[1:])

        num_tokens, num_boxes = truncated_lengths(len(text.ids) + 2, len(boxes), self._data.SEQ_LEN)
        text = text.first(num_tokens - 2)
        label_index = labeled[:num_boxes].nonzero()[:, 0]
        region_labels = torch.zeros(0, self.num_classes)
        if len(label_index):
            assert regions.class_scores is not None
            region_labels = regions.class_scores[label_index - num_image_boxes]
        sample = build_sample(
            PretrainSample,
            index,
            example.name,
            image,
            boxes,
            [TextSequence.plain([self._tokenizer.cls_id, *text.ids, self._tokenizer.sep_id])],
            flipped=flipped,
            box_features=None if features is None else features[:num_boxes],
            relationship=int64([caption_index == index]),
            masked_token_index=int64(text.masked_positions) + 1,
            word_labels=int64(text.labels),
            masked_region_index=label_index,
            region_labels=region_labels,
            masked_regions=masked[:num_boxes],
        )
        # Pixels of all masked regions are blanked, even of those that truncation drops.
        blanked = sample.boxes[masked].long() if self.masks_pixels else None
        return replace(sample, boxes=sample.boxes[:num_boxes], masked_pixel_boxes=blanked)


def _reject_text(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("must be a list of words, not a text")
    return value


class CaptionRecord(BaseModel):
    """A line of `{split}_frcnn.json`. Other fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    image: str
    caption: Annotated[list[str], BeforeValidator(_reject_text)]
    frcnn: str


class CaptionDataset(CaptionedImages):
    """Conceptual Captions. Records and region files are read on access."""

    def __init__(
        self, config: PretrainConfig, data: PretrainDatasetConfig, split: Split, tokenizer: Tokenizer
    ) -> None:
        super().__init__(config, data, split, tokenizer)
        self._records = JsonLines(data.path(f"{self._image_set}_frcnn.json"), CaptionRecord, self._cache)
        self._region_files = RegionFiles(data.PACKED_REGIONS, cache=self._cache)
        if len(self) < 2 and self._network.WITH_REL_LOSS:
            raise DataError(
                f"{self._records.path}: has only one caption; NETWORK.WITH_REL_LOSS needs at least two"
            )
        if self.on_bad_data == "raise":
            example = self.example(0)
            self._region_files.check(example.regions, class_scores=True)
            if self.reads_pixels:
                self._store.check(parent_location(example.image))
            self[ItemKey(0, 0)]  # an error that concerns every record shows now, not in the first validation

    def __len__(self) -> int:
        return len(self._records)

    def record_id(self, index: int) -> str:
        """Returns the image path in the record, or the index of a record that cannot be read."""
        try:
            return self._records[index].image
        except DataError:
            return str(index)

    def example(self, index: int) -> CaptionExample:
        record = self._records[index]
        image, regions = record.image, record.frcnn
        if not self._data.ZIP_MODE:
            image, regions = unpacked_path(image), unpacked_region_path(regions)
        path = self._data.path
        return CaptionExample(record.image, path(image), " ".join(record.caption), path(regions))

    def regions(self, example: CaptionExample) -> Regions:
        """Reads a region file and sorts regions by the score of their best class, background included."""
        regions = self._region_files.read(example.regions, features=not self.reads_pixels, class_scores=True)
        assert regions.class_scores is not None
        order = regions.class_scores.amax(dim=1).argsort(descending=True, stable=True)
        return regions._replace(
            boxes=regions.boxes[order],
            features=None if regions.features is None else regions.features[order],
            class_scores=regions.class_scores[order],
        )


class CocoCaptionDataset(CaptionedImages):
    """The first caption of every COCO 2017 image that has annotations."""

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
        return str(self._ids[index])

    def example(self, index: int) -> CaptionExample:
        image_id = int(self._ids[index])
        path = f"{self._images}/{self._coco.file_name(image_id)}"
        return CaptionExample(str(image_id), path, self._captions[image_id])

    def describe(self, index: int) -> tuple[str, Sequence[str]]:
        """Returns the path of an image and the class names of its annotated objects."""
        classes = self._coco.classes(int(self._ids[index]))
        return self.example(index).image, [CLASS_NAMES[number] for number in classes]

    def regions(self, example: CaptionExample) -> Regions:
        """Returns the annotated boxes, in the order of the file."""
        image_id = int(example.name)
        corners, sides = np.hsplit(self._coco.boxes(image_id), 2)
        return Regions(
            boxes=torch.from_numpy(np.hstack([corners, corners + (sides - 1).clip(min=0)])).float(),
            image_size=self._coco.size(image_id),
            class_scores=F.one_hot(torch.from_numpy(self._coco.classes(image_id)), len(CLASS_NAMES)).float(),
        )
