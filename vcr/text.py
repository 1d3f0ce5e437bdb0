"""Texts of VCR: references become names, questions and choices become token sequences (data spec 4.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.batch import TextSequence
from common.data.tokenizer import Tokenizer

PERSON_NAMES = (
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton"),
    *("Kerry", "Jody", "Kendall", "Frankie", "Pat", "Quinn"),
)
"""Gender-neutral names that stand for the persons of a picture."""

TEXT_LIMIT = 64
"""Most pieces of question and choice together, special tokens excluded."""

Words = Sequence[str | Sequence[int]]
"""A text as annotated: words, and lists of object indices."""


@dataclass(frozen=True)
class Tokens:
    """Word pieces without special tokens.

    Attributes:
        ids: id of each piece.
        tags: row of the box that each piece refers to; without the whole-image box, -1 refers to none.
        align: number of the original word of each piece.
    """

    ids: tuple[int, ...]
    tags: tuple[int, ...]
    align: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.ids + other.ids, self.tags + other.tags, self.align + other.align)

    def first(self, count: int) -> Tokens:
        """Returns the first pieces."""
        return Tokens(self.ids[:count], self.tags[:count], self.align[:count])


class Mention(NamedTuple):
    """How a text speaks of an object."""

    name: str
    tag: int


def referenced_objects(texts: Iterable[Words]) -> list[int]:
    """Returns the objects that any text refers to, in order of first use."""
    return list(
        dict.fromkeys(obj for text in texts for word in text if not isinstance(word, str) for obj in word)
    )


def mentions(
    objects: Sequence[str], kept: Sequence[int], name_offset: int, first_tag: int
) -> dict[int, Mention]:
    """Names the kept objects: persons take the names in turn, others keep the name of their class.

    Args:
        objects: class of every object of the record.
        kept: indices into `objects`, in the order of the boxes.
        name_offset: number of the first person's name.
        first_tag: row of the first object's box.
    """
    found, person = {}, name_offset
    for tag, index in enumerate(kept, start=first_tag):
        name = objects[index]
        if name == "person":
            name = PERSON_NAMES[person % len(PERSON_NAMES)]
            person += 1
        found[index] = Mention(name, tag)
    return found


def tokenize_words(
    words: Words,
    known: Mapping[int, Mention],
    tokenizer: Tokenizer,
    *,
    plain_tag: int,
    basic_align: bool = False,
) -> Tokens:
    """Tokenises an annotated text.

    Args:
        words: the text.
        known: what each object index becomes.
        tokenizer: BERT's.
        plain_tag: tag of pieces that refer to no object.
        basic_align: whether every word of the basic tokenizer counts as an original word.
    """
    groups = list(_groups(words, known, tokenizer, plain_tag, basic_align))
    return Tokens(
        tuple(piece for pieces, _ in groups for piece in pieces),
        tuple(tag for pieces, tag in groups for _ in pieces),
        tuple(number for number, (pieces, _) in enumerate(groups) for _ in pieces),
    )


def _groups(
    words: Words, known: Mapping[int, Mention], tokenizer: Tokenizer, plain_tag: int, basic_align: bool
) -> Iterator[tuple[Sequence[int], int]]:
    """Yields the pieces and the tag of every original word."""
    for word in words:
        if not isinstance(word, str):
            for place, index in enumerate(word):
                if place:
                    yield [tokenizer.token_id("and")], plain_tag
                yield tokenizer.ids(known[index].name), known[index].tag
        elif basic_align:
            yield from ((tokenizer.word_ids(part), plain_tag) for part in tokenizer.basic(word))
        else:
            yield tokenizer.ids(word), plain_tag


def answer_lengths(question: int, answers: Sequence[int], limit: int = TEXT_LIMIT) -> tuple[int, list[int]]:
    """Shortens question and answer to `limit` pieces: the longer loses its end, in ties the question.

    The question is shared: shortened for one answer it stays so, and earlier answers do not grow again.

    Returns:
        Length of the question, and of every answer.
    """
    kept = list(answers)
    for place in range(len(kept)):
        while question + kept[place] > limit:
            if kept[place] > question:
                kept[place] -= 1
            else:
                question -= 1
    return question, kept


def rationale_lengths(
    question: int, answer: int, rationales: Sequence[int], limit: int = TEXT_LIMIT
) -> tuple[int, int, list[int]]:
    """Shortens to `limit` pieces: the rationale if it is the longer half, else question, then answer.

    Question and answer are shared, as in `answer_lengths`.

    Returns:
        Length of the question, of the answer, and of every rationale.
    """
    kept = list(rationales)
    for place in range(len(kept)):
        while question + answer + kept[place] > limit:
            if kept[place] > question + answer:
                kept[place] -= 1
            elif question > 1:
                question -= 1
            else:
                answer -= 1
    return question, answer, kept


def assemble_text(
    question: Tokens, answer: Tokens, *, cls_id: int, sep_id: int, answer_first: bool, one_sentence: bool
) -> TextSequence:
    """Adds the special tokens (model spec 7.1, step 4).

    Args:
        question: or what takes its place, such as question and answer before a rationale.
        answer: or rationale.
        cls_id: id of [CLS].
        sep_id: id of [SEP].
        answer_first: `[CLS] answer [SEP] question [SEP]` instead of `[CLS] question [SEP] answer [SEP]`.
        one_sentence: `[CLS] question answer [SEP]`, one segment.

    Returns:
        Second segment with type 1; special tokens, and pieces with tag -1, have tag 0.
    """
    assert not (answer_first and one_sentence), "the configuration rules this out"
    first, second = (answer, question) if answer_first else (question, answer)
    middle = () if one_sentence else (sep_id,)
    ids = (cls_id, *first.ids, *middle, *second.ids, sep_id)
    tags = (0, *first.tags, *(0 for _ in middle), *second.tags, 0)
    types = np.zeros(len(ids), dtype=np.int64)
    if not one_sentence:
        types[len(first) + 2 :] = 1
    return TextSequence(ids=np.array(ids), types=types, tags=np.maximum(tags, 0))
