import base64
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from common import progress
from common.data.regions.packed_format import HEADER_BYTES, PackedRegions
from common.errors import DataError, UsageError
from scripts import pack_regions

pytestmark = pytest.mark.integration

SCRIPT = Path(pack_regions.__file__)
F = 4


def encode(values):
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def record(number, columns=3, count=1):
    """Regions whose numbers all are `number`."""
    arrays = {"boxes": 4, "features": F, "classes": columns}
    return json.dumps(
        {"num_boxes": count, **{key: encode([number] * width * count) for key, width in arrays.items()}}
    )


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "set"
    made.mkdir()
    for number in range(6):
        (made / f"{number}.json").write_text(record(number))
    (made / "notes.txt").write_text("no region file")
    return made


def run(*arguments):
    pack_regions.main([*map(str, arguments), "--feature-dim", str(F)])


def numbers(path, images):
    packed = PackedRegions(str(path))
    return [
        packed.read(image, F, features=True, class_scores=False).features[0, 0].item() for image in images
    ]


def test_packs_folders_and_archives(tmp_path, folder, caplog):
    caplog.set_level(logging.INFO)
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("in/77.json", record(77))
        file.writestr("other/88.json", record(88))
    out = tmp_path / "out"
    run(folder, archive, "--out", out, "--classes")
    assert numbers(out, [0, 5, 77, 88]) == [0, 5, 77, 88]
    packed = PackedRegions(str(out))
    assert packed.read(77, F, features=False, class_scores=True).class_scores.tolist() == [[77, 77, 77]]
    header = packed.header
    assert (header.sources, header.count, header.columns, header.dtype) == (("more", "set"), 8, 3, "float32")
    assert not (tmp_path / "out.partial").exists()
    assert caplog.messages[-1].startswith(f"{out}: 8 images, 0 skipped, ")
    run(f"{archive}@/in", "--out", tmp_path / "in", "--dtype", "float16")
    assert numbers(tmp_path / "in", [77]) == [77]
    assert PackedRegions(str(tmp_path / "in")).header.count == 1


def test_the_same_sources_are_the_same_bytes(tmp_path, folder):
    run(folder, "--out", tmp_path / "a")
    run(folder, "--out", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_broken_file_names_itself_or_is_left_out(tmp_path, folder, caplog):
    (folder / "2.json").write_bytes(b"")
    (folder / "4.json").write_text(record(1e6))
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"2\.json: expected json in UTF-8, but it is empty \(--on-bad skip"):
        run(folder, "--out", out, "--dtype", "float16")
    assert not out.exists()
    run(folder, "--out", out, "--dtype", "float16", "--on-bad", "skip")
    assert [message for message in caplog.messages if message.startswith("skipped")] == [
        f"skipped: {folder}/2.json: expected json in UTF-8, but it is empty",
        f"skipped: {folder}/4.json: holds numbers too large for torch.float16; pack as float32",
    ]
    assert numbers(out, [0, 1, 3, 5]) == [0, 1, 3, 5]
    assert PackedRegions(str(out)).header.left_out == 2
    with pytest.raises(DataError, match="image 2: not in this file"):
        numbers(out, [2])


