import pytest

from common.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from common.errors import DataError
from vcr.text import (
    PERSON_NAMES,
    Tokens,
    answer_lengths,
    assemble_text,
    name_objects,
    rationale_lengths,
    referenced_objects,
    tokenize_words,
)

PIECES = ["ca", "##sey", "riley", "car", "near", "and", "t", "-", "shirt", "?"]
VOCAB = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *PIECES])}
TOKENIZER = Tokenizer(VOCAB)
OBJECTS = ["person", "person", "car"]


def tokens(*ids, tags=None):
    return Tokens(ids, tuple(tags or [0] * len(ids)))


def test_names_go_round_and_only_kept_persons_take_one():
    assert len(PERSON_NAMES) == 13
    found = name_objects(["person", "dog", "person", "person"], [3, 1, 0], name_offset=12, first_tag=1)
    assert found == {3: ("Quinn", 1), 1: ("dog", 2), 0: ("Casey", 3)}


def test_referenced_objects_in_order_of_first_use():
    assert referenced_objects([["a", [4, 1]], [[1], "b", [0, 4]], ["c"]]) == [4, 1, 0]


@pytest.mark.parametrize(("plain_tag", "tags"), [(0, [1, 1, 0, 2, 0, 3]), (-1, [0, 0, -1, 1, -1, 2])])
def test_pieces_carry_the_row_of_their_box(plain_tag, tags):
    known = name_objects(OBJECTS, [0, 1, 2], 0, plain_tag + 1)
    found = tokenize_words([[0], "near", [1, 2]], known, TOKENIZER, plain_tag=plain_tag)
    assert found.ids == tuple(VOCAB[piece] for piece in ("ca", "##sey", "near", "riley", "and", "car"))
    assert list(found.tags) == tags


def test_a_vocabulary_without_and():
    tokenizer = Tokenizer({token: number for number, token in enumerate([*SPECIAL_TOKENS, "car"])})
    with pytest.raises(DataError, match='lacks the word piece "and"'):
        tokenize_words([[0, 1]], name_objects(["car", "car"], [0, 1], 0, 1), tokenizer, plain_tag=0)


@pytest.mark.parametrize(
    ("question", "answers", "expected"),
    [
        (10, [54, 3], (10, [54, 3])),
        (10, [60, 3], (10, [54, 3])),
        (60, [5, 60], (32, [5, 32])),
        (40, [40, 70, 10], (32, [32, 32, 10])),
        (50, [20, 30], (34, [20, 30])),
    ],
)
def test_question_and_answer_share_64_pieces(question, answers, expected):
    assert answer_lengths(question, answers) == expected


def test_in_a_tie_the_question_is_cut():
    assert answer_lengths(40, [40], limit=63) == (31, [32])


@pytest.mark.parametrize(
    ("question", "answer", "rationales", "expected"),
    [
        (10, 10, [44, 90], (10, 10, [44, 44])),
        (30, 30, [20, 60], (2, 30, [20, 32])),
        (2, 60, [10, 10], (1, 53, [10, 10])),
        (20, 20, [40], (12, 20, [32])),
    ],
)
def test_question_answer_and_rationale_share_64_pieces(question, answer, rationales, expected):
    assert rationale_lengths(question, answer, rationales) == expected


LAYOUTS = {
    "default": (
        {"answer_first": False, "one_sentence": False},
        [101, 11, 12, 13, 102, 21, 22, 102],
        [0, 0, 0, 0, 0, 1, 1, 1],
        [0, 0, 2, 0, 0, 1, 0, 0],
    ),
    "answer first": (
        {"answer_first": True, "one_sentence": False},
        [101, 21, 22, 102, 11, 12, 13, 102],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 1, 0, 0, 0, 2, 0, 0],
    ),
    "one sentence": (
        {"answer_first": False, "one_sentence": True},
        [101, 11, 12, 13, 21, 22, 102],
        [0] * 7,
        [0, 0, 2, 0, 1, 0, 0],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    options, ids, types, tags = LAYOUTS[layout]
    question, answer = tokens(11, 12, 13, tags=[0, 2, 0]), tokens(21, 22, tags=[1, -1])
    text = assemble_text(question, answer, cls_id=101, sep_id=102, **options)
    assert [text.ids.tolist(), text.types.tolist(), text.tags.tolist()] == [ids, types, tags]
    assert {str(column.dtype) for column in (text.ids, text.types, text.tags)} == {"int64"}


def test_joined_and_shortened_tokens():
    joined = tokens(1, 2, tags=[3, 4]).joined(tokens(5))
    assert joined == Tokens((1, 2, 5), (3, 4, 0))
    assert joined.first(1) == Tokens((1,), (3,))
