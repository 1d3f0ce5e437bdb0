"""VQA answers: spelling, vocabulary, soft targets, and the official accuracy.

Source: Antol et al., VQA (ICCV 2015), and the evaluation page of visualqa.org.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, DataError
from vqa.config import VQADatasetConfig

UNKNOWN = "<unk>"
"""Class of answers that are not in the vocabulary."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = (
    32  # the reference passes re.UNICODE as `count` by mistake, which limits the replacements to 32
)

_SIDES = {"left": "right", "right": "left"}


def replace_punctuation(text: str) -> str:
    """Removes punctuation or replaces it by spaces: the rule for vocabularies, and a step of the official spelling.

    A mark is removed if it is next to a space anywhere in the text, or if the text has a number with a comma.
    Otherwise it becomes a space. Periods are removed except before a digit.
    """
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_blank or has_number else " ")
    return _FULL_STOP.sub("", result, count=_MOST_FULL_STOPS)


def swap_left_right(text: str) -> str:
    """Swaps the words left and right, for a flipped image."""
    return " ".join(_SIDES.get(word, word) for word in text.split(" "))


def lower(text: str) -> str:
    return text.lower().strip()


def lower_plain(text: str) -> str:
    """Lower-cases and strips an answer and replaces its punctuation, except in `<unk>`."""
    text = lower(text)
    return text if text == UNKNOWN else replace_punctuation(text)


@dataclass(frozen=True)
class AnswerVocabulary:
    """The answers that a model can give.

    Attributes:
        answers: text of every class.
        spell: normalizes an annotated answer before it is looked up; None to look it up unchanged.
        classes: class of every text, the first one of equal texts.
    """

    answers: tuple[str, ...]
    spell: Callable[[str], str] | None = None
    classes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        classes = {answer: number for number, answer in reversed(list(enumerate(self.answers)))}
        object.__setattr__(self, "classes", classes)

    @classmethod
    def from_config(cls, data: VQADatasetConfig) -> AnswerVocabulary:
        """Reads `ANSWER_VOCAB_FILE`: UTF-8, one answer per line; blank lines are skipped.

        Raises:
            DataError: the file cannot be read or lacks `<unk>`.
            ConfigError: the number of answers is not `ANSWER_VOCAB_SIZE`.
        """
        named = f"DATASET.ANSWER_VOCAB_FILE: {data.ANSWER_VOCAB_FILE}"
        spell = lower if data.USE_IMDB else lower_plain
        try:
            with open(data.ANSWER_VOCAB_FILE, encoding="utf-8") as file:
                answers = tuple(spell(line) for line in file if line.strip())
        except OSError as error:
            raise DataError(
                f"{named}: cannot be read ({error.strerror}); expected a text file with one answer per line"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{named}: expected text in UTF-8, but {error}") from error
        if UNKNOWN not in answers:
            raise DataError(f"{named}: lacks the line {UNKNOWN}, the class of answers that have none")
        if len(answers) != data.ANSWER_VOCAB_SIZE:
            raise ConfigError(
                f"DATASET.ANSWER_VOCAB_SIZE: {data.ANSWER_VOCAB_SIZE}, but {named} has {len(answers)} "
                "answers; they must be equal"
            )
        return cls(answers, spell if data.ANSWER_NORMALISE == "both" else None)

    @property
    def duplicates(self) -> list[str]:
        """Texts of several classes. Only the first class can be right."""
        return [answer for answer, count in Counter(self.answers).items() if count > 1]

    def class_of(self, answer: str) -> int:
        """Returns the class of an annotated answer, -1 if it has none."""
        found = self.classes.get(self.spell(answer) if self.spell else answer, -1)
        return -1 if found >= 0 and self.answers[found] == UNKNOWN else found

    def sayable(self) -> list[bool]:
        """Returns whether each class may be predicted: all but `<unk>`, unless there is nothing else."""
        known = [answer != UNKNOWN for answer in self.answers]
        return known if any(known) else [True] * len(known)


@overload
def agreement(matches: int, annotators: int) -> float: ...
@overload
def agreement(matches: NDArray[np.int64], annotators: int) -> NDArray[np.float64]: ...
def agreement(matches: int | NDArray[np.int64], annotators: int) -> float | NDArray[np.float64]:
    """Returns the score of an answer that `matches` annotators gave: min(1, others / 3), leaving out each in turn."""
    left_out = matches * np.minimum(1, (matches - 1) / 3)
    others = (annotators - matches) * np.minimum(1, matches / 3)
    score: NDArray[np.float64] = (left_out + others) / annotators
    return score


def soft_target(classes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the distinct classes of the annotators and their scores.

    Args:
        classes: (n,) class of the answer of every annotator, -1 for none.
    """
    given, matches = np.unique(classes[classes >= 0], return_counts=True)
    return given, agreement(matches.astype(np.int64), max(len(classes), 1))


_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_DIGITS)}}
_ARTICLES = frozenset(("a", "an", "the"))
# Words that have a contraction, by its ending; not if the word without apostrophe is a word (well, shed, its, were).
_SHORTENED = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could i might must should they we what who would you",
    "'d": "he how it somebody someone something that there they what where who you",
    "'ll": "how it somebody someone something that there they what who why you",
    "'re": "there they what where why you",
    "'s": "he how let she somebody someone something that there what when where who why",
    "'m": "i",
}
_CONTRACTIONS = {
    "maam": "ma'am",
    "oclock": "o'clock",
    "yall": "y'all",
    **{
        word + ending.replace("'", ""): word + ending
        for ending, words in _SHORTENED.items()
        for word in words.split()
    },
}


@lru_cache(maxsize=1 << 16)
def official_spelling(answer: str) -> str:
    """Normalizes an answer for comparison.

    Lower case; punctuation replaced by spaces except apostrophe and colon; number words as digits; no articles;
    contractions with their apostrophe.
    """
    words = replace_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    digits = (_NUMBERS.get(word, word) for word in words)
    return " ".join(_CONTRACTIONS.get(word, word) for word in digits if word not in _ARTICLES)


def official_accuracy(answer: str, given: Sequence[str]) -> float:
    """Returns the official accuracy: min(1, matches / 3), averaged over all subsets of nine of the ten annotators.

    Args:
        answer: answer of the model.
        given: answers of the annotators.
    """
    said = official_spelling(answer)
    matches = sum(official_spelling(one) == said for one in given)
    return float(agreement(matches, len(given)))
