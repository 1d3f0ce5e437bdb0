import random
from collections import Counter

import pytest

from common.data.masking import (
    MaskedText,
    mask_regions,
    mask_words,
    replacement_words,
    truncated_lengths,
)
from common.data.tokenizer import SPECIAL_TOKENS, Tokenizer

VOCAB = [
    *SPECIAL_TOKENS,
    "[unused0]",
    "[unused12]",
    "a",
    "dog",
    "un",
    "##aff",
    "##able",
    "[unusual]",
    "[",
    "unused",
]
TOKENIZER = Tokenizer({piece: number for number, piece in enumerate(VOCAB)})
MASK, UNK = TOKENIZER.mask_id, TOKENIZER.unk_id
A, DOG, UN, AFF, ABLE = (VOCAB.index(piece) for piece in ("a", "dog", "un", "##aff", "##able"))


class Draws:
    """Repeats given draws; replacements are chosen by place."""

    def __init__(self, *draws, places=()):
        self.draws, self.places = list(draws), list(places)

    def random(self):
        return self.draws.pop(0)

    def choice(self, values):
        return values[self.places.pop(0)]


def masked(words, *draws, places=(), replacements=(90, 91, 92)):
    rng = Draws(*draws, places=places)
    text = mask_words(words.split(), TOKENIZER, rng, replacements)
    assert rng.draws == rng.places == []  # exactly these were drawn
    return text


def test_most_chosen_words_are_hidden_with_all_their_pieces():
    text = masked("a unaffable dog", 0.0, 0.11999999, 0.15)
    assert text == MaskedText([MASK, MASK, MASK, MASK, DOG], [0, 1, 2, 3], [A, UN, AFF, ABLE])


def test_some_are_replaced_piece_by_piece():
    # 0.12 / 0.15 is the first that is no longer hidden, 0.135 / 0.15 the first that stays.
    text = masked("a unaffable dog", 0.5, 0.12, 0.13499999, places=[2, 0, 2, 1])
    assert text == MaskedText([A, 92, 90, 92, 91], [1, 2, 3, 4], [UN, AFF, ABLE, DOG])


def test_some_stay_but_are_to_be_restored():
    text = masked("a cat dog", 0.135, 0.14999999, 0.9)
    assert text == MaskedText([A, UNK, DOG], [0, 1], [A, UNK])


def test_no_word():
    assert masked("") == MaskedText([], [], [])


def test_the_first_pieces():
    text = MaskedText([1, 2, 3, 4, 5], [0, 2, 4], [7, 8, 9])
    assert text.first(5) == text.first(9) == text
    assert text.first(4) == MaskedText([1, 2, 3, 4], [0, 2], [7, 8])
    assert text.first(2) == MaskedText([1, 2], [0], [7])
    assert text.first(0) == MaskedText([], [], [])


def test_padding_and_unused_pieces_replace_nothing():
    excluded = {"[PAD]", "[unused0]", "[unused12]"}
    assert replacement_words(TOKENIZER) == [n for n, piece in enumerate(VOCAB) if piece not in excluded]


def test_frequencies():
    replacements = replacement_words(TOKENIZER)
    words = ["a", "dog"] * 20000
    text = mask_words(words, TOKENIZER, random.Random(5), replacements)
    true = [A, DOG] * 20000
    assert len(text.masked_positions) == pytest.approx(0.15 * 40000, rel=0.05)
    assert text.labels == [true[place] for place in text.masked_positions]
    found = Counter(
        "hidden" if text.ids[place] == MASK else "kept" if text.ids[place] == label else "replaced"
        for place, label in zip(text.masked_positions, text.labels, strict=True)
    )
    # A replaced word may be [MASK] or itself by chance, 2 of the 12 pieces.
    replaced = 0.1 * 10 / 12
    assert found["hidden"] / len(text.masked_positions) == pytest.approx(0.8 + 0.1 / 12, abs=0.02)
    assert found["replaced"] / len(text.masked_positions) == pytest.approx(replaced, abs=0.015)
    chosen = set(text.masked_positions)
    assert all(text.ids[place] == true[place] for place in range(40000) if place not in chosen)
    drawn = Counter(text.ids[place] for place in text.masked_positions)
    assert set(drawn) == set(replacements)


def test_regions():
    draws = [0.0, 0.13499999, 0.135, 0.14999999, 0.15, 0.9]
    hidden, labelled = mask_regions(6, Draws(*draws))
    assert hidden == [True, True, False, False, False, False]
    assert labelled == [True, True, True, True, False, False]
    assert mask_regions(0, Draws()) == ([], [])


def test_frequencies_of_regions():
    hidden, labelled = mask_regions(40000, random.Random(3))
    assert sum(labelled) == pytest.approx(0.15 * 40000, rel=0.05)
    assert sum(hidden) / sum(labelled) == pytest.approx(0.9, abs=0.015)
    assert all(label for label, hide in zip(labelled, hidden, strict=True) if hide)


def one_by_one(text, boxes, limit):
    """Remove one token or box at a time from the longer of the two until both fit."""
    while text + boxes > limit and min(text, boxes) > 0:
        if boxes > text:
            boxes -= 1
        else:
            text -= 1
    return max(text, 2), max(boxes, 1)


@pytest.mark.parametrize(
    ("given", "limit", "kept"),
    [
        ((20, 44), 64, (20, 44)),
        ((20, 51), 64, (20, 44)),
        ((40, 40), 64, (32, 32)),
        ((47, 11), 64, (47, 11)),
        ((60, 11), 64, (53, 11)),
        ((40, 40), 63, (31, 32)),
        ((14, 5), 2, (2, 1)),
        ((2, 9), 3, (2, 2)),
    ],
)
def test_truncation(given, limit, kept):
    assert truncated_lengths(*given, limit) == kept


@pytest.mark.parametrize("limit", [2, 3, 4, 7, 8])
def test_truncation_goes_piece_by_piece(limit):
    for text in range(2, 14):
        for boxes in range(1, 14):
            assert truncated_lengths(text, boxes, limit) == one_by_one(text, boxes, limit)
