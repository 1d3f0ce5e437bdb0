import multiprocessing
import pickle
import zipfile
from io import BytesIO

import pytest
from PIL import Image
from pydantic import BaseModel

from common.data.storage.jsonl import JsonLines
from common.data.storage.store import Store, files_in, split_archive
from common.errors import DataError


def picture(mode="RGB", color=(10, 20, 30), size=(4, 3), kind="PNG"):
    out = BytesIO()
    Image.new(mode, size, color).save(out, kind)
    return out.getvalue()


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("in/p.png", picture())
        file.writestr("in/x.json", '{"a": ["ä"]}'.encode())
        for number in range(20):
            file.writestr(f"{number}", str(number) * 200_000, zipfile.ZIP_STORED)
    return str(path)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a/b.zip@/c/d.jpg", ("a/b.zip", "c/d.jpg")),
        ("x.zip@c.json", ("x.zip", "c.json")),
        ("a.zip/b.zip@//c/d/", ("a.zip/b.zip", "c/d")),
        ("./q@0.zip@/w@1.jpg", ("./q@0.zip", "w@1.jpg")),
        ("a.zip@/b.zip@/c", ("a.zip", "b.zip@/c")),
        ("a.zip/c@1.jpg", None),
    ],
)
def test_split_at_the_first_mark(path, parts):
    assert split_archive(path) == parts


def test_folder_and_archive_hold_the_same(tmp_path, archive):
    (tmp_path / "x.json").write_bytes('{"a": ["ä"]}'.encode())
    store = Store([str(tmp_path), f"{archive}@/in"])
    assert store.json(str(tmp_path / "x.json")) == store.json(f"{archive}@/in/x.json") == {"a": ["ä"]}
    assert store.image(f"{archive}@/in/p.png").getpixel((0, 0)) == (10, 20, 30)
    assert store.image_size(f"{archive}@/in/p.png") == (4, 3)


@pytest.mark.parametrize(
    ("mode", "color", "kind", "expected"),
    [
        ("L", 7, "PNG", (7, 7, 7)),
        ("P", 0, "PNG", (0, 0, 0)),
        ("RGBA", (1, 2, 3, 4), "PNG", (1, 2, 3)),
        ("CMYK", (0, 0, 0, 0), "JPEG", (255, 255, 255)),
    ],
)
def test_pictures_become_rgb(tmp_path, mode, color, kind, expected):
    (tmp_path / "p").write_bytes(picture(mode, color, kind=kind))
    image = Store().image(str(tmp_path / "p"))
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == expected


def test_broken_pictures(tmp_path):
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    out = BytesIO()
    noise.save(out, "JPEG")
    for name, data in (("cut.jpg", out.getvalue()[:1500]), ("text.jpg", b"hello"), ("none.jpg", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}: not a readable image"):
            Store().image(str(tmp_path / name))


def test_broken_json(tmp_path):
    for data, message in ((b"", "it is empty"), (b'{"a": ', "unexpected end"), (b'"\xe4"', "UTF-8")):
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(DataError, match=rf"x.json: expected json in UTF-8, but .*{message}"):
            Store().json(str(tmp_path / "x.json"))


def test_missing_files(tmp_path, archive):
    store = Store()
    with pytest.raises(DataError, match=r"nothing.json: cannot be read \(No such file"):
        store.read(str(tmp_path / "nothing.json"))
    with pytest.raises(DataError, match=r"a.zip: the archive has no member in/q.png"):
        store.image(f"{archive}@/in/q.png")
    with pytest.raises(DataError, match=r"b.zip@/p: cannot be read \(No such file"):
        store.read(str(tmp_path / "b.zip@/p"))


def test_places_are_checked_at_the_start(tmp_path, archive):
    (tmp_path / "notes").write_text("")
    with pytest.raises(DataError, match="notes: a file; expected a folder or a zip archive"):
        Store([f"{tmp_path}/notes"])
    with pytest.raises(DataError, match="nothing: no such folder"):
        Store([str(tmp_path / "nothing")])
    with pytest.raises(DataError, match=r"b.zip: no such file; expected a zip archive"):
        Store([str(tmp_path / "b.zip@/in")])
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a.zip: not a complete zip archive"):
        Store([f"{archive}@/in"])


def test_damaged_member(tmp_path):
    path = tmp_path / "d.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m", "content")
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT"))
    with pytest.raises(DataError, match=r"d.zip@/m: the archive is damaged \(Bad CRC-32"):
        Store().read(f"{path}@/m")


def _read_often(store, archive, number):
    for _ in range(200):
        assert store.read(f"{archive}@/{number}") == (str(number) * 200_000).encode()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_do_not_share_a_file_position(archive, method):
    store = Store()
    _read_often(store, archive, 0)
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=_read_often, args=(store, archive, number)) for number in (3, 19)]
    for worker in workers:
        worker.start()
    _read_often(store, archive, 11)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


class Pair(BaseModel):
    a: int


def lines(tmp_path, text):
    (tmp_path / "r.jsonl").write_bytes(text)
    return JsonLines(str(tmp_path / "r.jsonl"), Pair)


def test_json_lines_skip_blank_ones_with_one_log_line(tmp_path, caplog):
    caplog.set_level("INFO")
    records = pickle.loads(pickle.dumps(lines(tmp_path, b'{"a": 1}\n\n \r\n{"a": 2}\r\n{"a": 3}')))
    assert len(records) == 3
    assert [record.a for record in records] == [records[i].a for i in range(3)] == [1, 2, 3]
    assert records.where(1).endswith("r.jsonl, line 4")
    assert [line.message for line in caplog.records] == [f"{records.path}: skipped 2 blank lines"]


@pytest.mark.parametrize("text", [b"", b"\n \n"])
def test_json_lines_without_records(tmp_path, text):
    with pytest.raises(DataError, match=r"r.jsonl: has no records; expected one json object per line"):
        lines(tmp_path, text)


def test_json_lines_name_file_line_and_field(tmp_path):
    records = lines(tmp_path, b'{"a": 1}\n{"a": "x"}\n{"a"')
    with pytest.raises(DataError, match=r"r.jsonl, line 2: a: Input should be a valid integer"):
        records[1]
    with pytest.raises(DataError, match=r"r.jsonl, line 3: Invalid JSON"):
        records[2]
    with pytest.raises(DataError, match=r"no.jsonl: cannot be read \(No such file"):
        JsonLines(str(tmp_path / "no.jsonl"), Pair)


def test_files_of_linked_folders(tmp_path):
    for folder in ("data", "disk/a"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "p.PNG").write_text("")
    (tmp_path / "data/linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/back").symlink_to(tmp_path / "disk")
    found = dict(files_in(str(tmp_path / "data"), [".png"]))
    assert found == {name: f"{tmp_path}/data/{name}" for name in ("linked/a/p.PNG", "p.PNG")}
