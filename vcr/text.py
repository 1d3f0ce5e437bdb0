"""VCR texts: references become names, questions and choices become token sequences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from common.batch import TextSequence
from common.data.tokenizer import Tokenizer

PERSON_NAMES = (
    *("Casey", "Riley", "Jessie", "Jackie", "Avery", "Jaime", "Peyton"),
    *("Kerry", "Jody", "Kendall", "Frankie", "Pat", "Quinn"),
)
"""Gender-neutral names that replace references to persons."""

MAX_TOKENS = 64
"""Maximum number of word pieces of question and choice together, without special tokens."""

Words = Sequence[str | Sequence[int]]
"""An annotated text: words, and lists of object indices."""


class Tokens(NamedTuple):
    """Word pieces without special tokens.

    Attributes:
        ids: id of each word piece.
        tags: index of the box that each piece refers to. Without the whole-image box, -1 refers to none.
    """

    ids: tuple[int, ...]
    tags: tuple[int, ...]

    def first(self, count: int) -> Tokens:
        return Tokens(self.ids[:count], self.tags[:count])

    def joined(self, other: Tokens) -> Tokens:
        return Tokens(self.ids + other.ids, self.tags + other.tags)


class Mention(NamedTuple):
    """Name and box index of an object in texts."""

    name: str
    tag: int


def referenced_objects(texts: Iterable[Words]) -> list[int]:
    """Returns the indices of all objects that the texts refer to, in order of first use."""
    return list(
        dict.fromkeys(index for text in texts for word in text if not isinstance(word, str) for index in word)
    )


def name_objects(
    objects: Sequence[str], visible: Sequence[int], name_offset: int, first_tag: int
) -> dict[int, Mention]:
    """Names the visible objects: persons take `PERSON_NAMES` in turn, others the name of their class.

    Args:
        objects: class of every object of the record.
        visible: indices of the visible objects, in the order of the boxes.
        name_offset: index of the first person's name.
        first_tag: index of the first object's box.
    """
    mentions, person = {}, name_offset
    for tag, index in enumerate(visible, start=first_tag):
        name = objects[index]
        if name == "person":
            name = PERSON_NAMES[person % len(PERSON_NAMES)]
            person += 1
        mentions[index] = Mention(name, tag)
    return mentions


def tokenize_words(
    words: Words, mentions: Mapping[int, Mention], tokenizer: Tokenizer, *, plain_tag: int
) -> Tokens:
    """Tokenizes an annotated text.

    Args:
        words: the text.
        mentions: what replaces each object index.
        tokenizer: BERT's tokenizer.
        plain_tag: tag of pieces that refer to no object.
    """
    ids: list[int] = []
    tags: list[int] = []
    for word in words:
        if isinstance(word, str):
            pieces = tokenizer.ids(word)
            ids += pieces
            tags += [plain_tag] * len(pieces)
            continue
        for position, index in enumerate(word):
            if position:
                ids.append(tokenizer.token_id("and"))
                tags.append(plain_tag)
            pieces = tokenizer.ids(mentions[index].name)
            ids += pieces
            tags += [mentions[index].tag] * len(pieces)
    return Tokens(tuple(ids), tuple(tags))


def answer_lengths(question: int, answers: Sequence[int], limit: int = MAX_TOKENS) -> tuple[int, list[int]]:
    """Truncates question and answer to `limit` pieces: the longer one loses its end, on a tie the question.

    All answers share the question. Once truncated for one answer it stays so, and earlier answers do not grow again.

    Returns:
        Length of the question, and of every answer.
    """
    lengths = list(answers)
    for i in range(len(lengths)):
        while question + lengths[i] > limit:
            if lengths[i] > question:
                lengths[i] -= 1
            else:
                question -= 1
    return question, lengths


def rationale_lengths(
    question: int, answer: int, rationales: Sequence[int], limit: int = MAX_TOKENS
) -> tuple[int, int, list[int]]:
    """Truncates to `limit` pieces: the rationale if it is the longer half, else the question, then the answer.

    All rationales share question and answer, as in `answer_lengths`.

    Returns:
        Length of the question, of the answer, and of every rationale.
    """
    lengths = list(rationales)
    for i in range(len(lengths)):
        while question + answer + lengths[i] > limit:
            if lengths[i] > question + answer:
                lengths[i] -= 1
            elif question > 1:
                question -= 1
            else:
                answer -= 1
    return question, answer, lengths


def assemble_text(
    question: Tokens, answer: Tokens, *, cls_id: int, sep_id: int, answer_first: bool, one_sentence: bool
) -> TextSequence:
    """Adds the special tokens; see "Sequence layout" in `docs/model.md`.

    Args:
        question: the question, or question and answer before a rationale.
        answer: the answer or rationale.
        cls_id: id of [CLS].
        sep_id: id of [SEP].
        answer_first: `[CLS] answer [SEP] question [SEP]` instead of `[CLS] question [SEP] answer [SEP]`.
        one_sentence: `[CLS] question answer [SEP]`, one segment.

    Returns:
        The sequence. Tokens of the second segment have type 1; special tokens and pieces with tag -1 have tag 0.
    """
    assert not (answer_first and one_sentence), "excluded by the configuration"
    first, second = (answer, question) if answer_first else (question, answer)
    separators = 0 if one_sentence else 1
    ids = (cls_id, *first.ids, *[sep_id] * separators, *second.ids, sep_id)
    tags = (0, *first.tags, *[0] * separators, *second.tags, 0)
    types = np.zeros(len(ids), dtype=np.int64)
    if not one_sentence:
        types[len(first.ids) + 2 :] = 1
    return TextSequence(ids=np.array(ids), types=types, tags=np.maximum(tags, 0))
