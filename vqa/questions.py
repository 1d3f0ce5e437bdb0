"""Questions and answers of VQA v2, from the official json files or from imdb files."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from common.config.fields import Split
from common.data.storage.safe_pickle import read_pickle
from common.data.storage.store import Store, parse_model
from common.errors import ConfigError, DataError, did_you_mean
from vqa.config import VQADatasetConfig

_TRAINVAL = {
    "10-100ada": "trainval2014_resnet101_faster_rcnn_genome",
    "36": "trainval_resnet101_faster_rcnn_genome_36",
}
_TEST = {
    "10-100ada": "test2015_resnet101_faster_rcnn_genome",
    "36": "test2015_resnet101_faster_rcnn_genome_36",
}


class Source(NamedTuple):
    """File names of a split.

    Attributes:
        images: image folder, and prefix of image names.
        sizes: COCO file with the image sizes.
        regions: folder of region files, by `DATASET.BOXES`.
        annotated: whether there are answers.
        imdb: whether there is an imdb file.
    """

    images: str
    sizes: str
    regions: dict[str, str]
    annotated: bool = True
    imdb: bool = True


SOURCES = {
    "train2014": Source("train2014", "instances_train2014.json", _TRAINVAL),
    "val2014": Source("val2014", "instances_val2014.json", _TRAINVAL),
    "minival2014": Source("val2014", "instances_val2014.json", _TRAINVAL),
    "valminusminival2014": Source("val2014", "instances_val2014.json", _TRAINVAL, imdb=False),
    "test2015": Source("test2015", "image_info_test2015.json", _TEST, annotated=False),
    "test-dev2015": Source("test2015", "image_info_test2015.json", _TEST, annotated=False, imdb=False),
}
_HALVES = {"val2014": ("minival2014", "valminusminival2014")}


def shared_parts(one: str, other: str) -> list[str]:
    """Returns the common splits of two image sets, each joined with +."""
    first, second = (
        {half for name in image_set.split("+") for half in _HALVES.get(name, (name,))}
        for image_set in (one, other)
    )
    return sorted(first & second)


def split_names(data: VQADatasetConfig, split: Split) -> list[str]:
    """Returns the parts of `{SPLIT}_IMAGE_SET`.

    Raises:
        ConfigError: a part is not a split, or has no files for this use.
    """
    key, names = f"DATASET.{split.upper()}_IMAGE_SET", data.image_set(split).split("+")
    usable = [
        name
        for name, source in SOURCES.items()
        if (source.annotated or split == "test") and (source.imdb or not data.USE_IMDB)
    ]
    for name in names:
        if name in usable:
            continue
        why = f"no such split{did_you_mean(name, usable)}"
        if name in SOURCES:
            lacks = "no answers" if SOURCES[name].imdb or not data.USE_IMDB else "no imdb file"
            why = f"it has {lacks}"
        raise ConfigError(f"{key}: {name}: {why}; use {', '.join(usable)}, or several joined with +")
    return names


class _Question(TypedDict):
    image_id: int
    question_id: int
    question: str


class _QuestionFile(BaseModel):
    model_config = ConfigDict(strict=True)

    questions: Annotated[list[_Question], Field(min_length=1)]


class _Answer(TypedDict):
    answer: str


Answers = Annotated[list[_Answer], Field(min_length=1)]


class _Annotation(TypedDict):
    question_id: int
    answers: Answers
    answer_type: NotRequired[str]


class _AnnotationFile(BaseModel):
    model_config = ConfigDict(strict=True)

    annotations: list[_Annotation]


class _ImdbEntry(TypedDict):
    image_id: int
    question_id: int
    question_tokens: list[str]
    answers: NotRequired[Annotated[list[str], Field(min_length=1)]]


class Row(NamedTuple):
    """A question and the answers of all annotators; no answers in test mode."""

    question_id: int
    image_id: int
    text: str
    answers: Sequence[str] = ()
    answer_type: str = ""


class Questions:
    """The questions of some splits, in arrays that loader workers share.

    Attributes:
        ids: (N,) int64 question ids.
        images: (N,) int64 image ids.
        parts: (N,) int64 index of the joined split of each question.
        texts: the questions.
        types: answer types: yes/no, number, other; empty if unknown.
        said: the distinct answers of all annotators.
    """

    def __init__(self, parts: Iterable[Iterable[Row]]) -> None:
        ids, images, numbers, ends, codes = (array("q") for _ in range(5))
        self.texts: list[str] = []
        self.types: list[str] = []
        distinct: dict[str, int] = {}
        for number, rows in enumerate(parts):
            for row in rows:
                ids.append(row.question_id)
                images.append(row.image_id)
                numbers.append(number)
                codes.extend(distinct.setdefault(answer, len(distinct)) for answer in row.answers)
                ends.append(len(codes))
                self.texts.append(row.text)
                self.types.append(row.answer_type)
        self.ids, self.images, self.parts = np.array(ids), np.array(images), np.array(numbers)
        self._ends = np.array(ends)
        self._codes = np.array(codes)
        self.said = tuple(distinct)

    def __len__(self) -> int:
        return len(self.ids)

    def codes(self, index: int | slice = slice(None)) -> NDArray[np.int64]:
        """Returns (n,) indices into `said` of the answers to one question, or to all."""
        if isinstance(index, slice):
            return self._codes
        return self._codes[self._ends[index - 1] if index else 0 : self._ends[index]]

    def answers(self, index: int) -> list[str]:
        return [self.said[code] for code in self.codes(index)]

    @classmethod
    def open(cls, data: VQADatasetConfig, split: Split) -> Questions:
        """Reads the questions of a split, with answers except in test mode.

        Raises:
            ConfigError: the split is unknown.
            DataError: a file is missing, or a record is invalid.
        """
        read = _imdb_rows if data.USE_IMDB else _official_rows
        names = split_names(data, split)
        return cls(read(data.path("vqa"), name, split != "test") for name in names)


def _checked(path: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Yields rows that have a text and a unique id."""
    seen: set[int] = set()
    for row in rows:
        if row.question_id in seen:
            raise DataError(f"{path}: duplicate question {row.question_id}")
        if not row.text.strip():
            raise DataError(f"{path}: question {row.question_id} is empty")
        seen.add(row.question_id)
        yield row


