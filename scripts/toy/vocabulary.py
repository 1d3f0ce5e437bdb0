"""The WordPiece vocabulary of the toy world.

Special tokens sit where BERT has them (`[PAD]` 0, `[UNK]` 100, `[CLS]` 101, `[SEP]` 102, `[MASK]` 103).
Single characters and their continuations follow, so no ASCII text is unknown; then whole words, and as many
`[unusedN]` entries as fill up `VOCAB_SIZE`.
"""

from __future__ import annotations

import string
from pathlib import Path

from scripts.toy.world import COLOURS, KINDS, write_lines

VOCAB_SIZE = 1100
PERSON_NAMES = "casey riley jessie jackie avery jaime peyton kerry jody kendall frankie pat quinn"
# Left out of the words on purpose, so that texts hold words of several pieces.
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
    """All whole words and the pieces of the split ones, sorted, without repeats."""
    nouns = {word for kind in KINDS for word in (kind.noun, *kind.name.split(), kind.vcr_name)}
    pieces = {piece for pair in SPLIT.values() for piece in pair}
    known = {*WORDS.split(), *PERSON_NAMES.split(), *COLOURS, *nouns, *pieces}
    return sorted(known - set(SPLIT) - set(string.ascii_lowercase))


def vocabulary() -> list[str]:
    """The `VOCAB_SIZE` tokens in the order of their ids."""
    characters = string.ascii_lowercase + string.digits
    used = [*string.punctuation, *characters, *(f"##{character}" for character in characters), *words()]
    specials = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rest = VOCAB_SIZE - len(specials) - len(used)
    assert rest >= 0, f"{-rest} words too many for VOCAB_SIZE {VOCAB_SIZE}"
    return [*specials, *used, *(f"[unused{99 + i}]" for i in range(rest))]


def write_vocabulary(root: Path) -> None:
    """Writes `vocab.txt` below `root`."""
    write_lines(root / "vocab.txt", vocabulary())
