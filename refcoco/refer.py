"""Referring expressions: the refs pickle of the REFER collections and its splits (data spec 1.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
"""What a trained model is tested on, by dataset and who split it; `DEFAULT_TEST_SPLITS` elsewhere."""

DEFAULT_TEST_SPLITS = ("val", "testA", "testB")

EXACT_SPLITS = ("train", "val", "testAB", "testBC", "testAC")


class _Sentence(TypedDict):
    sent_id: int
    tokens: Annotated[list[str], Field(min_length=1)]


class Ref(TypedDict):
    """An object that sentences refer to; other keys of the pickle are not read."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]  # pydantic's way for typed dicts

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: Annotated[list[_Sentence], Field(min_length=1)]


_REFS = TypeAdapter(list[Ref])


class Expression(NamedTuple):
    """One sentence and what it refers to.

    Attributes:
        ref_id: the object, over all its sentences.
        sent_id: the sentence.
        image_id: COCO's number of the picture.
        annotation_id: the object's annotation.
        text: the words, joined by spaces.
    """

    ref_id: int
    sent_id: int
    image_id: int
    annotation_id: int
    text: str

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"sentence {self.sent_id} of ref {self.ref_id}"


def read_expressions(path: Path, image_set: str, key: str) -> list[Expression]:
    """Reads the sentences of some splits.

    Args:
        path: the refs pickle.
        image_set: names of splits, joined with `+`.
        key: the configuration key that says so.

    Returns:
        In the order of `image_set`, then of the file.

    Raises:
        ConfigError: a split is none of the file's.
        DataError: the file cannot be used.
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
    """Whether a ref of `split` belongs to the split that users call `name`.

    `test` takes all test splits; `testA` also what is in A and B, which the file calls `testAB`.
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
    _once((ref["ref_id"] for ref in refs), f"{path}: ref")
    _once((one["sent_id"] for ref in refs for one in ref["sentences"]), f"{path}: sentence")
    return refs


def _once(ids: Iterable[int], what: str) -> None:
    seen: set[int] = set()
    for number in ids:
        if number in seen:
            raise DataError(f"{what} {number} stands twice")
        seen.add(number)
