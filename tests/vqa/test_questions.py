"""Questions and annotations, joined by id, and imdb files."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest

from common.errors import ConfigError, DataError
from vqa.config import VQADatasetConfig
from vqa.questions import Questions, read_object_array, shared_parts, split_names


def question(number: int, text: str = "what is it?") -> dict:
    return {"image_id": number // 10, "question_id": number, "question": text}


def annotation(number: int, *answers: str, kind: str = "other") -> dict:
    said = [{"answer": answer, "answer_confidence": "yes"} for answer in answers or ("yes", "no")]
    return {"question_id": number, "image_id": 0, "answer_type": kind, "answers": said}


class Files:
    def __init__(self, folder) -> None:
        self.folder = folder
        (folder / "vqa/vqa_imdb").mkdir(parents=True)
        self.questions = [question(20), question(11), question(30)]
        self.annotations = [annotation(11, "no", "no"), annotation(30, kind="number"), annotation(20, "cat")]

    def open(self, split="val", image_set="val2014", imdb=False) -> Questions:
        for name in image_set.split("+"):
            self.write(f"v2_OpenEnded_mscoco_{name}_questions.json", {"questions": self.questions})
            self.write(f"v2_mscoco_{name}_annotations.json", {"annotations": self.annotations})
        options = {f"{split.upper()}_IMAGE_SET": image_set, "USE_IMDB": imdb}
        return Questions.open(VQADatasetConfig(DATASET_PATH=str(self.folder), **options), split)

    def write(self, name: str, content: object) -> None:
        (self.folder / "vqa" / name).write_text(json.dumps(content))

    def imdb(self, entries: list, name: str = "val2014") -> None:
        array = np.empty(len(entries) + 1, dtype=object)
        array[:] = [{"version": 1}, *entries]
        np.save(self.folder / f"vqa/vqa_imdb/imdb_{name}.npy", array, allow_pickle=True)


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def test_answers_find_their_question(files):
    found = files.open()
    assert found.ids.tolist() == [20, 11, 30]
    assert found.images.tolist() == [2, 1, 3]
    assert [found.answers(index) for index in range(3)] == [["cat"], ["no", "no"], ["yes", "no"]]
    assert found.types == ["other", "other", "number"]
    assert found.said == ("cat", "no", "yes")
    assert found.codes().tolist() == [0, 1, 1, 2, 1]


def test_joined_splits_follow_each_other(files):
    found = files.open("train", "train2014+val2014")
    assert found.ids.tolist() == [20, 11, 30] * 2
    assert found.parts.tolist() == [0, 0, 0, 1, 1, 1]


def test_test_mode_reads_no_annotations(files):
    files.annotations = []
    found = files.open("test", "test2015")
    assert (len(found), found.said, found.answers(0)) == (3, (), [])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: f.annotations.pop(),
            "val2014_annotations.json: has no answers to question 20 of .*questions",
        ),
        (
            lambda f: f.questions.pop(),
            "val2014_annotations.json: question 30 is not in .*val2014_questions.json",
        ),
        (lambda f: f.questions.append(question(11)), "val2014_questions.json: duplicate question 11"),
        (lambda f: f.annotations.append(annotation(30)), "annotations.json: duplicate question 30"),
        (lambda f: f.questions.append(question(9, " \t")), "val2014_questions.json: question 9 is empty"),
        (lambda f: f.questions.clear(), "questions.json: questions: List should have at least 1 item"),
        (lambda f: f.questions[1].pop("image_id"), "questions.json: questions.1.image_id: Field required"),
        (lambda f: f.questions[1].update(question_id="7"), "questions.1.question_id: .*valid integer"),
        (lambda f: f.annotations[2].update(answers=[]), "annotations.2.answers: .* at least 1 item"),
    ],
)
def test_files_that_do_not_fit(files, spoil, message):
    spoil(files)
    with pytest.raises(DataError, match=message):
        files.open()


@pytest.mark.parametrize(
    ("split", "image_set", "imdb", "message"),
    [
        ("val", "val2015", False, "DATASET.VAL_IMAGE_SET: val2015: no such split; did you mean val2014"),
        ("train", "train2014+", False, "DATASET.TRAIN_IMAGE_SET: : no such split; use train2014, val2014"),
        ("val", "test2015", False, "DATASET.VAL_IMAGE_SET: test2015: it has no answers"),
        ("test", "test-dev2015", True, "DATASET.TEST_IMAGE_SET: test-dev2015: it has no imdb file"),
        ("train", "valminusminival2014", True, "valminusminival2014: it has no imdb file"),
    ],
)
def test_splits_that_cannot_be_used(files, split, image_set, imdb, message):
    with pytest.raises(ConfigError, match=message):
        split_names(
            VQADatasetConfig(**{f"{split.upper()}_IMAGE_SET": image_set, "USE_IMDB": imdb}),
            split,
        )


def test_every_split_can_be_tested():
    names = "train2014+val2014+valminusminival2014+minival2014+test-dev2015+test2015"
    config = VQADatasetConfig(TEST_IMAGE_SET=names, USE_IMDB=False)
    assert split_names(config, "test") == names.split("+")


def test_shared_parts():
    assert shared_parts("train2014+val2014", "minival2014") == ["minival2014"]
    assert shared_parts("train2014+valminusminival2014", "minival2014") == []
    assert shared_parts("train2014", "train2014") == ["train2014"]


def entry(number: int, **changes) -> dict:
    return {
        "image_id": number,
        "question_id": number,
        "question_tokens": ["what", "is", "it"],
        "answers": ["yes", "no"],
        **changes,
    }


def test_imdb(files):
    files.imdb([entry(1), entry(2, question_tokens=["left", "?"], answers=["a-b"])])
    found = files.open(imdb=True)
    assert found.texts == ["what is it", "left ?"]
    assert found.answers(1) == ["a-b"]
    assert found.types == ["", ""]


@pytest.mark.parametrize("protocol", [2, 4])
def test_imdb_of_other_numpy_versions(files, protocol):
    array = np.empty(2, dtype=object)
    array[:] = [{}, entry(1)]
    path = files.folder / "vqa/vqa_imdb/imdb_val2014.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2,)})
        file.write(pickle.dumps(array, protocol=protocol).replace(b"numpy._core", b"numpy.core") if protocol == 2
                   else pickle.dumps(array, protocol=protocol))  # fmt: skip
    assert files.open(imdb=True).ids.tolist() == [1]


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([Evil()], r"imdb_val2014.npy: refused: the pickle asks for \w+.system"),
        ([], "imdb_val2014.npy: .*at least 1 item"),
        ([entry(1), entry(1)], "imdb_val2014.npy: duplicate question 1"),
        ([entry(1, question_tokens=[])], "imdb_val2014.npy: question 1 is empty"),
        ([entry(1), {"image_id": 3}], "imdb_val2014.npy: 1.question_id: Field required"),
        ([{k: v for k, v in entry(5).items() if k != "answers"}], "has no answers to question 5"),
    ],
)
def test_wrong_imdb_files(files, entries, message):
    files.imdb(entries)
    with pytest.raises(DataError, match=message):
        files.open(imdb=True)


def test_files_that_are_no_object_arrays(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(b"numbers")
    with pytest.raises(DataError, match=r"x.npy: not a readable npy file"):
        read_object_array(str(path))
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match=r"x.npy: expected an array of objects"):
        read_object_array(str(path))
    np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"x.npy: not a readable pickle"):
        read_object_array(str(path))
    with pytest.raises(DataError, match=r"gone.npy: cannot be read"):
        read_object_array(str(tmp_path / "gone.npy"))
