"""Attention maps on disk, and the description of their positions."""

from __future__ import annotations

import io
import json
import resource
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.batch import Batch, Lengths, Text
from common.errors import DataError
from common.inference.attention import (
    AttentionMaps,
    SequenceTokens,
    describe_sequences,
    image_ids,
    region_labels,
)

SEQUENCE = SequenceTokens(
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
    return AttentionMaps(SEQUENCE, MAPS).save(tmp_path / "new/folder")


def test_save_and_load(saved):
    assert saved.name == "139.npy"
    assert np.load(saved).dtype == np.float32
    loaded = AttentionMaps.load(saved)
    assert loaded.sequence == SEQUENCE
    assert loaded.sequence.names == ("[CLS]", "café", "[SEP]", "image", "1 cup", "[END]")
    np.testing.assert_array_equal(loaded.maps, MAPS)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["139.json", "139.npy"]


def test_save_full_disk_raises(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))  # the json file is smaller
    try:
        with pytest.raises(DataError, match=r"139\.npy: cannot be written"):
            AttentionMaps(SEQUENCE, MAPS).save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["139.json"]


def test_save_to_file_as_folder_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/139\.json: cannot be written \(.+\)"):
        AttentionMaps(SEQUENCE, MAPS).save(tmp_path / "file")


def test_load_without_upright_defaults_to_false(saved):
    path = saved.with_suffix(".json")
    fields = json.loads(path.read_text())
    assert fields.pop("upright") is False
    path.write_text(json.dumps(fields))
    assert AttentionMaps.load(saved).sequence == SEQUENCE


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zip_file:
        zip_file.writestr("maps.npy", "x")
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
        (lambda path: np.save(path, MAPS.astype(complex)), rf"{NO_ARRAY} \(dtype complex128"),
        (
            lambda path: np.save(path, MAPS[:, :, :5]),
            r"has shape \(2, 3, 5, 6\); expected \(layers, heads, 6, 6\)",
        ),
        (lambda path: np.save(path, MAPS[0]), r"has shape \(3, 6, 6\)"),
        (lambda path: path.with_suffix(".json").unlink(), r"139\.json: cannot be read"),
        (lambda path: path.with_suffix(".json").write_text("{}"), r"139\.json: image_id: Field required"),
    ],
)
def test_load_damaged_file_raises(saved, change, message):
    change(saved)
    with pytest.raises(DataError, match=message):
        AttentionMaps.load(saved)


def test_load_mismatched_files_raises(saved):
    path = saved.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokens": ["[CLS]", "[SEP]"]}))
    with pytest.raises(DataError, match=r"expected \(layers, heads, 5, 5\)"):
        AttentionMaps.load(saved)


def test_describe_sequences():
    """Two images; the model has kept only the first of the two regions of the second image."""
    batch = Batch(
        record_ids=("a", "b"),
        index=torch.arange(2),
        images=None,
        num_boxes=Lengths.of([1, 2]),
        text=Text(
            per_image=Lengths.of([2, 1]),
            lengths=Lengths.of([2, 1, 1]),
            ids=torch.tensor([7, 8, 9, 7]),
            types=torch.zeros(4, dtype=torch.int64),
            tags=torch.zeros(4, dtype=torch.int64),
        ),
        im_info=torch.ones(2, 4),
        boxes=torch.zeros(3, 4),
    )
    encoded = SimpleNamespace(num_regions=[1, 1, 1])
    tokenizer = SimpleNamespace(tokens=lambda ids: [f"t{token_id}" for token_id in ids])
    box, other_box = (1.0, 2.0, 3.0, 4.0), (2.0, 2.0, 4.0, 4.0)
    images = [
        SequenceTokens(
            image_id=name, image="", size=(22, 30), tokens=(), boxes=boxes, labels=labels, upright=True
        )
        for name, boxes, labels in (("a", (box,), ("image",)), ("b", (box, other_box), ("image", "1 cup")))
    ]
    sequences = describe_sequences(batch, encoded, images, tokenizer)
    assert [(item.image_id, item.tokens) for item in sequences] == [
        ("a", ("t7", "t8")), ("a", ("t9",)), ("b", ("t7",)),
    ]  # fmt: skip
    assert {(item.boxes, item.labels, item.upright) for item in sequences} == {((box,), ("image",), True)}


def test_region_labels():
    assert region_labels(range(1, 4), ("cup", ""), whole=True) == ("image", "1 cup", "2", "3")
    assert region_labels([4, 0], ("cup", "dog"), whole=False) == ("4 cup", "0 dog")


def test_image_ids_are_unique():
    assert image_ids(["x/a.jpg", "y/a.jpg", "b.jpg", "x/a.jpg"]) == ["a", "a-2", "b", "a-3"]
    assert image_ids(["a-2", "x/a", "y/a"]) == ["a-2", "a", "a-3"]
    assert image_ids(["x/a", "y/a", "a-2", "z/a", "a-2"]) == ["a", "a-2", "a-2-2", "a-3", "a-2-3"]
