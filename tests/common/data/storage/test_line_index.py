import multiprocessing
import os
import pickle
import tempfile
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from common import progress
from common.data.storage import line_index as module
from common.data.storage import mapped_index as index_file
from common.data.storage.jsonl import JsonLines
from common.data.storage.line_index import LineIndex, LineTable, TextLines, scan_lines
from common.data.storage.mapped_index import Source
from common.errors import DataError

NOBODY = 65534
MANY = b"".join(b"line %d\n" % number for number in range(100))

CONTENTS = {
    "nothing": b"",
    "one": b"a",
    "one and its end": b"a\n",
    "an end alone": b"\n",
    "no final newline": b"a\nbc",
    "CRLF": b"a\r\n\r\nbc\r\n",
    "blank at the begin": b"\n \n\t\r\na\n",
    "blank at the end": b"a\n\n \n",
    "blank at the end, open": b"a\n \x0b",
    "blank only": b" \n\n\r\n\x0c\t",
    "blank in between": b"a\n\n\n  \nb\n \nc",
    "whitespace around": b"  a \n\t b\n \n  c",
    "a return is no end": b"a\rb\n\rc",
    "other whitespace": "\x1c\n\x85\n\u00a0 \n\u3000\n\u2003x\n \u1680\n\u3000\u2029".encode(),
    "nearly whitespace": "\u200b\n\u3001\n\u00a1\n\u30a0\n\u2060\n".encode(),
    "cut whitespace": b"\xe3\x80\n\xe3\n\xa0\n\xe2\x80\x20\n \xc2\n\xe3\x80",
    "many of some bytes": ("\u3000\u30a2\n\u3000\n" * 40).encode(),
    "several bytes each": "ä\n漢字\n\n😀 é\n".encode(),
    "32 lines": b"x\n" * 32,
    "33 lines": b"x\n" * 33,
    "64 lines and blank ones": b"\nx\n \n" * 64,
    "many": MANY,
    "long": b"x" * 1000 + b"\n" + b" " * 1000 + b"\n" + b" " * 500 + b"y" * 500 + b"\nz",
}


def expected_lines(data):
    """Physical number, begin and content of every line that is not blank, the slow way."""
    found, start, number = [], 0, 0
    for number, line in enumerate(BytesIO(data), start=1):
        if line.decode(errors="replace").strip():
            found.append((number, start, line.removesuffix(b"\n")))
        start += len(line)
    return found, number - len(found)


@pytest.fixture
def place(tmp_path):
    def write(data=MANY, name="x.txt"):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


def indexed(path, cache=""):
    """Opens a file as if it were large."""
    return LineIndex(path, cache, in_memory_below=0)


def numbers(lines):
    return [lines.number(place) for place in range(len(lines))]


def forbid_scanning(monkeypatch):
    def scan(*_):
        raise AssertionError("the file was read through")

    monkeypatch.setattr(module, "scan_lines", scan)


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 64, 4096])
@pytest.mark.parametrize("content", CONTENTS)
def test_scan_in_chunks(place, content, chunk_bytes):
    lines, blank = expected_lines(CONTENTS[content])
    told = []
    with open(place(CONTENTS[content]), "rb", buffering=0) as file:
        table = scan_lines(file, told.append, chunk_bytes)
    assert (table.count, table.blank) == (len(lines), blank)
    assert table.starts.tolist() == [start for _, start, _ in lines[::32]] + [len(CONTENTS[content])]
    assert table.numbers.tolist() == [number for number, _, _ in lines[::32]]
    assert sum(told) == len(CONTENTS[content])
    assert max(told, default=0) <= chunk_bytes


