"""The refs pickle and its splits."""

from __future__ import annotations

import os
import pickle

import pytest

from common.errors import ConfigError, DataError
from refcoco.refer import in_split, read_expressions

KEY = "DATASET.VAL_IMAGE_SET"


def ref(number: int, split: str, *texts: str) -> dict:
    return {
        "ref_id": number,
        "ann_id": 100 + number,
        "image_id": 9,
        "category_id": 1,
        "split": split,
        "file_name": "x",
        "sentences": [
            {"sent_id": 10 * number + i, "raw": text, "sent": text, "tokens": text.split()}
            for i, text in enumerate(texts)
        ],
    }


REFS = [
    ref(0, "val", "red cup", "cup"),
    ref(1, "train", "dog"),
    ref(2, "testA", "man"),
    ref(3, "testB", "car"),
]


@pytest.fixture
def path(tmp_path):
    def write(refs=REFS, protocol=0):
        file = tmp_path / "refs(unc).p"
        file.write_bytes(pickle.dumps(refs, protocol=protocol))
        return file

    return write


@pytest.mark.parametrize(
    ("image_set", "sentences"),
    [
        ("val", [0, 1]),
        ("train+val", [10, 0, 1]),
        ("testA", [20]),
        ("testB", [30]),
        ("test", [20, 30]),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_one_record_for_every_sentence_of_a_split(path, image_set, sentences, protocol):
    found = read_expressions(path(protocol=protocol), image_set, KEY)
    assert [one.sent_id for one in found] == sentences


def test_what_a_sentence_refers_to(path):
    first = read_expressions(path(), "val", KEY)[0]
    assert first == (0, 0, 9, 100, "red cup")
    assert first.name == "sentence 0 of ref 0"


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", {"train"}),
        ("val", {"val"}),
        ("testA", {"testA", "test"}),
        ("testAB", {"testA", "testB", "testAB", "test"}),
        ("test", {"test"}),
    ],
)
def test_splits(split, names):
    known = ("train", "val", "test", "testA", "testB", "testC", "testAB", "testAC", "testBC", "other")
    assert {name for name in known if in_split(split, name)} == names


def test_python_2_byte_strings_of_any_language(tmp_path):
    file = tmp_path / "refs.p"
    text = pickle.dumps([ref(0, "val", "cafe")], protocol=0).replace(b"Vcafe", b"S'caf\\xe9'")
    file.write_bytes(text)
    assert read_expressions(file, "val", KEY)[0].text == "caf\xe9"


@pytest.mark.parametrize("name", ["testC", "minival", "testAB", ""])
def test_an_unknown_split_names_the_others(path, name):
    message = rf"DATASET.VAL_IMAGE_SET: val\+{name}: .*no split '{name}'; it has testA, testB, train, val, test; join"
    with pytest.raises(ConfigError, match=message):
        read_expressions(path(), f"val+{name}", KEY)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        (
            [*REFS, Evil()],
            r"refs\(unc\).p: refused: the pickle asks for (posix|nt|os).system; expected plain",
        ),
        ([], "has no refs"),
        ({"refs": REFS}, "refs.: Input should be a valid list"),
        ([REFS[0], {**REFS[1], "ann_id": "1"}], "refs.1.ann_id: Input should be a valid integer"),
        ([{**REFS[0], "sentences": []}], "refs.0.sentences: List should have at least 1"),
        ([ref(0, "val", "")], "refs.0.sentences.0.tokens: List should have at least 1"),
        ([REFS[0], REFS[0]], "duplicate ref 0"),
        ([REFS[0], {**REFS[0], "ref_id": 5}], "duplicate sentence 0"),
    ],
)
def test_a_file_that_is_wrong(path, refs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        read_expressions(path(refs), "val", KEY)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("data", [b"", b"\x80", b"plain text", pickle.dumps(REFS)[:40]])
def test_a_file_that_is_no_pickle(tmp_path, data):
    file = tmp_path / "refs.p"
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"refs\.p: not a readable pickle"):
        read_expressions(file, "val", KEY)
