import pickle

import pytest

from common.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from common.errors import DataError

PIECES = tuple("hello cafe un ##aff ##able a ##a ##b ! [ ] mask and Hello caf".split())  # noqa: SIM905
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
def test_tokenizer_basic(text, words):
    assert Tokenizer(VOCAB).basic(text) == words


def test_tokenizer_basic_options():
    assert Tokenizer(VOCAB, lower_case=False).basic("Café Hello.") == ["Café", "Hello", "."]
    tokenizer = Tokenizer(VOCAB, never_split=["[X]", "AbC"])
    assert tokenizer.basic("[X] [Y] AbC abC AbC.") == ["[X]", "[", "y", "]", "AbC", "abc", "abc", "."]


def test_tokenizer_takes_the_longest_pieces_first():
    tokenizer = Tokenizer(VOCAB)
    assert tokenizer.tokenize("Unaffable aab!") == ["un", "##aff", "##able", "a", "##a", "##b", "!"]
    assert tokenizer.ids("Unaffable!") == [VOCAB["un"], VOCAB["##aff"], VOCAB["##able"], VOCAB["!"]]
    assert tokenizer.tokenize("cafx " + "a" * 101) == ["[UNK]", "[UNK]"]
    assert len(tokenizer.tokenize("a" * 100)) == 100
    assert Tokenizer(VOCAB, unk_token="a", max_word_length=3).tokenize("aaaa aaa") == ["a", "a", "##a", "##a"]


def test_tokenizer_token_ids():
    tokenizer = Tokenizer(VOCAB)
    special = (tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert special == (1, 2, 3, 4)
    assert tokenizer.token_id("and") == VOCAB["and"]
    with pytest.raises(DataError, match='lacks the word piece "zebra"'):
        tokenizer.token_id("zebra")


def test_tokenizer_can_be_pickled():
    tokenizer = Tokenizer(VOCAB, lower_case=False, never_split=["a!"], unk_token="a", max_word_length=6)
    tokenizer.ids("Hello")
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = "Hello a! hello! aaaaaaa"
    assert copy.tokenize(text) == tokenizer.tokenize(text) == ["Hello", "a", "hello", "!", "a"]


def test_tokenizer_from_directory(directory):
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.vocab == VOCAB
    assert tokenizer.tokenize("Hello") == ["hello"]
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.from_directory(directory).tokenize("Hello") == ["Hello"]
    # Blank and repeated lines have ids, too.
    (directory / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "a", "", "a", " b "]))
    special = dict(zip(SPECIAL_TOKENS, range(5), strict=True))
    assert Tokenizer.from_directory(directory).vocab == {**special, "a": 7, "": 6, "b": 8}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: expected a json object"),
        (
            "vocab.txt",
            b"[PAD]\n[CLS]\n[UNK]\nhello\n",
            r"vocab.txt: lacks \[SEP\], \[MASK\]; expected the voc",
        ),
        ("vocab.txt", b"\xff", "vocab.txt: cannot be read"),
        ("vocab.txt", None, "vocab.txt: cannot be read"),
    ],
)
def test_tokenizer_from_directory_rejects_bad_input(directory, name, content, message):
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        Tokenizer.from_directory(directory)
    with pytest.raises(DataError, match=r"bert: no such directory; .*PREPARE_PRETRAINED_MODELS.md"):
        Tokenizer.from_directory("bert")


def test_tokenizer_swap_left_right():
    words = ["left", "right", "##most", "of"]
    tokenizer = Tokenizer({word: i for i, word in enumerate([*SPECIAL_TOKENS, *words])})
    swapped = tokenizer.swap_left_right(tokenizer.ids("leftmost of right unknown"))
    assert swapped == tokenizer.ids("rightmost of left unknown")
    one_sided = Tokenizer({word: i for i, word in enumerate([*SPECIAL_TOKENS, "left"])})
    assert one_sided.swap_left_right(one_sided.ids("left right")) == [one_sided.unk_id] * 2
