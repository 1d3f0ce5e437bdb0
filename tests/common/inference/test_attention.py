"""Attention maps on disk, and what stands at their places."""

from __future__ import annotations

import io
import json
import resource
import zipfile
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.batch import Batch, Lengths, Text
from common.data.images import size_info
from common.errors import DataError
from common.inference.attention import (
    AttentionMaps,
    SequenceSource,
    SequenceTokens,
    describe_sequences,
    image_ids,
)

PLACES = SequenceTokens(
    image_id="139",
    image="139.jpg",
    size=(40, 30),
    tokens=("[CLS]", "café", "[SEP]"),
    boxes=((0, 0, 39, 29), (1, 2, 3, 4)),
    labels=("image", "1 cup"),
)
MAPS = np.random.default_rng(0).random((2, 3, 6, 6), dtype=np.float32)


@pytest.fixture
def saved(tmp_path):
    return AttentionMaps(PLACES, MAPS).save(tmp_path)


def test_there_and_back(saved):
    assert saved.name == "139.npy"
    assert np.load(saved).dtype == np.float32
    found = AttentionMaps.load(saved)
    assert found.places == PLACES
    assert found.places.names == ("[CLS]", "café", "[SEP]", "image", "1 cup", "[END]")
    np.testing.assert_array_equal(found.maps, MAPS)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["139.json", "139.npy"]


def test_a_missing_folder_is_made(tmp_path):
    assert AttentionMaps(PLACES, MAPS).save(tmp_path / "a/b").exists()


def test_a_disk_that_is_full(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))  # the json has less
    try:
        with pytest.raises(DataError, match=r"139\.npy: cannot be written"):
            AttentionMaps(PLACES, MAPS).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["139.json"]


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/139\.json: cannot be written \(.+\)"):
        AttentionMaps(PLACES, MAPS).save(tmp_path / "file")


def test_files_of_older_versions_are_of_pictures_as_they_are_stored(saved):
    beside = saved.with_suffix(".json")
    fields = json.loads(beside.read_text())
    assert fields.pop("upright") is False
    beside.write_text(json.dumps(fields))
    assert AttentionMaps.load(saved).places == PLACES


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("maps.npy", "x")
    return file.getvalue()


NO_ARRAY = r"139\.npy: not an array of attention maps"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"139\.npy: cannot be read"),
        (lambda path: path.write_bytes(b"x"), NO_ARRAY),
        (lambda path: path.write_bytes(b""), NO_ARRAY),
        (lambda path: path.write_bytes(b"PK\3\4 and more"), NO_ARRAY),
        (lambda path: path.write_bytes(archive()), NO_ARRAY),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), NO_ARRAY),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"(2, 3, 6, 6)", b"(2, 3, 6, 6(")),
            NO_ARRAY,
        ),
        (lambda path: np.save(path, MAPS.astype(str)), NO_ARRAY),
        (lambda path: np.save(path, MAPS.astype(complex)), rf"{NO_ARRAY} \(it holds complex128"),
        (
            lambda path: np.save(path, MAPS[:, :, :5]),
            r"has the shape \(2, 3, 5, 6\); expected \(layers, heads, 6, 6\)",
        ),
        (lambda path: np.save(path, MAPS[0]), r"has the shape \(3, 6, 6\)"),
        (lambda path: path.with_suffix(".json").unlink(), r"139\.json: cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{}"), r"139\.json: image_id: Field required"),
    ],
)
def test_damage(saved, change, message):
    change(saved)
    with pytest.raises(DataError, match=message):
        AttentionMaps.load(saved)


def test_files_of_two_pictures(saved):
    beside = saved.with_suffix(".json")
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "tokens": ["[CLS]", "[SEP]"]}))
    with pytest.raises(DataError, match=r"expected \(layers, heads, 5, 5\)"):
        AttentionMaps.load(saved)


def test_what_stands_at_the_places():
    """Two pictures; the second has two boxes, of which the network saw the first."""
    first, second = size_info((22, 30), (64, 87)), size_info((10, 10), (20, 20))
    assert (first[1] / first[3]).item() < 30  # rounding errors
    batch = Batch(
        record_ids=("a", "b"),
        index=torch.arange(2),
        images=None,
        num_boxes=Lengths.of([1, 2]),
        text=Text(
            per_image=Lengths.of([1, 1]),
            lengths=Lengths.of([2, 1]),
            ids=torch.tensor([7, 8, 9]),
            types=torch.zeros(3, dtype=torch.int64),
            tags=torch.zeros(3, dtype=torch.int64),
        ),
        im_info=torch.stack([first, second]),
        boxes=torch.tensor([[0.0, 0, 63, 86], [2, 4, 6, 8], [4, 4, 8, 8]]),
    )
    encoded = SimpleNamespace(num_regions=[1, 1])
    tokenizer = SimpleNamespace(tokens=lambda ids: [f"t{number}" for number in ids])
    named = [
        SequenceSource("a", "a.jpg", count(1), ("car",)),
        SequenceSource("b", "", count(1), ("cup", "dog")),
    ]
    one, other = describe_sequences(batch, encoded, named, tokenizer, whole=False, upright=True)
    assert (one.size, one.tokens, one.labels, one.upright) == ((22, 30), ("t7", "t8"), ("1 car",), True)
    assert (other.size, other.tokens, other.boxes) == ((10, 10), ("t9",), ((1, 2, 3, 4),))
    assert (other.labels, other.image_id, other.image) == (("1 cup",), "b", "")
    whole = describe_sequences(batch, encoded, named, tokenizer, whole=True)
    assert [(places.labels, places.upright) for places in whole] == [(("image",), False)] * 2


def test_names_are_unique():
    assert image_ids(["x/a.jpg", "y/a.jpg", "b.jpg", "x/a.jpg"]) == ["a", "a-2", "b", "a-3"]
    assert image_ids(["a-2", "x/a", "y/a"]) == ["a-2", "a", "a-3"]
    assert image_ids(["x/a", "y/a", "a-2", "z/a", "a-2"]) == ["a", "a-2", "a-2-2", "a-3", "a-2-3"]