def test_a_repaired_file_continues(tmp_path, folder, caplog):
    caplog.set_level(logging.INFO)
    (folder / "4.json").write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"4\.json"):
        run(folder, "--out", out)
    (folder / "4.json").write_text(record(4))
    run(folder, "--out", out)
    assert f"{out}.partial: continuing after 4 images" in caplog.messages
    assert numbers(out, range(6)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("columns", [2, 4])
def test_class_scores_are_equally_wide(tmp_path, folder, columns):
    (folder / "3.json").write_text(record(3, columns))
    message = rf"3\.json: classes has {columns} columns; earlier files have 3"
    with pytest.raises(DataError, match=message):
        run(folder, "--out", tmp_path / "out", "--classes")
    with pytest.raises(DataError, match=message):  # also after a new start
        run(folder, "--out", tmp_path / "out", "--classes")


def test_cut_anywhere_it_continues_to_the_same_bytes(tmp_path, folder):
    run(folder, "--out", tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    for size in [0, 100, *range(HEADER_BYTES, len(whole) + 1, 13), len(whole)]:
        partial.write_bytes(whole[:size])
        run(folder, "--out", out)
        assert out.read_bytes() == whole
        out.unlink()


def test_what_a_crash_left_as_zeros_is_packed_again(tmp_path, folder):
    run(folder, "--out", tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for good in range(HEADER_BYTES, len(whole), 8):
        (tmp_path / "out.partial").write_bytes(whole[:good] + bytes(len(whole) - good + 100))
        run(folder, "--out", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == whole
        (tmp_path / "out").unlink()


def command(*arguments):
    return [sys.executable, str(SCRIPT), *map(str, arguments), "--feature-dim", str(F)]


def test_a_killed_process_is_continued(tmp_path, folder, caplog):
    caplog.set_level(logging.INFO)
    for number in range(6):  # more than a write buffer holds
        (folder / f"{number}.json").write_text(record(number, count=1000))
    fifo = folder / "6.json"
    os.mkfifo(fifo)  # the packer waits here, after six pictures
    process = subprocess.Popen(command(folder, "--out", tmp_path / "out"), stdout=subprocess.DEVNULL)
    with fifo.open("w"):  # opens when the packer reads
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").exists()
    fifo.unlink()
    fifo.write_text(record(6))
    run(folder, "--out", tmp_path / "out")
    assert any(message.endswith("out.partial: continuing after 6 images") for message in caplog.messages)
    assert numbers(tmp_path / "out", range(7)) == [0, 1, 2, 3, 4, 5, 6]


def test_a_full_disk_leaves_no_file(tmp_path, folder):
    def little_space():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER_BYTES + 250, HEADER_BYTES + 250))

    done = subprocess.run(
        command(folder, "--out", tmp_path / "out"),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=little_space,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path}/out.partial: cannot be written (File too large); "
        "once it can, rerun the same command to resume\n"
    )
    assert not (tmp_path / "out").exists()
    run(folder, "--out", tmp_path / "out")
    assert numbers(tmp_path / "out", range(6)) == [0, 1, 2, 3, 4, 5]


def test_refuses_what_cannot_be_meant(tmp_path, folder):
    out = tmp_path / "out"
    out.write_text("precious")
    with pytest.raises(UsageError, match="out: already exists"):
        run(folder, "--out", out)
    assert out.read_text() == "precious"
    out.unlink()
    twin = tmp_path / "twin"
    twin.mkdir()
    with pytest.raises(DataError, match="twin: has no json files"):
        run(twin, "--out", out)
    (twin / "3.json").write_text(record(3))
    with pytest.raises(UsageError, match=r"twin/3\.json and .*set/3\.json have the same id"):
        run(folder, twin, "--out", out)
    with pytest.raises(DataError, match="none: no such folder"):
        run(tmp_path / "none", "--out", out)
    with pytest.raises(DataError, match=r"partial: cannot be written \(No such file or directory\)"):
        run(folder, "--out", tmp_path / "none" / "out")
    (twin / "3.json").write_text("")
    with pytest.raises(DataError, match="twin: none of 1 region files can be used"):
        run(twin, "--out", out, "--on-bad", "skip")


def test_a_partial_file_of_something_else_is_kept(tmp_path, folder):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    (folder / "9.json").write_text("")
    with pytest.raises(DataError, match=r"9\.json"):
        run(folder, "--out", out)
    begun = partial.read_bytes()
    with pytest.raises(UsageError, match=r"out: was started with other arguments: --dtype; use"):
        run(folder, "--out", out, "--dtype", "float16")
    (folder / "2.json").unlink()
    with pytest.raises(UsageError, match="holds 2, which no source contains"):
        run(folder, "--out", out)
    with FileLock(f"{partial}.lock"), pytest.raises(UsageError, match="another process is writing"):
        run(folder, "--out", out)
    assert partial.read_bytes() == begun
    partial.write_text("x" * HEADER_BYTES)
    with pytest.raises(DataError, match="not a file that scripts/pack_regions"):
        run(folder, "--out", out)


def test_a_log_line_now_and_then(tmp_path, folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    run(folder, "--out", tmp_path / "out")
    assert "3 of 6 images" in caplog.messages
