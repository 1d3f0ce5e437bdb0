"""What the datasets of pre-training share: samples, batches, and the words that are hidden (data spec 4.4-4.6)."""

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
    """A picture with its caption, or a text alone. Letters: n boxes, m masked words, r masked regions, C classes.

    Attributes:
        relationship: (1,) int64, 1 where the caption is the picture's own, else 0; (0,) of a text alone.
        masked_token_index: (m,) int64, tokens of the text that are to be restored.
        word_labels: (m,) int64, their true ids.
        masked_region_index: (r,) int64, boxes that are to be classified.
        region_labels: (r, C) float32, their class scores.
        hidden: (n,) bool, boxes that the model must not see.
        masked_pixel_boxes: (p, 4) int64 x1, y1, x2, y2, the first and last pixels of areas of the image to set to zero
            after normalisation: those of all hidden regions, even of such as were left out. None unless
            `NETWORK.MASK_RAW_PIXELS` is on and pictures are read.
    """

    relationship: Tensor
    masked_token_index: Tensor
    word_labels: Tensor
    masked_region_index: Tensor
    region_labels: Tensor
    hidden: Tensor
    masked_pixel_boxes: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainBatch(Batch):
    """Pictures with captions, and behind them texts alone; one text sequence each.

    Attributes:
        relationship: (P,) int64, see `PretrainSample`.
        masked_token_index: masked tokens among all T tokens, by sample.
        word_labels: (M,) int64, their true ids.
        masked_region_index: masked regions among all K boxes, by sample.
        region_labels: (R, C) float32, their class scores.
        hidden: (K,) bool.
        masked_pixel_boxes: (N, 4) int64 by sample, or None.
    """

    relationship: Tensor = ragged()
    masked_token_index: Ragged = index_into("text")
    word_labels: Tensor = ragged()
    masked_region_index: Ragged = index_into("boxes")
    region_labels: Tensor = ragged()
    hidden: Tensor = ragged()
    masked_pixel_boxes: Ragged | None = counted()


class PretrainDataset(VisualLinguisticDataset[PretrainSample]):
    """A dataset whose words are masked anew in every epoch. `DATASET.ON_BAD_DATA: skip` concerns training alone.

    Args:
        config: the experiment.
        data: the entry of `DATASET` that describes it.
        split: train or val.
        tokenizer: BERT's.

    Raises:
        ConfigError: test, a split that pre-training does not have.
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
        """C, the classes of masked regions."""
        return self._network.VLBERT.visual_region_classes

    @property
    def reads_pixels(self) -> bool:
        """Whether the model sees pictures, not features that were computed before."""
        return not self._network.IMAGE_FEAT_PRECOMPUTED

    @property
    def masks_pixels(self) -> bool:
        """Whether hidden regions lose their pixels."""
        return self.reads_pixels and self._network.MASK_RAW_PIXELS

    def masked(self, words: Sequence[str], rng: random.Random) -> MaskedText:
        """Masks words of `Tokenizer.basic`; does not draw anything where no word is to be restored."""
        if self._network.WITH_MLM_LOSS:
            return mask_words(words, self._tokenizer, rng, self._replacements)
        return MaskedText([piece for word in words for piece in self._tokenizer.word_ids(word)], [], [])


def int64(numbers: Sequence[int]) -> Tensor:
    """Whole numbers as a tensor, also of none."""
    return torch.tensor(numbers, dtype=torch.int64)
