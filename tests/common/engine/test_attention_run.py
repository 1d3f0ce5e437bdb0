"""Names of the files of a split; the rest is tested with the commands (`tests/pretrain/test_predict.py`)."""

from common.engine.attention_run import image_ids


def test_names_are_unique():
    assert image_ids(["x/a.jpg", "y/a.jpg", "b.jpg", "x/a.jpg"]) == ["a", "a-2", "b", "a-3"]
    assert image_ids(["a-2", "x/a", "y/a"]) == ["a-2", "a", "a-3"]
    assert image_ids(["x/a", "y/a", "a-2", "z/a", "a-2"]) == ["a", "a-2", "a-2-2", "a-3", "a-2-3"]
