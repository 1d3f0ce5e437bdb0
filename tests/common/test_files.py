from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError, DataError
from common.files import (
    ensure_writable_dir,
    link_file,
    remove_leftovers,
    replace_file,
    save_array,
    writing,
)


def test_ensure_writable_dir(tmp_path):
    assert ensure_writable_dir(tmp_path / "a/b", "--out").is_dir()
    (tmp_path / "file").touch()
    message = r"^--out: .*/file/x: not writable: Not a directory; try again$"
    with pytest.raises(ConfigError, match=message):
        ensure_writable_dir(tmp_path / "file/x", "--out", "; try again")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_replace_file_keeps_the_old_file_if_writing_fails(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_replace_file_flushes_file_and_folder_around_the_rename(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.replace

    def record_fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def record_rename(self, target):
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_rename)
    replace_file(tmp_path / "x", lambda temporary: temporary.write_text("new"))
    assert events == [str(tmp_path / f".x.{os.getpid()}.tmp"), "rename", str(tmp_path)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("8 requested and 3 written"), "8 requested and 3 written"),
    ],
)
def test_writing_names_the_file(tmp_path, error, reason):
    with (
        pytest.raises(DataError, match=rf"x: cannot be written \({reason}\); continue$"),
        writing(tmp_path / "x", "; continue"),
    ):
        raise error


@pytest.mark.parametrize("has_links", [True, False])
def test_link_file_does_not_change_its_source(tmp_path, monkeypatch, has_links):
    def fail(*_):
        raise OSError

    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("weights")
    source.chmod(0o400)
    target.write_text("older")
    if not has_links:
        monkeypatch.setattr(os, "link", fail)
    link_file(source, target)
    assert target.samefile(source) == has_links
    assert target.read_text() == "weights"
    assert source.stat().st_mode & 0o777 == 0o400


def test_remove_leftovers_removes_temporary_files_only(tmp_path):
    kept = {"net-0000.model", ".net-0000.model", ".other-0000.model.7.tmp", "net-0001.model.7.tmp"}
    for name in (*kept, ".net-0000.model.7.tmp", ".net-latest.model.123.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "net-*.model")
    assert set(os.listdir(tmp_path)) == kept


def test_save_array_keeps_the_file_name(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    save_array(tmp_path / "x", values)
    np.testing.assert_array_equal(np.load(tmp_path / "x"), values)
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_save_array_notices_a_full_disk():
    with pytest.raises(OSError, match="No space left"):
        save_array(Path("/dev/full"), np.zeros(4))