@pytest.mark.parametrize("in_memory_below", [0, 1000])
@pytest.mark.parametrize("content", [name for name in CONTENTS if name != "long"])
def test_lines_and_their_numbers(place, content, in_memory_below):
    path = place(CONTENTS[content])
    lines, blank = expected_lines(CONTENTS[content])
    for _ in range(2):  # made, then mapped
        opened = LineIndex(path, in_memory_below=in_memory_below)
        assert (len(opened), opened.blank) == (len(lines), blank)
        assert [opened.line(place) for place in range(len(lines))] == [line for *_, line in lines]
        assert list(opened) == [line for *_, line in lines]
        assert numbers(opened) == [number for number, *_ in lines]
    assert os.path.exists(f"{path}.index") == (in_memory_below == 0 and content != "nothing")


def test_places_count_from_both_ends(place):
    lines = LineIndex(place())
    assert (lines.line(-1), lines.number(-100)) == (b"line 99", 1)
    for outside in (100, -101):
        with pytest.raises(IndexError):
            lines.line(outside)
        with pytest.raises(IndexError):
            lines.number(outside)


@pytest.mark.parametrize(("size", "large"), [(16 * 2**20 - 1, False), (16 * 2**20, True)])
def test_large_files_get_an_index(tmp_path, size, large):
    path = tmp_path / "x"
    path.write_bytes(b"1234567\n" * (size // 8) + b"\n" * (size % 8))
    assert len(LineIndex(str(path))) == size // 8
    left = {name for name in os.listdir(tmp_path) if name.endswith("index")}
    assert left == ({"x.index"} if large else set())
    if large:  # half a byte per line
        assert (tmp_path / "x.index").stat().st_size == pytest.approx(size / 8 / 2, rel=0.001)


def test_an_index_is_made_once(place, caplog, monkeypatch):
    caplog.set_level("INFO")
    path = place()
    indexed(path)
    assert caplog.messages == [f"{path}.index: is not there yet; indexing {path}"]
    forbid_scanning(monkeypatch)
    assert indexed(path).line(77) == b"line 77"
    assert len(caplog.messages) == 1


def changed_in_size(path):
    path.write_bytes(b"first\n" + MANY)


def keep_time(path, change):
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def changed_in_time(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def changed_in_content(path):
    keep_time(path, lambda: path.write_bytes(b"first\n\n" + MANY[7:]))


@pytest.mark.parametrize("change", [changed_in_size, changed_in_time, changed_in_content])
def test_an_index_of_another_state_is_made_anew(place, caplog, change):
    caplog.set_level("INFO")
    path = place()
    indexed(path)
    change(Path(path))
    caplog.clear()
    for _ in range(2):
        lines, _ = expected_lines(Path(path).read_bytes())
        assert list(indexed(path)) == [line for *_, line in lines]
    assert caplog.messages == [f"{path}.index: is of another state of that file; indexing {path}"]


def test_size_tells_states_apart_where_all_blocks_are_equal(place, monkeypatch):
    monkeypatch.setattr(index_file, "_SAMPLE_BYTES", 8)
    path = Path(place(b"x" * 9_000))
    assert indexed(str(path)).line(0) == b"x" * 9_000
    keep_time(path, lambda: path.write_bytes(b"x" * 10_000))
    assert indexed(str(path)).line(0) == b"x" * 10_000


def unnoticed_by_time_and_samples(path):
    """Makes two lines of one, where no sample of 8 bytes lies."""

    def change():
        with path.open("r+b") as file:
            file.seek(20)
            file.write(b"\n")

    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:  # a clock of some ms
        keep_time(path, change)


def test_content_that_changed_under_the_old_time_is_noticed(place, monkeypatch):
    monkeypatch.setattr(index_file, "_SAMPLE_BYTES", 8)
    path = Path(place(b"x" * 9_000))
    assert len(indexed(str(path))) == 1
    unnoticed_by_time_and_samples(path)
    assert len(indexed(str(path))) == 2


def test_an_index_of_other_distances_is_made_anew(place, monkeypatch):
    path = place()
    indexed(path)
    monkeypatch.setattr(module, "EVERY", 16)
    assert indexed(path).line(70) == b"line 70"


@pytest.mark.parametrize(
    ("size", "known_whole"), [(1, True), (7, True), (9, True), (511, True), (512, True), (2000, False)]
)
def test_blocks_of_the_whole_file_are_compared(tmp_path, monkeypatch, size, known_whole):
    monkeypatch.setattr(index_file, "_SAMPLE_BYTES", 8)
    path = tmp_path / "x"
    path.write_bytes(bytes(size))
    noticed = 0
    with open(path, "r+b", buffering=0) as file:
        source = Source.of(file.fileno())
        assert source.is_known_whole == known_whole
        digest = source.sampled(file.fileno())
        for place in range(size):
            file.seek(place)
            file.write(b"x")
            before, digest = digest, source.sampled(file.fileno())
            noticed += digest != before
            assert digest != before or place not in (0, size - 1)
    assert noticed == (size if known_whole else 64 * 8)


def test_every_changed_byte_of_an_index_is_noticed(place, caplog):
    caplog.set_level("INFO")
    path = place()
    indexed(path)
    index = Path(f"{path}.index")
    good = index.read_bytes()
    damages = [good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :] for at in range(16, len(good))]
    damages += [good[:at] for at in (0, 31, 87, 88, 96, len(good) - 1)] + [good + bytes(8), bytes(len(good))]
    damages.append(good[:14] + b"01" + good[16:])
    for damaged in damages:
        index.write_bytes(damaged)
        caplog.clear()
        assert indexed(path).line(99) == b"line 99"
        assert index.read_bytes() == good
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(f"{index}: is ")


def test_the_index_of_another_file_is_no_use(place):
    one, other = place(MANY, "one"), place(MANY.upper(), "other")
    os.utime(one, ns=(0, 10**18))
    os.utime(other, ns=(0, 10**18))
    indexed(one)
    indexed(other)
    os.replace(f"{one}.index", f"{other}.index")
    assert indexed(other).line(3) == b"LINE 3"


def test_nobody_elses_file_is_overwritten(place, tmp_path, caplog):
    path = place()
    Path(f"{path}.index").write_bytes(b"faces of my own, in a file of this name" * 10)
    assert indexed(path).line(5) == b"line 5"
    assert "x.txt.index: is a file of another kind" in caplog.text
    caplog.clear()
    for _ in range(2):
        assert indexed(path, str(tmp_path / "cache")).line(5) == b"line 5"
    assert caplog.messages == []
    assert Path(f"{path}.index").read_bytes().startswith(b"faces of my own")


# Folders that cannot be written to.


@contextmanager
def read_only(*folders):
    """Makes folders read-only, for root as well."""
    for folder in folders:
        folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for folder in folders:
            folder.chmod(0o755)


@pytest.fixture
def open_folder():
    """A folder that everybody can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "cache").mkdir()
        (folder / "cache").chmod(0o777)
        for part in ("a", "b"):
            (folder / part).mkdir()
            (folder / part / "x.txt").write_bytes(MANY.replace(b"line", part.encode()))
        yield folder


def test_the_cache_holds_what_cannot_lie_beside_its_source(open_folder, monkeypatch, caplog):
    paths = [str(open_folder / part / "x.txt") for part in ("a", "b")]
    cache = str(open_folder / "cache" / "made")
    with read_only(open_folder / "a", open_folder / "b"):
        assert [indexed(path, cache).line(1) for path in paths] == [b"a 1", b"b 1"]
        forbid_scanning(monkeypatch)
        assert [indexed(path, cache).line(2) for path in paths] == [b"a 2", b"b 2"]
        monkeypatch.chdir(open_folder / "b")
        assert indexed("x.txt", "../cache/made").line(3) == b"b 3"
    names = sorted(name for name in os.listdir(cache) if name.endswith("index"))
    assert [name[:6] for name in names] == ["x.txt-", "x.txt-"]
    assert os.listdir(open_folder / "a") == ["x.txt"]
    assert caplog.messages == []


def test_an_index_in_a_read_only_folder_is_used(open_folder, monkeypatch):
    path = str(open_folder / "a" / "x.txt")
    indexed(path)
    forbid_scanning(monkeypatch)
    with read_only(open_folder / "a"):
        assert indexed(path).line(1) == b"a 1"


@pytest.mark.parametrize("cache", ["", "cache"])
def test_places_stay_in_memory_where_nothing_can_be_written(open_folder, caplog, cache):
    path = str(open_folder / "a" / "x.txt")
    with read_only(open_folder / "a", open_folder / "cache"):
        lines = indexed(path, cache and str(open_folder / cache))
        assert (lines.line(99), lines.number(99)) == (b"a 99", 100)
        assert pickle.loads(pickle.dumps(lines)).line(98) == b"a 98"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{path}: its index cannot be kept ({path}.index: Permission denied")


def test_a_full_disk_leaves_nothing_behind(place, tmp_path, caplog, monkeypatch):
    def write(self, path, source):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    path = place()
    monkeypatch.setattr(LineTable, "write", write)
    assert indexed(path).line(99) == b"line 99"
    assert "x.txt.index: No space left on device" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["x.txt", "x.txt.index.lock"]


# Several processes.

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


def in_processes(count, task):
    """Runs `task(number)` in forked processes; returns their exit codes."""
    processes = [FORK.Process(target=task, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    return [process.exitcode for process in processes]


def test_processes_that_start_together_make_one_index(place, tmp_path, monkeypatch, caplog):
    path = place()
    record = tmp_path / "scans"
    caplog.set_level("INFO")

    def scan(file, progress):
        with open(record, "a") as out:
            out.write("scanned\n")
        time.sleep(0.3)
        return scan_lines(file, progress)

    def task(number):
        time.sleep(0.05 * number)
        lines = indexed(path)
        assert lines.line(number) == b"line %d" % number
        waited = any("x.txt.index: waiting for another process" in message for message in caplog.messages)
        assert waited == (number > 0)

    monkeypatch.setattr(module, "scan_lines", scan)
    assert in_processes(3, task) == [0, 0, 0]
    assert record.read_text() == "scanned\n"
    assert sorted(os.listdir(tmp_path)) == ["scans", "x.txt", "x.txt.index", "x.txt.index.lock"]


def die(*_):
    os._exit(9)


@pytest.mark.parametrize("moment", ["while reading", "while writing", "before the file is in place"])
def test_a_killed_process_leaves_no_index_behind(place, monkeypatch, moment):
    path = place()

    def task(_):
        if moment == "while reading":
            monkeypatch.setattr(module, "scan_lines", die)
        elif moment == "while writing":
            monkeypatch.setattr(LineTable, "write", lambda self, path, _: (path.write_bytes(b"VL-"), die()))
        else:
            monkeypatch.setattr(Path, "replace", die)
        indexed(path)

    assert in_processes(1, task) == [9]
    assert not os.path.exists(f"{path}.index")
    assert indexed(path).line(64) == b"line 64"
    assert os.path.exists(f"{path}.index")


@pytest.mark.parametrize("in_memory_below", [0, 10_000])
def test_forked_processes_open_the_file_for_themselves(place, in_memory_below):
    lines = LineIndex(place(), in_memory_below=in_memory_below)
    assert lines.line(1) == b"line 1"
    before = lines._opened

    def task(number):
        for _ in range(20):
            for nth in range(number, 100, 7):
                assert lines.line(nth) == b"line %d" % nth
        assert lines._opened != before
        assert lines._opened[0] == os.getpid()

    assert in_processes(2, task) == [0, 0]
    assert lines.line(99) == b"line 99"
    assert lines._opened == before


@pytest.mark.parametrize("in_memory_below", [0, 10**6])
def test_pickled_copies(place, monkeypatch, in_memory_below):
    lines = LineIndex(place(MANY * 100), in_memory_below=in_memory_below)
    assert lines.line(1) == b"line 1"
    data = pickle.dumps(lines)
    del lines
    assert len(data) < (600 if in_memory_below == 0 else 6000)
    forbid_scanning(monkeypatch)
    copy = pickle.loads(data)
    assert copy._mapped == (in_memory_below == 0)
    assert (len(copy), copy.line(9_999), copy.number(9_999)) == (10_000, b"line 99", 10_000)


def test_a_pickled_copy_makes_a_lost_index_again(place):
    path = place()
    data = pickle.dumps(indexed(path))
    os.unlink(f"{path}.index")
    assert pickle.loads(data).line(3) == b"line 3"
    os.unlink(f"{path}.index")
    changed_in_size(Path(path))
    with pytest.raises(DataError, match=r"x.txt: has changed since it was opened; start again to index it"):
        pickle.loads(data)


def test_files_are_closed(place):
    def count():
        return len(os.listdir("/proc/self/fd"))

    path = place()
    indexed(path)
    before = count()
    lines = indexed(path)
    lines.line(0)
    assert count() > before
    del lines
    assert count() == before


# Files that change while they are in use.


def appended(path):
    with open(path, "ab") as file:
        file.write(b"more\n")


def overwritten(path):
    with open(path, "r+b") as file:
        file.write(b"x")
    os.utime(path, ns=(0, 10**18))


def cut_off(path):
    keep_time(Path(path), lambda: os.truncate(path, 20))


@pytest.mark.parametrize("in_memory_below", [0, 10_000])
@pytest.mark.parametrize("change", [appended, overwritten, cut_off])
@pytest.mark.parametrize("read_before", [False, True])
def test_a_changed_file_is_not_read(place, change, read_before, in_memory_below):
    path = place()
    lines = LineIndex(path, in_memory_below=in_memory_below)
    if read_before:
        lines.line(0)
    change(path)
    for use in (lambda: lines.line(99), lambda: lines.number(99), lambda: list(lines)):
        with pytest.raises(DataError, match=r"x.txt: has changed since it was opened; start again to index"):
            use()


@pytest.mark.parametrize("in_memory_below", [0, 10_000])
def test_a_file_written_again_as_it_was_is_read_on_unless_it_is_large(place, monkeypatch, in_memory_below):
    path = place()
    lines = LineIndex(path, in_memory_below=in_memory_below)
    for time_of_change in (1, 2):
        os.utime(path, ns=(0, time_of_change))
        assert pickle.loads(pickle.dumps(lines)).line(98) == b"line 98"
        assert lines.line(99) == b"line 99"
    monkeypatch.setattr(index_file, "_SAMPLE_BYTES", 12)  # not all of it is compared
    lines = LineIndex(path, in_memory_below=in_memory_below)
    os.utime(path, ns=(0, 3))
    with pytest.raises(DataError, match=r"x.txt: has changed since it was opened"):
        lines.line(99)


def test_a_replaced_file_is_read_on_by_those_who_have_it_open(place, tmp_path):
    path = place()
    lines = indexed(path)
    assert lines.line(0) == b"line 0"
    os.replace(place(MANY.upper(), "other"), path)
    assert lines.line(1) == b"line 1"

    def task(_):
        with pytest.raises(DataError, match=r"x.txt: has changed since"):
            lines.line(1)

    assert in_processes(1, task) == [0]


def test_a_file_that_changes_while_it_is_indexed(place, monkeypatch):
    path = place()

    def scan(file, progress):
        appended(path)
        return scan_lines(file, progress)

    monkeypatch.setattr(module, "scan_lines", scan)
    with pytest.raises(DataError, match=r"x.txt: has changed since it was opened"):
        indexed(path)
    assert not os.path.exists(f"{path}.index")


def test_files_that_cannot_be_read(place, tmp_path):
    path = place()
    lines = indexed(path)
    os.unlink(path)
    with pytest.raises(DataError, match=r"x.txt: cannot be read \(No such file or directory\)$"):
        lines.line(0)
    with pytest.raises(DataError, match=r"x.txt: cannot be read \(No such .*\); expected a text file$"):
        indexed(path)
    with pytest.raises(DataError, match=r": cannot be read \(Is a directory\); expected a jsonl file$"):
        LineIndex(str(tmp_path), expected="a jsonl file")


def test_other_permissions_do_not_end_a_run(place, monkeypatch):
    monkeypatch.setattr(index_file, "_SAMPLE_BYTES", 8)
    path = Path(place(b"x" * 9_000))
    lines = indexed(str(path))
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.chmod(0o600)
    assert lines.line(0) == b"x" * 9_000
    with path.open("r+b") as file:
        keep_time(path, lambda: file.write(b"y") and file.flush())
    with pytest.raises(DataError, match=r"x.txt: has changed since it was opened"):
        lines.line(0)


# Progress.


def test_line_index_logs_progress(place, caplog, monkeypatch):
    path = place(b"1234567\n" * 2**20)
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    caplog.set_level("INFO")
    LineIndex(path)
    assert caplog.messages == [f"{path}: 4.19MB of 8.39MB", f"{path}: 8.39MB of 8.39MB"]


# What is built on it.


def test_text_lines_of_several_files(place):
    names = [place(b"\n  a b \n\nc\r\n", "one"), place(b"", "none"), place("ä\n\u3000\n".encode(), "two")]
    lines = pickle.loads(pickle.dumps(TextLines("+".join(names), in_memory_below=1)))
    assert os.path.exists(f"{names[0]}.index")
    assert [lines[place] for place in range(len(lines))] == ["a b", "c", "ä"]
    assert [lines.where(place) for place in range(3)] == [
        f"{names[0]}, line 2",
        f"{names[0]}, line 4",
        f"{names[2]}, line 1",
    ]
    assert lines[-1] == "ä"
    with pytest.raises(IndexError):
        lines[3]


def test_text_lines_name_what_is_wrong(place, tmp_path):
    good = place()
    bad = place(b"a\n\n\xc3\xa4\xe4 b\n", "bad")
    lines = TextLines(f"{good}+{bad}")
    assert lines[100] == "a"
    with pytest.raises(DataError, match=r"bad, line 3: expected text in UTF-8, but byte 2 is not \(invalid"):
        lines[101]
    for paths, message in (
        (f"{good}+{tmp_path}/no.txt", r"no.txt: cannot be read \(No such .*\); expected a text file"),
        (place(b"\n \n", "empty"), "empty: has no text; expected one sentence or paragraph per line"),
    ):
        with pytest.raises(DataError, match=message):
            TextLines(paths)


def test_text_lines_and_json_lines_use_the_cache(open_folder):
    path, cache = str(open_folder / "a" / "x.txt"), str(open_folder / "cache")
    Path(path).write_bytes(b'{"a": 1}\n' * 2**21)

    class Record(BaseModel):
        a: int

    with read_only(open_folder / "a"):
        assert TextLines(path, cache)[2**21 - 1] == '{"a": 1}'
        assert len([name for name in os.listdir(cache) if name.endswith(".index")]) == 1
        for name in os.listdir(cache):
            os.unlink(f"{cache}/{name}")
        assert JsonLines(path, Record, cache)[2**21 - 1].a == 1
        assert len([name for name in os.listdir(cache) if name.endswith(".index")]) == 1


def test_memory_does_not_grow_with_the_file(place):
    lines = indexed(place(b"x\n" * 3200))
    assert lines._mapped
    assert not lines._table.starts.flags.owndata
    assert not lines._table.starts.flags.writeable
    assert (len(lines._table.starts), len(lines._table.numbers)) == (101, 100)
    assert lines._table.starts.dtype == np.int64
