"""BERT's tokenizer: basic tokenization of our own, WordPiece by the `tokenizers` library.

The library's basic tokenizer differs from the reference in control characters, Unicode tables and the treatment of
special tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers.models import WordPiece

from common.data.storage.store import parse_json
from common.errors import DataError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_CACHED_WORDS = 1 << 16
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class _CharacterMap(dict[int, str]):
    """A table for `str.translate` that computes its entries on demand."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        self._rule = rule

    def __missing__(self, code: int) -> str:
        return self.setdefault(code, self._rule(chr(code)))


def _clean(char: str) -> str:
    category = unicodedata.category(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    if char in "\0\ufffd" or category.startswith("C"):
        return ""
    is_ideograph = any(first <= ord(char) <= last for first, last in _IDEOGRAPHS)
    return f" {char} " if is_ideograph else char


def _drop_mark(char: str) -> str:
    return "" if unicodedata.category(char) == "Mn" else char


def _space_punctuation(char: str) -> str:
    is_punctuation = char in _ASCII_PUNCTUATION or unicodedata.category(char).startswith("P")
    return f" {char} " if is_punctuation else char


class Tokenizer:
    """Splits text into words, word pieces and ids.

    Args:
        vocab: id of every word piece.
        lower_case: whether to remove case and accents.
        never_split: words that are kept unchanged.
        unk_token: piece for words that cannot be composed.
        max_word_length: longer words become `unk_token`.

    Attributes:
        vocab: id of every word piece, in file order.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        *,
        lower_case: bool = True,
        never_split: Collection[str] = SPECIAL_TOKENS,
        unk_token: str = "[UNK]",
        max_word_length: int = 100,
    ) -> None:
        self.vocab = dict(vocab)
        self._tokens: dict[int, str] | None = None
        self._lower_case = lower_case
        self._never_split = frozenset(never_split)
        self._model = WordPiece(self.vocab, unk_token=unk_token, max_input_chars_per_word=max_word_length)
        self._clean = _CharacterMap(_clean)
        self._drop_marks = _CharacterMap(_drop_mark)
        self._space_punctuation = _CharacterMap(_space_punctuation)
        self._split_word = lru_cache(_CACHED_WORDS)(self._split_word_uncached)
        self._pieces = lru_cache(_CACHED_WORDS)(self._pieces_uncached)

    @classmethod
    def from_directory(cls, path: str | Path) -> Tokenizer:
        """Reads `vocab.txt`, and `do_lower_case` of `tokenizer_config.json` if it exists.

        Raises:
            DataError: the directory or vocabulary is missing, or a special token is.
        """
        directory = Path(path)
        file = directory / "vocab.txt"
        if not directory.is_dir():
            raise DataError(
                f"{path}: no such directory; NETWORK.BERT_MODEL_NAME must name a directory with vocab.txt, "
                "see model/pretrained_model/PREPARE_PRETRAINED_MODELS.md"
            )
        try:
            lines = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read ({error}); expected one word piece per line") from error
        vocab = {line.strip(): number for number, line in enumerate(lines)}
        missing = [token for token in SPECIAL_TOKENS if token not in vocab]
        if missing:
            raise DataError(f"{file}: lacks {', '.join(missing)}; expected the vocabulary of a BERT model")
        options = directory / "tokenizer_config.json"
        config = parse_json(options.read_bytes(), str(options)) if options.is_file() else {}
        if not isinstance(config, dict):
            raise DataError(f"{options}: expected a json object")
        return cls(vocab, lower_case=bool(config.get("do_lower_case", True)))

    def __reduce__(self) -> tuple[Any, ...]:
        build = partial(
            Tokenizer,
            lower_case=self._lower_case,
            never_split=self._never_split,
            unk_token=self._model.unk_token,
            max_word_length=self._model.max_input_chars_per_word,
        )
        return build, (self.vocab,)

    def token_id(self, token: str) -> int:
        """Returns the id of a word piece.

        Raises:
            DataError: it is not in the vocabulary.
        """
        if token not in self.vocab:
            raise DataError(f'the vocabulary lacks the word piece "{token}"')
        return self.vocab[token]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Returns the word pieces of ids; `[unused]` for ids beyond the vocabulary."""
        if self._tokens is None:
            self._tokens = {number: token for token, number in self.vocab.items()}
        return [self._tokens.get(number, "[unused]") for number in ids]

    @property
    def unk_id(self) -> int:
        return self.vocab["[UNK]"]

    @property
    def cls_id(self) -> int:
        return self.vocab["[CLS]"]

    @property
    def sep_id(self) -> int:
        return self.vocab["[SEP]"]

    @property
    def mask_id(self) -> int:
        return self.vocab["[MASK]"]

    def basic(self, text: str) -> list[str]:
        """Splits text into words at spaces and around punctuation and CJK characters, and drops control characters."""
        return list(chain.from_iterable(map(self._split_word, text.translate(self._clean).split())))

    def tokenize(self, text: str) -> list[str]:
        """Returns the word pieces."""
        return [token for word in self.basic(text) for token in self.word_pieces(word)]

    def ids(self, text: str) -> list[int]:
        """Returns the ids of the word pieces."""
        ids: list[int] = []
        for word in self.basic(text):
            ids += self._pieces(word)[1]
        return ids

    def swap_left_right(self, ids: Sequence[int]) -> list[int]:
        """Swaps the pieces `left` and `right`, for a flipped image."""
        left, right = (self.vocab.get(word, self.unk_id) for word in ("left", "right"))
        swapped = {left: right, right: left}
        return [swapped.get(piece, piece) if piece != self.unk_id else piece for piece in ids]

    def word_pieces(self, word: str) -> tuple[str, ...]:
        """Returns the pieces of a word of `basic`: longest match first, or the unknown token."""
        return self._pieces(word)[0]

    def word_ids(self, word: str) -> tuple[int, ...]:
        return self._pieces(word)[1]

    def _split_word_uncached(self, word: str) -> tuple[str, ...]:
        if self._lower_case and word not in self._never_split:
            word = unicodedata.normalize("NFD", word.lower()).translate(self._drop_marks)
        if word in self._never_split:
            return (word,)
        return tuple(word.translate(self._space_punctuation).split())

    def _pieces_uncached(self, word: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        pieces = self._model.tokenize(word)
        return tuple(piece.value for piece in pieces), tuple(piece.id for piece in pieces)
