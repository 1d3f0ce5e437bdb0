"""Files appear whole or not at all, and nobody else's file changes."""

from __future__ import annotations

import os

import pytest

from common.files import link_file, replace_file


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def fill(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fill)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_link_does_not_touch_its_source(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("weights")
    source.chmod(0o400)
    target.write_text("older")
    link_file(source, target)
    assert target.samefile(source)
    assert source.stat().st_mode & 0o777 == 0o400


def test_a_copy_where_there_are_no_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError

    monkeypatch.setattr(os, "link", no_links)
    (tmp_path / "source").write_text("weights")
    link_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "weights"
