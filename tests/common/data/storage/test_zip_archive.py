import multiprocessing
import os
import pickle
import struct
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.data.storage import store as store_module
from common.data.storage import zip_archive as module
from common.data.storage.store import Store
from common.data.storage.zip_archive import LargeArchive, MemberTable, SmallArchive, open_archive
from common.errors import DataError
from tests.common.data.storage.archives import KINDS, NAMES, build, content

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning", "ignore:Duplicate name:UserWarning"
)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path):
    return build(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", KINDS)
def test_reads_what_zipfile_reads(tmp_path, kind):
    path = tmp_path / "a.zip"
    kind(path)
    for _ in range(2):  # made, then mapped
        archive = open_archive(str(path), indexed_above=0)
        assert isinstance(archive, LargeArchive)
        with zipfile.ZipFile(path) as expected:
            for name in expected.namelist():
                assert archive.read(name) == expected.read(name)
            for name in ("nothing", "", expected.namelist()[0] + "x", "\udcff"):
                with pytest.raises(KeyError):
                    archive.read(name)


def test_the_last_of_equal_names_counts(tmp_path):
    path = build(tmp_path / "a.zip", ["a", "b", "a", "c", "b", "a"])
    archive = LargeArchive(path)
    assert [archive.read(name) for name in "abc"] == [content(number) for number in (5, 4, 3)]


def test_names_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_hash", lambda name: b"%08d" % (len(name) % 2))
    path = build(tmp_path / "a.zip", ["a", "b", "a", "cc", "b", "dd", "e"])
    archive = LargeArchive(path)
    assert [archive.read(name) for name in ("a", "b", "cc", "dd", "e")] == [
        content(i) for i in (2, 4, 3, 5, 6)
    ]
    for name in ("f", "ff"):
        with pytest.raises(KeyError):
            archive.read(name)


def test_only_large_directories_are_indexed(tmp_path, path):
    size = 100 * (46 + len(NAMES[0]))
    assert isinstance(open_archive(path, indexed_above=size), SmallArchive)
    assert isinstance(open_archive(path), SmallArchive)
    assert os.listdir(tmp_path) == ["a.zip"]
    assert isinstance(open_archive(path, indexed_above=size - 1), LargeArchive)
    assert os.path.getsize(f"{path}.index") == 72 + 8 * 2 + 16 * 100
    assert module.INDEXED_ABOVE == 4 * 2**20


def test_an_index_is_made_once_and_mapped(path, monkeypatch, caplog):
    caplog.set_level("INFO")
    LargeArchive(path)
    assert caplog.messages == [f"{path}.index: is not there yet; indexing {path}"]
    monkeypatch.setattr(module, "scan_members", None)
    archive = LargeArchive(path)
    table = archive._table
    assert archive._mapped
    assert not any(array.flags.owndata or array.flags.writeable for array in (table.hashes, table.places))
    assert (table.hashes.dtype, table.places.dtype) == (np.uint64, np.int64)
    assert archive.read(NAMES[77]) == content(77)
    assert len(caplog.messages) == 1


def test_the_key_has_the_type_of_the_hashes(path, monkeypatch):
    seen = []
    search = np.searchsorted
    monkeypatch.setattr(np, "searchsorted", lambda a, v, side: seen.append((a, v)) or search(a, v, side))
    archive = LargeArchive(path)
    archive.read(NAMES[0])
    assert {(a.dtype, v.dtype) for a, v in seen} == {(np.dtype("u8"), np.dtype("u8"))}
    assert all(np.shares_memory(a, archive._table.hashes) for a, _ in seen)


def test_progress_is_of_the_directory(path, monkeypatch, caplog):
    monkeypatch.setattr(module, "TOLD_EVERY", 40)
    told = []
    with open(path, "rb") as file:
        directory = module.Directory.of(file.fileno())
        module.scan_members(file, directory, told.append)
    assert told == [40 * 61, 40 * 61, 20 * 61]
    assert directory.size == sum(told)


# What is wrong.


def through_store(path, member, monkeypatch, **options):
    monkeypatch.setattr(store_module, "open_archive", partial(open_archive, indexed_above=0))
    return Store(**options).read(f"{path}@/{member}")


def test_missing_members_and_damaged_ones(path, monkeypatch):
    with pytest.raises(DataError, match=r"a.zip: the archive has no member folder/100.json$"):
        through_store(path, "folder/100.json", monkeypatch)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(content(50), content(50)[:-1] + b"~"))
    with pytest.raises(DataError, match=r"a.zip@/folder/050.json: the archive is damaged \(Bad CRC-32"):
        through_store(path, NAMES[50], monkeypatch)
    assert through_store(path, NAMES[49], monkeypatch) == content(49)
    Path(path).write_bytes(data.replace(b"folder/050", b"folder/05~", 1))
    with pytest.raises(DataError, match=r"the archive is damaged \(File name in directory .* differ"):
        through_store(path, NAMES[50], monkeypatch)
    Path(path).write_bytes(data.replace(b"PK\3\4", b"PK\3\5"))
    with pytest.raises(DataError, match=r"the archive is damaged \(Bad magic number for file header"):
        through_store(path, NAMES[50], monkeypatch)


