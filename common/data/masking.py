"""What pre-training hides of words and regions, and how much of both it keeps (data spec 3.1, 3.2, 3.8).

Pure functions; random decisions come from a generator that is passed in.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.data.tokenizer import Tokenizer

CHOSEN = 0.15
"""Share of words and of regions that are to be restored."""
HIDDEN_WORDS = 0.8
"""Share of the chosen words that become `[MASK]`."""
HIDDEN_OR_REPLACED_WORDS = 0.9
"""These and those that become random word pieces; the rest stays as it is."""
HIDDEN_REGIONS = 0.9
"""Share of the chosen regions that the model does not see; the rest stays as it is."""

LEAST_TEXT = 2


class MaskedText(NamedTuple):
    """Word pieces, some of which are to be restored.

    Attributes:
        ids: what the model reads.
        places: which of them are to be restored, ascending.
        labels: the true ids at these places.
    """

    ids: list[int]
    places: list[int]
    labels: list[int]

    def first(self, count: int) -> MaskedText:
        """Returns the first `count` pieces."""
        kept = bisect_left(self.places, count)
        return MaskedText(self.ids[:count], self.places[:kept], self.labels[:kept])


def replacement_words(tokenizer: Tokenizer) -> list[int]:
    """Returns the ids that may replace a word: all but `[PAD]` and `[unused...]`, which the reference draws too."""
    return [
        number for piece, number in tokenizer.vocab.items() if not re.fullmatch(r"\[(PAD|unused\d*)\]", piece)
    ]


def mask_words(
    words: Sequence[str], tokenizer: Tokenizer, rng: random.Random, replacements: Sequence[int]
) -> MaskedText:
    """Chooses whole words to be restored, and hides most of them (data spec 3.1).

    Draws `random()` for every word, and `choice(replacements)` for every piece of a word that is replaced.

    Args:
        words: words of `Tokenizer.basic`.
        tokenizer: splits them into pieces.
        rng: the generator of the item.
        replacements: ids of `replacement_words`.
    """
    text = MaskedText([], [], [])
    for word in words:
        pieces: Sequence[int] = tokenizer.word_ids(word)
        draw = rng.random()
        if draw < CHOSEN:
            text.places.extend(range(len(text.ids), len(text.ids) + len(pieces)))
            text.labels.extend(pieces)
            if draw / CHOSEN < HIDDEN_WORDS:
                pieces = [tokenizer.mask_id] * len(pieces)
            elif draw / CHOSEN < HIDDEN_OR_REPLACED_WORDS:
                pieces = [rng.choice(replacements) for _ in pieces]
        text.ids.extend(pieces)
    return text


def mask_regions(count: int, rng: random.Random) -> tuple[list[bool], list[bool]]:
    """Chooses regions to be classified, and hides most of them (data spec 3.2); draws `random()` for each.

    Returns:
        For each of `count` regions, whether the model must not see it, and whether it is to be classified.
    """
    draws = [rng.random() for _ in range(count)]
    hidden = [draw < CHOSEN and draw / CHOSEN < HIDDEN_REGIONS for draw in draws]
    return hidden, [draw < CHOSEN for draw in draws]


def truncated_lengths(text: int, boxes: int, limit: int) -> tuple[int, int]:
    """Shortens the longer of text and boxes until both together keep to a limit (data spec 3.8).

    Of equal ones the text is shortened. Two tokens and one box remain in any case. There is at least one box.

    Args:
        text: tokens, `[CLS]` and `[SEP]` included.
        boxes: boxes, the whole image included.
        limit: `DATASET.SEQ_LEN`.

    Returns:
        Tokens and boxes to keep.
    """
    if text + boxes > limit:
        half = limit // 2
        if text <= half:
            boxes = limit - text
        elif boxes <= limit - half:
            text = limit - boxes
        else:
            text, boxes = half, limit - half
    return max(text, LEAST_TEXT), boxes


def subtract_masked_regions(whole: Tensor, features: Tensor, hidden: Tensor) -> Tensor:
    """Takes what must not be seen out of the feature of the whole image (data spec 4.4 step 7).

    Args:
        whole: (F,) mean of all features.
        features: (n, F) those of the regions.
        hidden: (n,) bool.

    Returns:
        (F,), zeros where nothing is left.
    """
    seen = len(features) - int(hidden.sum())
    if not seen:
        return torch.zeros_like(whole)
    return (whole * len(features) - features[hidden].sum(dim=0)) / (seen + 1e-5)
