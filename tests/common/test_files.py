"""Files appear whole or not at all, and nobody else's file changes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from common.files import link_file, remove_leftovers, replace_file, save_array, writing


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


def test_errors_of_writing_name_the_file(tmp_path):
    for error, message in (
        (OSError(errno.ENOSPC, "No space left on device"), r"x: cannot be written \(No space .*\); go on$"),
        (OSError("8 requested and 3 written"), r"x: cannot be written \(8 requested and 3 written\); go on$"),
    ):
        with pytest.raises(DataError, match=message), writing(tmp_path / "x", "; go on"):
            raise error


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


def test_file_and_folder_are_flushed_around_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.replace

    def flush(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def replace(self, target):
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", replace)
    replace_file(tmp_path / "x", lambda temporary: temporary.write_text("new"))
    assert events == [str(tmp_path / f".x.{os.getpid()}.tmp"), "rename", str(tmp_path)]


def test_what_killed_processes_left_is_removed(tmp_path):
    kept = {"net-0000.model", ".net-0000.model", ".other-0000.model.7.tmp", "net-0001.model.7.tmp"}
    for name in (*kept, ".net-0000.model.7.tmp", ".net-latest.model.123.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "net-*.model")
    assert set(os.listdir(tmp_path)) == kept


def test_an_array_under_any_name(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    save_array(tmp_path / "x", values)
    np.testing.assert_array_equal(np.load(tmp_path / "x"), values)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_heard_of():
    with pytest.raises(OSError, match="No space left"):
        save_array(Path("/dev/full"), np.zeros(4))
