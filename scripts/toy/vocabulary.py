"""The WordPiece vocabulary of the toy world.

Special tokens have the ids of BERT (`[PAD]` 0, `[UNK]` 100, `[CLS]` 101, `[SEP]` 102, `[MASK]` 103). Single characters
and their continuations follow, so no ASCII text is unknown; then whole words, and `[unusedN]` up to `VOCAB_SIZE`.
"""

from __future__ import annotations

import string
from pathlib import Path

from scripts.toy.world import CATEGORIES, COLORS, write_lines

VOCAB_SIZE = 1100
PERSON_NAMES = "casey riley jessie jackie avery jaime peyton kerry jody kendall frankie pat quinn"
# Not in the vocabulary as whole words, so that texts contain words of several pieces.
SPLIT = {
    "umbrella": ("um", "##brella"),
    "sportsball": ("sports", "##ball"),
    "wearing": ("wear", "##ing"),
    "picture": ("pict", "##ure"),
}
WORDS = """
    a above and are at because below bottom box color colour coloured colours does down each every few
    five four from front has have he here hill his how image in is it its large left light look looked
    looking made many more most near next no not nothing object objects of old on one only or other over
    painted part people person persons photo place placed right same saw scene see seen shape she shirt
    shirts show shown shows side small some stands stood that the their them then there these they thing
    things this those three to together top town two under up was wears were what where which who with yes
    yesterday you zero
"""


def words() -> list[str]:
    """Returns all whole words and the pieces of the split words, sorted and unique."""
    nouns = {word for each in CATEGORIES for word in (each.noun, *each.name.split(), each.vcr_name)}
    pieces = {piece for pair in SPLIT.values() for piece in pair}
    whole = {*WORDS.split(), *PERSON_NAMES.split(), *COLORS, *nouns, *pieces}
    return sorted(whole - set(SPLIT) - set(string.ascii_lowercase))


def vocabulary() -> list[str]:
    """Returns the `VOCAB_SIZE` tokens in the order of their ids."""
    characters = string.ascii_lowercase + string.digits
    used = [*string.punctuation, *characters, *(f"##{character}" for character in characters), *words()]
    specials = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rest = VOCAB_SIZE - len(specials) - len(used)
    assert rest >= 0, f"{-rest} words too many for VOCAB_SIZE {VOCAB_SIZE}"
    return [*specials, *used, *(f"[unused{99 + i}]" for i in range(rest))]


def write_vocabulary(root: Path) -> None:
    write_lines(root / "vocab.txt", vocabulary())
