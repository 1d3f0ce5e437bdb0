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

PIECES = ("[unused0]", "[unused12]", "a", "dog", "un", "##aff", "##able", "[unusual]", "[", "unused")
VOCAB = [*SPECIAL_TOKENS, *PIECES]
TOKENIZER = Tokenizer({piece: number for number, piece in enumerate(VOCAB)})
MASK, UNK = TOKENIZER.mask_id, TOKENIZER.unk_id
A, DOG, UN, AFF, ABLE = (VOCAB.index(piece) for piece in ("a", "dog", "un", "##aff", "##able"))


class FakeRandom:
    """Returns given draws; `choice` returns the values at given indices."""

    def __init__(self, *draws, choices=()):
        self.draws, self.choices = list(draws), list(choices)

    def random(self):
        return self.draws.pop(0)

    def choice(self, values):
        return values[self.choices.pop(0)]


@pytest.mark.parametrize(
    ("words", "draws", "choices", "expected"),
    [
        # Below 0.12 = 0.15 * 0.8, all pieces of a word are masked.
        ("a unaffable dog", (0.0, 0.11999999, 0.15), (),
         MaskedText([MASK, MASK, MASK, MASK, DOG], [0, 1, 2, 3], [A, UN, AFF, ABLE])),
        # From 0.12 to 0.135 = 0.15 * 0.9, each piece is replaced.
        ("a unaffable dog", (0.5, 0.12, 0.13499999), (2, 0, 2, 1),
         MaskedText([A, 92, 90, 92, 91], [1, 2, 3, 4], [UN, AFF, ABLE, DOG])),
        # From 0.135 to 0.15, a word is unchanged, but predicted.
        ("a cat dog", (0.135, 0.14999999, 0.9), (), MaskedText([A, UNK, DOG], [0, 1], [A, UNK])),
        ("", (), (), MaskedText([], [], [])),
    ],
)  # fmt: skip
def test_mask_words(words, draws, choices, expected):
    rng = FakeRandom(*draws, choices=choices)
    assert mask_words(words.split(), TOKENIZER, rng, (90, 91, 92)) == expected
    assert rng.draws == rng.choices == []


def test_masked_text_first_truncates_pieces_and_labels():
    text = MaskedText([1, 2, 3, 4, 5], [0, 2, 4], [7, 8, 9])
    assert text.first(5) == text.first(9) == text
    assert text.first(4) == MaskedText([1, 2, 3, 4], [0, 2], [7, 8])
    assert text.first(2) == MaskedText([1, 2], [0], [7])
    assert text.first(0) == MaskedText([], [], [])


def test_replacement_words_exclude_padding_and_unused_pieces():
    excluded = {"[PAD]", "[unused0]", "[unused12]"}
    assert replacement_words(TOKENIZER) == [n for n, piece in enumerate(VOCAB) if piece not in excluded]


def test_mask_words_has_the_frequencies_of_bert():
    replacements = replacement_words(TOKENIZER)
    true_ids = [A, DOG] * 20000
    text = mask_words(["a", "dog"] * 20000, TOKENIZER, random.Random(5), replacements)
    num_masked = len(text.masked_positions)
    assert num_masked == pytest.approx(0.15 * 40000, rel=0.05)
    assert text.labels == [true_ids[position] for position in text.masked_positions]
    kinds = Counter(
        "masked" if text.ids[position] == MASK else "same" if text.ids[position] == label else "replaced"
        for position, label in zip(text.masked_positions, text.labels, strict=True)
    )
    # A random replacement is [MASK] or the word itself by chance, 2 of the 12 pieces.
    assert kinds["masked"] / num_masked == pytest.approx(0.8 + 0.1 / 12, abs=0.02)
    assert kinds["replaced"] / num_masked == pytest.approx(0.1 * 10 / 12, abs=0.015)
    masked = set(text.masked_positions)
    assert all(text.ids[i] == true_ids[i] for i in range(40000) if i not in masked)
    assert {text.ids[i] for i in masked} == set(replacements)


def test_mask_regions():
    is_masked, is_labeled = mask_regions(6, FakeRandom(0.0, 0.13499999, 0.135, 0.14999999, 0.15, 0.9))
    assert is_masked == [True, True, False, False, False, False]
    assert is_labeled == [True, True, True, True, False, False]
    assert mask_regions(0, FakeRandom()) == ([], [])
    is_masked, is_labeled = mask_regions(40000, random.Random(3))
    assert sum(is_labeled) == pytest.approx(0.15 * 40000, rel=0.05)
    assert sum(is_masked) / sum(is_labeled) == pytest.approx(0.9, abs=0.015)
    assert all(label for label, masked in zip(is_labeled, is_masked, strict=True) if masked)


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
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
def test_truncated_lengths(lengths, limit, expected):
    assert truncated_lengths(*lengths, limit) == expected


@pytest.mark.parametrize("limit", [2, 3, 4, 7, 8])
def test_truncated_lengths_equal_removing_one_at_a_time(limit):
    for num_tokens in range(2, 14):
        for num_boxes in range(1, 14):
            text, boxes = num_tokens, num_boxes
            while text + boxes > limit and min(text, boxes) > 0:
                if boxes > text:
                    boxes -= 1
                else:
                    text -= 1
            assert truncated_lengths(num_tokens, num_boxes, limit) == (max(text, 2), max(boxes, 1))
