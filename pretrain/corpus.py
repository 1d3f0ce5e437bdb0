"""Text without images: lines of text files, for masked language modeling."""

from __future__ import annotations

import random

import torch

from common.batch import TextSequence
from common.config.fields import Split
from common.data.storage.line_index import TextLines
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError, DataError
from pretrain.config import PretrainConfig, PretrainDatasetConfig
from pretrain.dataset import PretrainDataset, PretrainSample, int64

FEATURE_DIM = 2048


class CorpusDataset(PretrainDataset):
    """The lines of the text files of a split, without `[CLS]` and `[SEP]`.

    A line with fewer words than `MIN_SEQ_LEN` is joined with the lines after it, the last one with the first, and
    truncated to `SEQ_LEN` word pieces. Every text has a word.

    Args:
        config: the experiment.
        data: the entry of `DATASET` that describes the data.
        split: train or val.
        tokenizer: BERT's tokenizer.
        source: index of that entry.

    Raises:
        ConfigError: no file is named, or a name is empty.
        DataError: a file is missing or empty.
    """

    def __init__(
        self,
        config: PretrainConfig,
        data: PretrainDatasetConfig,
        split: Split,
        tokenizer: Tokenizer,
        source: int,
    ) -> None:
        super().__init__(config, data, split, tokenizer)
        self._paths = data.annotation_file(split)
        if not all(self._paths.split("+")):
            key = f"{config.dataset_keys[source]}.{split.upper()}_ANNOTATION_FILE"
            raise ConfigError(f'{key}: "{self._paths}": must name a text file, or several joined with +')
        self._lines = TextLines(self._paths, self._cache)

    def __len__(self) -> int:
        return len(self._lines)

    def record_id(self, index: int) -> str:
        """Returns the index of the line; blank lines do not count."""
        return str(index)

    def load(self, index: int, rng: random.Random) -> PretrainSample:
        """Reads a text. Draws as `mask_words` does."""
        text = self.mask_text(self._words(index), rng).first(self._data.SEQ_LEN)
        return PretrainSample(
            index=index,
            record_id=self.record_id(index),
            image=None,
            padded_size=(0, 0),
            im_info=torch.zeros(4),
            boxes=torch.zeros(0, 4),
            texts=(TextSequence.plain(text.ids),),
            box_features=None if self.reads_pixels else torch.zeros(0, FEATURE_DIM),
            relationship=int64([]),
            masked_token_index=int64(text.masked_positions),
            word_labels=int64(text.labels),
            masked_region_index=int64([]),
            region_labels=torch.zeros(0, self.num_classes),
            masked_regions=torch.zeros(0, dtype=torch.bool),
            masked_pixel_boxes=int64([]).view(0, 4) if self.masks_pixels else None,
        )

    def _words(self, start: int) -> list[str]:
        """Returns words from line `start` on: at most `SEQ_LEN`, since each has a piece."""
        limit = self._data.SEQ_LEN
        needed = max(1, min(self._data.MIN_SEQ_LEN, limit))
        words: list[str] = []
        line = start
        while len(words) < needed:
            # Split at spaces first, so that only the start of a long paragraph is tokenized.
            for part in self._lines[line % len(self)].split(" "):
                words += self._tokenizer.basic(part)
                if len(words) >= limit:
                    return words[:limit]
            line += 1
            if not words and line == start + len(self):
                raise DataError(f"{self._paths}: has no word in {len(self)} lines")
        return words
