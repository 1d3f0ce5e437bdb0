"""Spelling, vocabulary, soft targets and the official accuracy, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import ConfigError, DataError
from vqa.answers import (
    AnswerVocabulary,
    agreement,
    official_accuracy,
    official_spelling,
    replace_punctuation,
    soft_target,
    swap_left_right,
)
from vqa.config import VQADatasetConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes/no", "yes no"),
        ("yes / no", "yes  no"),
        ("t-shirt", "t shirt"),
        ("a - b-c", "a  bc"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),
        ("a,b", "a b"),
        ("a, b", "a b"),
        ("st. john", "st john"),
        ("2.5", "2.5"),
        ("5.", "5"),
        ("." * 40, "." * 8),
        ("don't 10:30 50%", "don't 10:30 50%"),
        ("<x>", " x "),
    ],
)
def test_punctuation(text, expected):
    assert replace_punctuation(text) == expected


def test_swap_left_right_swaps_whole_words():
    assert swap_left_right("on left of right") == "on right of left"
    assert swap_left_right("leftmost  Left") == "leftmost  Left"


def vocabulary(tmp_path, text: str, size: int, **options) -> AnswerVocabulary:
    path = tmp_path / "answers.txt"
    path.write_bytes(text.encode())
    return AnswerVocabulary.from_config(
        VQADatasetConfig(ANSWER_VOCAB_FILE=str(path), ANSWER_VOCAB_SIZE=size, **options)
    )


TEXT = "<unk>\nYes\r\n\n  t-shirt \nT shirt\nno."


def test_the_vocabulary(tmp_path):
    found = vocabulary(tmp_path, TEXT, 5, USE_IMDB=False)
    assert found.answers == ("<unk>", "yes", "t shirt", "t shirt", "no")
    assert found.duplicates == ["t shirt"]
    assert [found.class_of(answer) for answer in ("yes", "t shirt", "t-shirt", "Yes", "<unk>", "cat")] == [
        *(1, 2),
        *(-1, -1, -1, -1),
    ]


def test_the_vocabulary_of_imdb_files_keeps_its_punctuation(tmp_path):
    found = vocabulary(tmp_path, TEXT, 5, USE_IMDB=True)
    assert found.answers == ("<unk>", "yes", "t-shirt", "t shirt", "no.")
    assert not found.duplicates


def test_both_sides_are_spelled_alike(tmp_path):
    found = vocabulary(tmp_path, TEXT, 5, USE_IMDB=False, ANSWER_NORMALISE="both")
    assert [found.class_of(answer) for answer in ("T-shirt", " YES", "no", "<unk>")] == [2, 1, 4, -1]
    found = vocabulary(tmp_path, TEXT, 5, USE_IMDB=True, ANSWER_NORMALISE="both")
    assert [found.class_of(answer) for answer in ("T-shirt", "No.", "no")] == [2, 4, -1]


@pytest.mark.parametrize(
    ("text", "size", "error", "message"),
    [
        (TEXT, 6, ConfigError, r"DATASET.ANSWER_VOCAB_SIZE: 6, but .*answers.txt has 5 answers"),
        ("yes\nno", 2, DataError, r"DATASET.ANSWER_VOCAB_FILE: .*answers.txt: lacks the line <unk>"),
        ("", 1, DataError, "lacks the line <unk>"),
    ],
)
def test_a_vocabulary_that_does_not_fit(tmp_path, text, size, error, message):
    with pytest.raises(error, match=message):
        vocabulary(tmp_path, text, size, USE_IMDB=False)


def test_a_vocabulary_that_cannot_be_read(tmp_path):
    path = tmp_path / "answers.txt"
    config = VQADatasetConfig(ANSWER_VOCAB_FILE=str(path))
    with pytest.raises(DataError, match=r"DATASET.ANSWER_VOCAB_FILE: .*answers.txt: cannot be read"):
        AnswerVocabulary.from_config(config)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"answers.txt: expected text in UTF-8"):
        AnswerVocabulary.from_config(config)


def test_a_model_says_unk_only_where_it_knows_nothing_else():
    assert AnswerVocabulary(("yes", "<unk>", "no")).sayable() == [True, False, True]
    assert AnswerVocabulary(("<unk>",)).sayable() == [True]


def test_agreement():
    expected = [0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1]
    assert [agreement(matches, 10) for matches in range(11)] == pytest.approx(expected)
    # One of two: left out himself, the other does not agree; the other left out, one in three does.
    assert agreement(1, 2) == pytest.approx(1 / 6)


def test_soft_target():
    given, scores = soft_target(np.array([7, 2, 2, 7, -1, 2, 5, -1, 2, 7]))
    assert given.tolist() == [2, 5, 7]
    assert scores == pytest.approx([1, 0.3, 0.9])
    assert soft_target(np.array([-1, -1]))[0].tolist() == []
    assert soft_target(np.array([3]))[1].tolist() == [0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat", "cat"),
        ("a dog, an ox", "dog ox"),
        ("none", "0"),
        ("Ten men", "10 men"),
        ("dont", "don't"),
        ("cant wont aint", "can't won't ain't"),
        ("its well shed were", "its well shed were"),
        ("theyre whos im oclock", "they're who's i'm o'clock"),
        ("girl's 2:50 pm", "girl's 2:50 pm"),
        ("100,978", "100978"),
        ("U.S.A.", "usa"),
        ("3.5\n", "3.5"),
        (" red/white ", "red white"),
    ],
)
def test_official_spelling(text, expected):
    assert official_spelling(text) == expected


def test_official_accuracy():
    given = ["2", "two", "two.", "The two", "3", "three", "many", "many", "4", "5"]
    assert official_accuracy("2", given) == 1
    assert official_accuracy("3", given) == pytest.approx(0.6)
    assert official_accuracy("five", given) == pytest.approx(0.3)
    assert official_accuracy("cat", given) == 0
    # Three agree: the mean of 3 times 2/3 and 7 times 1.
    assert official_accuracy("a", ["x"] * 7 + ["the"] * 3) == pytest.approx(0.9)