def test_encrypted_members(path, monkeypatch):
    data = Path(path).read_bytes()
    begin = data.rindex(b"PK\1\2", 0, data.rindex(NAMES[7].encode()))
    Path(path).write_bytes(data[: begin + 8] + b"\1" + data[begin + 9 :])
    with pytest.raises(DataError, match=r"damaged \(File 'folder/007.json' is encrypted, password required"):
        through_store(path, NAMES[7], monkeypatch)
    assert through_store(path, NAMES[8], monkeypatch) == content(8)


def wrong_mark(data, last, end):
    return data[:last] + b"PK\1\3" + data[last + 4 :], "Bad magic number for central directory"


def cut_entry(left):
    def change(data, last, end):
        size = last + left - data.index(b"PK\1\2")
        return data[: last + left] + data[end : end + 12] + struct.pack("<L", size) + data[
            end + 16 :
        ], "Truncated"

    return change


def oversized_entry(data, last, end):
    return data[: last + 32] + b"\xff\xff" + data[last + 34 :], "Truncated central directory"


@pytest.mark.parametrize("change", [wrong_mark, cut_entry(10), cut_entry(40), cut_entry(50), oversized_entry])
def test_a_damaged_directory(path, monkeypatch, change):
    data = Path(path).read_bytes()
    wrong, message = change(data, data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6"))
    Path(path).write_bytes(wrong)
    monkeypatch.setattr(store_module, "open_archive", partial(open_archive, indexed_above=0))
    for place, use in (
        (path, lambda: Store([f"{path}@/folder"])),
        (f"{path}@/{NAMES[0]}", lambda: Store().read(f"{path}@/{NAMES[0]}")),
    ):
        with pytest.raises(
            DataError, match=rf"^{place}: the archive is damaged \({message}.*; copy or download"
        ):
            use()
    assert not os.path.exists(f"{path}.index")


def test_a_truncated_archive(path, monkeypatch):
    data = Path(path).read_bytes()
    for size in (0, 3, len(data) // 2, len(data) - 1):
        Path(path).write_bytes(data[:size])
        with pytest.raises(
            DataError, match=r"a.zip@/x: the archive is damaged \(File is not a zip file\); copy"
        ):
            through_store(path, "x", monkeypatch)
        with pytest.raises(DataError, match=r"a.zip: not a complete zip archive; copy or download it again"):
            through_store(path, "x", monkeypatch, roots=[f"{path}@/folder"])


def test_a_cut_off_begin(path, monkeypatch):
    data = Path(path).read_bytes()
    for lost in (10, data.index(b"PK\1\2") + 10):
        Path(path).write_bytes(data[lost:])
        with pytest.raises(DataError, match=r"a.zip@/folder/000.json: the archive is damaged"):
            through_store(path, NAMES[0], monkeypatch)


def test_a_missing_archive(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"b.zip@/x: cannot be read \(No such file or directory\)$"):
        through_store(tmp_path / "b.zip", "x", monkeypatch)


# Archives that change.


def test_a_changed_archive_gets_another_index(path, tmp_path, caplog):
    caplog.set_level("INFO")
    LargeArchive(path)
    build(path, ["new", NAMES[3]], mode="a")
    caplog.clear()
    archive = LargeArchive(path)
    assert (archive.read("new"), archive.read(NAMES[3]), archive.read(NAMES[4])) == (
        content(0),
        content(1),
        content(4),
    )
    assert caplog.messages == [f"{path}.index: is of another state of that file; indexing {path}"]


def grown(path):
    build(path, ["new"], mode="a")


def cut_off(path):
    os.truncate(path, 100)


def overwritten(path):
    Path(path).write_bytes(bytes(os.path.getsize(path)))


@pytest.mark.parametrize("change", [grown, cut_off, overwritten])
@pytest.mark.parametrize("read_before", [False, True])
def test_a_changed_archive_is_not_read(path, monkeypatch, change, read_before):
    monkeypatch.setattr(store_module, "open_archive", partial(open_archive, indexed_above=0))
    store = Store([f"{path}@/folder"])
    if read_before:
        store.read(f"{path}@/{NAMES[5]}")
    change(path)
    for name in (NAMES[5], "nothing"):
        with pytest.raises(DataError, match=r"a.zip: has changed since it was opened; start again"):
            store.read(f"{path}@/{name}")


def test_damaged_indexes_are_made_anew(path):
    LargeArchive(path)
    index = Path(f"{path}.index")
    good = index.read_bytes()
    for damaged in (good[:-1], good[:70], good + bytes(16), good[:90] + b"~" + good[91:], bytes(len(good))):
        index.write_bytes(damaged)
        assert LargeArchive(path).read(NAMES[9]) == content(9)
        assert index.read_bytes() == good


# Folders that cannot be written to.


@pytest.fixture
def locked():
    """An archive in a read-only folder, and a cache beside that folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "data").mkdir()
        path = build(folder / "data" / "a.zip")
        (folder / "data").chmod(0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        yield path, str(folder / "cache")
        if root:
            os.seteuid(0)
        (folder / "data").chmod(0o755)


def test_the_cache_holds_what_cannot_lie_beside_its_archive(locked, monkeypatch, caplog):
    path, cache = locked
    assert through_store(path, NAMES[2], monkeypatch, cache=cache) == content(2)
    monkeypatch.setattr(module, "scan_members", None)
    assert through_store(path, NAMES[3], monkeypatch, roots=[f"{path}@/"], cache=cache) == content(3)
    assert [name[:6] for name in os.listdir(cache) if name.endswith(".index")] == ["a.zip-"]
    assert os.listdir(os.path.dirname(path)) == ["a.zip"]
    assert caplog.messages == []


def test_without_a_cache_the_index_stays_in_memory(locked, caplog, monkeypatch):
    path, _ = locked
    assert through_store(path, NAMES[2], monkeypatch) == content(2)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{path}: its index cannot be kept ({path}.index: Permission denied")


def test_forked_processes_share_an_index_in_memory(path, caplog, monkeypatch):
    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MemberTable, "write", write)
    monkeypatch.setattr(store_module, "open_archive", partial(open_archive, indexed_above=0))
    store = Store([f"{path}@/folder"])
    monkeypatch.setattr(module, "scan_members", None)

    def task(number):
        assert store.read(f"{path}@/{NAMES[number]}") == content(number)

    assert in_processes(2, task) == [0, 0]
    assert pickle.loads(pickle.dumps(store._archives[path])).read(NAMES[5]) == content(5)
    assert len(caplog.messages) == 1
    assert "a.zip.index: No space left on device" in caplog.text


# Several processes.


def in_processes(count, task):
    """Runs `task(number)` in forked processes; returns their exit codes."""
    processes = [FORK.Process(target=task, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    return [process.exitcode for process in processes]


def test_processes_that_start_together_make_one_index(path, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    scan = module.scan_members

    def slow(*args):
        with open(tmp_path / "scans", "a") as out:
            out.write("scanned\n")
        time.sleep(0.3)
        return scan(*args)

    def task(number):
        time.sleep(0.05 * number)
        assert LargeArchive(path).read(NAMES[number]) == content(number)
        assert any("waiting for another process" in message for message in caplog.messages) == (number > 0)

    monkeypatch.setattr(module, "scan_members", slow)
    assert in_processes(3, task) == [0, 0, 0]
    assert (tmp_path / "scans").read_text() == "scanned\n"
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "a.zip.index", "a.zip.index.lock", "scans"]


@pytest.mark.parametrize("indexed_above", [0, 10**6])
def test_forked_processes_open_the_archive_for_themselves(path, indexed_above):
    archive = open_archive(path, indexed_above=indexed_above)
    assert archive.read(NAMES[0]) == content(0)
    before = archive._opened

    def task(number):
        for _ in range(10):
            for nth in range(number, 100, 7):
                assert archive.read(NAMES[nth]) == content(nth)
        assert archive._opened[0] == os.getpid()
        assert archive._opened[1] != before[1]

    assert in_processes(2, task) == [0, 0]
    assert archive.read(NAMES[99]) == content(99)
    assert archive._opened == before


def test_pickled_copies_map_the_index(path, monkeypatch):
    archive = LargeArchive(path)
    assert archive.read(NAMES[1]) == content(1)
    data = pickle.dumps(archive)
    assert len(data) < 600
    monkeypatch.setattr(module, "scan_members", None)
    copy = pickle.loads(data)
    assert copy._mapped
    assert copy.read(NAMES[98]) == content(98)


def test_a_store_leaves_archives_behind_when_it_is_pickled(path, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "open_archive", partial(open_archive, indexed_above=0))
    store = Store([f"{path}@/folder"], str(tmp_path / "cache"))
    data = pickle.dumps(store)
    assert len(data) < 300
    copy = pickle.loads(data)
    os.unlink(f"{path}.index")
    assert copy.read(f"{path}@/{NAMES[98]}") == content(98)
    assert copy._cache == str(tmp_path / "cache")