def _official_rows(folder: str, name: str, annotated: bool) -> Iterator[Row]:
    """Yields rows of the official json files, joined by question id."""
    path = f"{folder}/v2_OpenEnded_mscoco_{name}_questions.json"
    questions = parse_model(_QuestionFile, Store().read(path), path).questions
    rows = _checked(path, (Row(one["question_id"], one["image_id"], one["question"]) for one in questions))
    if not annotated:
        yield from rows
        return
    answers_path = f"{folder}/v2_mscoco_{name}_annotations.json"
    annotations: dict[int, _Annotation] = {}
    for one in parse_model(_AnnotationFile, Store().read(answers_path), answers_path).annotations:
        if annotations.setdefault(one["question_id"], one) is not one:
            raise DataError(f"{answers_path}: duplicate question {one['question_id']}")
    for row in rows:
        found = annotations.pop(row.question_id, None)
        if found is None:
            raise DataError(f"{answers_path}: has no answers to question {row.question_id} of {path}")
        said = [answer["answer"] for answer in found["answers"]]
        yield row._replace(answers=said, answer_type=found.get("answer_type", ""))
    if annotations:
        raise DataError(f"{answers_path}: question {next(iter(annotations))} is not in {path}")


def _latin1(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")


# Globals that pickles of NumPy arrays refer to, with the names of NumPy 1 and 2.
_ARRAY_PARTS = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": _latin1,
    **{
        f"numpy.{core}.multiarray._reconstruct": np.empty(0).__reduce__()[0]
        for core in ("core", "_core")
    },
}  # fmt: skip


def read_object_array(path: str) -> NDArray[Any]:
    """Reads a `.npy` file of plain Python values. Its pickle cannot run code.

    Raises:
        DataError: the file is missing, damaged, or refers to code.
    """
    file = BytesIO(Store().read(path))
    try:
        version = np.lib.format.read_magic(file)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        dtype = header(file)[2]
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: not a readable npy file ({error})") from error
    content = read_pickle(file.read(), path, _ARRAY_PARTS) if dtype.hasobject else None
    if not isinstance(content, np.ndarray) or content.ndim != 1:
        raise DataError(f"{path}: expected an array of objects, one for each question")
    return content


def _imdb_rows(folder: str, name: str, annotated: bool) -> Iterator[Row]:
    """Yields rows of an imdb file, whose first entry is a header."""
    path = f"{folder}/vqa_imdb/imdb_{name}.npy"
    entries = read_object_array(path)[1:].tolist()
    try:
        found = TypeAdapter(Annotated[list[_ImdbEntry], Field(min_length=1)]).validate_python(entries)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if annotated:
        for one in found:
            if "answers" not in one:
                raise DataError(f"{path}: has no answers to question {one['question_id']}")
    yield from _checked(
        path,
        (
            Row(
                one["question_id"],
                one["image_id"],
                " ".join(one["question_tokens"]),
                one.get("answers", ()) if annotated else (),
            )
            for one in found
        ),
    )
