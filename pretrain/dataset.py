"""Samples and batches of pre-training, and the base of its datasets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.batch import Batch, Ragged, Sample, counted, index_into, ragged
from common.config.fields import Split
from common.data.dataset import VisualLinguisticDataset
from common.data.masking import MaskedText, mask_words, replacement_words
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError
from pretrain.config import PretrainConfig, PretrainDatasetConfig


@dataclass(frozen=True, kw_only=True)
class PretrainSample(Sample):
    """An image with a caption, or a text alone. Shapes: n boxes, m masked tokens, r labeled regions, C classes.

    Attributes:
        relationship: (1,) int64, 1 if the caption belongs to the image, else 0; (0,) for a text alone.
        masked_token_index: (m,) int64 positions of the tokens to predict.
        word_labels: (m,) int64 true ids of these tokens.
        masked_region_index: (r,) int64 indices of the boxes to classify.
        region_labels: (r, C) float32 class scores of these boxes.
        masked_regions: (n,) bool, boxes whose feature the model must not see.
        masked_pixel_boxes: (p, 4) int64 first and last pixels x1, y1, x2, y2 of the areas to set to zero after
            normalization: all masked regions, even truncated ones. None unless `NETWORK.MASK_RAW_PIXELS` is on and the
            model reads pixels.
    """

    relationship: Tensor
    masked_token_index: Tensor
    word_labels: Tensor
    masked_region_index: Tensor
    region_labels: Tensor
    masked_regions: Tensor
    masked_pixel_boxes: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainBatch(Batch):
    """Images with captions, followed by texts alone; one text sequence each.

    Attributes:
        relationship: (P,) int64, see `PretrainSample`.
        masked_token_index: positions of the tokens to predict among all T tokens, by sample.
        word_labels: (M,) int64 true ids of these tokens.
        masked_region_index: indices of the regions to classify among all K boxes, by sample.
        region_labels: (R, C) float32 class scores of these regions.
        masked_regions: (K,) bool.
        masked_pixel_boxes: (N, 4) int64 by sample, or None.
    """

    relationship: Tensor = ragged()
    masked_token_index: Ragged = index_into("text")
    word_labels: Tensor = ragged()
    masked_region_index: Ragged = index_into("boxes")
    region_labels: Tensor = ragged()
    masked_regions: Tensor = ragged()
    masked_pixel_boxes: Ragged | None = counted()


class PretrainDataset(VisualLinguisticDataset[PretrainSample]):
    """Base of the pre-training datasets. Every epoch draws new masks.

    `DATASET.ON_BAD_DATA: skip` applies to training only.

    Args:
        config: the experiment.
        data: the entry of `DATASET` that describes the data.
        split: train or val.
        tokenizer: BERT's tokenizer.

    Raises:
        ConfigError: the split is test, which pre-training does not have.
    """

    batch_type = PretrainBatch

    def __init__(
        self, config: PretrainConfig, data: PretrainDatasetConfig, split: Split, tokenizer: Tokenizer
    ) -> None:
        if split == "test":
            raise ConfigError(
                "DATASET: pre-training has no test split; pretrain/val.py evaluates VAL_IMAGE_SET"
            )
        super().__init__(seed=config.RNG_SEED, on_bad_data=data.ON_BAD_DATA if split == "train" else "raise")
        self._data = data
        self._network = config.NETWORK
        self._tokenizer = tokenizer
        self._replacements = replacement_words(tokenizer)
        self._cache = data.cache

    @property
    def num_classes(self) -> int:
        """C, the number of region classes."""
        return self._network.VLBERT.visual_region_classes

    @property
    def reads_pixels(self) -> bool:
        """Whether the model reads images, not precomputed features."""
        return not self._network.IMAGE_FEAT_PRECOMPUTED

    @property
    def masks_pixels(self) -> bool:
        """Whether the pixels of masked regions are blanked."""
        return self.reads_pixels and self._network.MASK_RAW_PIXELS

    def mask_text(self, words: Sequence[str], rng: random.Random) -> MaskedText:
        """Masks words of `Tokenizer.basic`. Draws nothing without the masked-word loss."""
        if self._network.WITH_MLM_LOSS:
            return mask_words(words, self._tokenizer, rng, self._replacements)
        return MaskedText([piece for word in words for piece in self._tokenizer.word_ids(word)], [], [])


def int64(numbers: Sequence[int]) -> Tensor:
    """Converts integers to a tensor; an empty list to (0,)."""
    return torch.tensor(numbers, dtype=torch.int64)
