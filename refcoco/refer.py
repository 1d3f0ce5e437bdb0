"""Referring expressions: the refs pickle of the REFER collections, and its splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from common.data.storage.safe_pickle import read_pickle
from common.data.storage.store import Store
from common.errors import ConfigError, DataError

TEST_SPLITS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("refcocog", "umd"): ("val", "test"),
    ("refcocog", "google"): ("val",),
}
"""Test splits of each dataset and author of the split; `DEFAULT_TEST_SPLITS` for others."""

DEFAULT_TEST_SPLITS = ("val", "testA", "testB")

EXACT_SPLITS = ("train", "val", "testAB", "testBC", "testAC")


class _Sentence(TypedDict):
    sent_id: int
    tokens: Annotated[list[str], Field(min_length=1)]


class Ref(TypedDict):
    """An object and its expressions. Other keys of the pickle are ignored."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]  # the pydantic way for typed dicts

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: Annotated[list[_Sentence], Field(min_length=1)]


_REFS = TypeAdapter(list[Ref])


class Expression(NamedTuple):
    """An expression and the object that it refers to.

    Attributes:
        ref_id: id of the object, shared by its expressions.
        sent_id: id of the expression.
        image_id: COCO image id.
        annotation_id: COCO annotation id of the object.
        text: the words, joined by spaces.
    """

    ref_id: int
    sent_id: int
    image_id: int
    annotation_id: int
    text: str

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"sentence {self.sent_id} of ref {self.ref_id}"


def read_expressions(path: Path, image_set: str, key: str) -> list[Expression]:
    """Reads the expressions of some splits.

    Args:
        path: the refs pickle.
        image_set: names of splits, joined with `+`.
        key: configuration key that names them.

    Returns:
        Expressions in the order of `image_set`, then of the file.

    Raises:
        ConfigError: the file has no such split.
        DataError: the file is invalid.
    """
    refs = _read_refs(path)
    known = sorted({ref["split"] for ref in refs})
    found = []
    for name in image_set.split("+"):
        chosen = [ref for ref in refs if in_split(ref["split"], name)]
        if not chosen:
            choices = [*known, *({"test"} if any("test" in split for split in known) else ())]
            raise ConfigError(
                f"{key}: {image_set}: {path} has no split {name!r}; "
                f"it has {', '.join(dict.fromkeys(choices))}; join several with +"
            )
        found += [
            Expression(ref["ref_id"], one["sent_id"], ref["image_id"], ref["ann_id"], " ".join(one["tokens"]))
            for ref in chosen
            for one in ref["sentences"]
        ]
    return found


def in_split(split: str, name: str) -> bool:
    """Returns whether `split` of the file belongs to the split `name`.

    `test` includes all test splits. `testA` also includes refs of both A and B, which the file calls `testAB`.
    """
    if name in EXACT_SPLITS:
        return split == name
    if name in ("testA", "testB", "testC"):
        return name[-1] in split
    return name == "test" and "test" in split


def _read_refs(path: Path) -> list[Ref]:
    try:
        refs = _REFS.validate_python(read_pickle(Store().read(str(path)), str(path)))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(f"{path}: refs.{where}: {problem['msg']}") from error
    if not refs:
        raise DataError(f"{path}: has no refs")
    ids = {
        "ref": [ref["ref_id"] for ref in refs],
        "sentence": [sentence["sent_id"] for ref in refs for sentence in ref["sentences"]],
    }
    for kind, numbers in ids.items():
        if duplicates := [number for number, count in Counter(numbers).items() if count > 1]:
            raise DataError(f"{path}: duplicate {kind} {duplicates[0]}")
    return refs
