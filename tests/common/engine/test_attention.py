"""Attention maps on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.engine.attention import AttentionMaps, AttentionPlaces
from common.errors import DataError

PLACES = AttentionPlaces(
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"139\.npy: cannot be read"),
        (lambda path: path.write_bytes(b"x"), r"139\.npy: not an array of attention maps"),
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
