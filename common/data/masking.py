"""Masked language modeling and masked region classification: masks, labels and truncation."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.data.tokenizer import Tokenizer

MASK_PROB = 0.15
"""Probability that a word or region is to be predicted."""
MASK_TOKEN_PROB = 0.8
"""Probability that a word to predict is replaced by `[MASK]`."""
RANDOM_TOKEN_PROB = 0.1
"""Probability that a word to predict is replaced by random word pieces. The rest stays unchanged."""
MASK_REGION_PROB = 0.9
"""Probability that the feature of a region to predict is masked. The rest stays unchanged."""

MIN_TOKENS = 2  # [CLS] and [SEP]


class MaskedText(NamedTuple):
    """Word pieces, some of which are to be predicted.

    Attributes:
        ids: ids that the model reads.
        masked_positions: positions to predict, ascending.
        labels: true ids at these positions.
    """

    ids: list[int]
    masked_positions: list[int]
    labels: list[int]

    def first(self, count: int) -> MaskedText:
        """Truncates to `count` pieces."""
        kept = bisect_left(self.masked_positions, count)
        return MaskedText(self.ids[:count], self.masked_positions[:kept], self.labels[:kept])


def replacement_words(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of random replacements: all but `[PAD]` and `[unused...]`. The reference draws these too."""
    return [
        piece_id
        for piece, piece_id in tokenizer.vocab.items()
        if not re.fullmatch(r"\[(PAD|unused\d*)\]", piece)
    ]


def mask_words(
    words: Sequence[str], tokenizer: Tokenizer, rng: random.Random, replacements: Sequence[int]
) -> MaskedText:
    """Masked language modeling: selects whole words to predict, and masks most of them (paper, section 3.3).

    Draws `random()` for every word, and `choice(replacements)` for every piece that is replaced at random.

    Args:
        words: words of `Tokenizer.basic`.
        tokenizer: splits words into pieces.
        rng: random generator of the item.
        replacements: ids of `replacement_words`.
    """
    text = MaskedText([], [], [])
    for word in words:
        pieces: Sequence[int] = tokenizer.word_ids(word)
        draw = rng.random()
        if draw < MASK_PROB:
            text.masked_positions.extend(range(len(text.ids), len(text.ids) + len(pieces)))
            text.labels.extend(pieces)
            if draw / MASK_PROB < MASK_TOKEN_PROB:
                pieces = [tokenizer.mask_id] * len(pieces)
            elif draw / MASK_PROB < MASK_TOKEN_PROB + RANDOM_TOKEN_PROB:
                pieces = [rng.choice(replacements) for _ in pieces]
        text.ids.extend(pieces)
    return text


def mask_regions(count: int, rng: random.Random) -> tuple[list[bool], list[bool]]:
    """Masked region classification: selects regions to predict, and masks most of them (paper, section 3.3).

    Draws `random()` for each region.

    Returns:
        For each of `count` regions, whether its feature is masked, and whether its class is to be predicted.
    """
    draws = [rng.random() for _ in range(count)]
    is_masked = [draw < MASK_PROB and draw / MASK_PROB < MASK_REGION_PROB for draw in draws]
    return is_masked, [draw < MASK_PROB for draw in draws]


def truncated_lengths(text: int, boxes: int, limit: int) -> tuple[int, int]:
    """Truncates the longer of text and boxes until both together fit the limit.

    On a tie, the text is truncated. At least two tokens and one box remain.

    Args:
        text: number of tokens, including `[CLS]` and `[SEP]`.
        boxes: number of boxes, including the whole image; at least 1.
        limit: `DATASET.SEQ_LEN`.

    Returns:
        Numbers of tokens and boxes to keep.
    """
    if text + boxes > limit:
        half = limit // 2
        if text <= half:
            boxes = limit - text
        elif boxes <= limit - half:
            text = limit - boxes
        else:
            text, boxes = half, limit - half
    return max(text, MIN_TOKENS), boxes


def subtract_masked_regions(whole: Tensor, features: Tensor, masked: Tensor) -> Tensor:
    """Removes masked regions from the feature of the whole image.

    Args:
        whole: (F,) mean of all features.
        features: (n, F) features of the regions.
        masked: (n,) bool.

    Returns:
        (F,), zeros if all regions are masked.
    """
    num_visible = len(features) - int(masked.sum())
    if not num_visible:
        return torch.zeros_like(whole)
    # The reference adds 1e-5 to the count.
    return (whole * len(features) - features[masked].sum(dim=0)) / (num_visible + 1e-5)
