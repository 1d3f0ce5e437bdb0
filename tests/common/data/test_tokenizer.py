import pickle

import pytest

from common.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from common.errors import DataError

PIECES = [
    "hello",
    "cafe",
    "un",
    "##aff",
    "##able",
    "a",
    "##a",
    "##b",
    "!",
    "[",
    "]",
    "mask",
    "and",
    "Hello",
    "caf",
]
VOCAB = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *PIECES])}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello [MASK] World", ["hello", "[MASK]", "world"]),
        ("[mask]", ["[", "mask", "]"]),
        ("[SEP].", ["[", "sep", "]", "."]),
        ("Café!", ["cafe", "!"]),
        ("a\u00a0b\u200bc", ["a", "bc"]),
        ("5-year-old", ["5", "-", "year", "-", "old"]),
        ("中文word", ["中", "文", "word"]),
        ("a\tb\nc\rd\x07e\x00\ufffd", ["a", "b", "c", "de"]),
        ("“what”…$5", ["“", "what", "”", "…", "$", "5"]),
        ("ÅNGSTRÖM", ["angstrom"]),
        (" \n ", []),
    ],
)
def test_basic_split(text, words):
    assert Tokenizer(VOCAB).basic(text) == words


def test_cased_words_keep_case_and_accents():
    assert Tokenizer(VOCAB, lower_case=False).basic("Café Hello.") == ["Café", "Hello", "."]


def test_words_that_are_never_split():
    tokenizer = Tokenizer(VOCAB, never_split=["[X]", "AbC"])
    assert tokenizer.basic("[X] [Y] AbC abC AbC.") == ["[X]", "[", "y", "]", "AbC", "abc", "abc", "."]


def test_word_pieces_are_the_longest_first():
    tokenizer = Tokenizer(VOCAB)
    assert tokenizer.tokenize("Unaffable aab!") == ["un", "##aff", "##able", "a", "##a", "##b", "!"]
    assert tokenizer.ids("Unaffable!") == [VOCAB["un"], VOCAB["##aff"], VOCAB["##able"], VOCAB["!"]]
    assert tokenizer.tokenize("cafx " + "a" * 101) == ["[UNK]", "[UNK]"]
    assert len(tokenizer.tokenize("a" * 100)) == 100
    assert Tokenizer(VOCAB, unk_token="a", max_word_length=3).tokenize("aaaa aaa") == ["a", "a", "##a", "##a"]


def test_ids_of_single_pieces():
    tokenizer = Tokenizer(VOCAB)
    special = (tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert special == (1, 2, 3, 4)
    assert tokenizer.token_id("and") == VOCAB["and"]
    with pytest.raises(DataError, match='lacks the word piece "zebra"'):
        tokenizer.token_id("zebra")


def test_a_pickled_tokenizer_is_the_same():
    tokenizer = Tokenizer(VOCAB, lower_case=False, never_split=["a!"], unk_token="a", max_word_length=6)
    tokenizer.ids("Hello")
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = "Hello a! hello! aaaaaaa"
    assert copy.tokenize(text) == tokenizer.tokenize(text) == ["Hello", "a", "hello", "!", "a"]


def test_from_directory(directory):
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.vocab == VOCAB
    assert tokenizer.tokenize("Hello") == ["hello"]
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.from_directory(directory).tokenize("Hello") == ["Hello"]


def test_repeated_and_blank_lines_count(directory):
    (directory / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "a", "", "a", " b "]))
    assert Tokenizer.from_directory(directory).vocab == {
        **dict(zip(SPECIAL_TOKENS, range(5), strict=True)),
        "a": 7,
        "": 6,
        "b": 8,
    }


def test_wrong_directories(directory):
    with pytest.raises(
        DataError, match=r"bert-base-uncased: no such directory; .*PREPARE_PRETRAINED_MODELS.md"
    ):
        Tokenizer.from_directory("bert-base-uncased")
    (directory / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match=r"tokenizer_config.json: expected a json object"):
        Tokenizer.from_directory(directory)
    (directory / "vocab.txt").write_text("[PAD]\n[CLS]\n[UNK]\nhello\n")
    with pytest.raises(DataError, match=r"vocab.txt: lacks \[SEP\], \[MASK\]; expected the vocabulary"):
        Tokenizer.from_directory(directory)
    (directory / "vocab.txt").unlink()
    with pytest.raises(DataError, match=r"vocab.txt: cannot be read"):
        Tokenizer.from_directory(directory)


def test_left_and_right_trade_places():
    words = ["left", "right", "##most", "of"]
    tokenizer = Tokenizer({word: i for i, word in enumerate([*SPECIAL_TOKENS, *words])})
    swapped = tokenizer.swap_left_right(tokenizer.ids("leftmost of right unknown"))
    assert swapped == tokenizer.ids("rightmost of left unknown")
    one_sided = Tokenizer({word: i for i, word in enumerate([*SPECIAL_TOKENS, "left"])})
    assert one_sided.swap_left_right(one_sided.ids("left right")) == [one_sided.unk_id] * 2
