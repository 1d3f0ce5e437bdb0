import base64
import json
import multiprocessing
import pickle
import zipfile

import numpy as np
import pytest
import torch

from common.data.regions.json_format import decode_regions
from common.data.regions.packed_format import HEADER_BYTES, PackedHeader, PackedRegions, PackedWriter
from common.data.regions.reader import RegionFiles, RegionStore, parent_location, source_name
from common.errors import ConfigError, DataError
from scripts.pack_regions import pack

F = 6


def encode(values, dtype="<f4"):
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()


def record(count=2, **changes):
    """A region file with boxes 0, 1, 2 ..., features 0.5, 1.5, ..., three class scores."""
    values = {
        "image_id": 9, "image_w": 640, "image_h": 480, "num_boxes": count,
        "boxes": encode(np.arange(4 * count)), "features": encode(np.arange(F * count) + 0.5),
        "classes": encode(np.arange(3 * count) / 8),
    }  # fmt: skip
    return {key: value for key, value in (values | changes).items() if value is not None}


def write_packed(path, records, dtype="float32", classes=True, complete=True):
    header = PackedHeader(dtype=dtype, feature_dim=F, classes=classes, sources=("set",))
    with open(path, "w+b") as file:
        writer = PackedWriter(file, header)
        for key, one in records.items():
            writer.add(key, decode_regions(one, key, F, features=True, class_scores=classes))
        if complete:
            writer.finish(0)
    return str(path)


@pytest.fixture
def places(tmp_path):
    """The same three pictures as a folder, in an archive and packed."""
    records = {
        "9": record(),
        "12": record(1, image_box_feature=encode(np.arange(F)), image_w=None, image_h=None),
        "100": record(0),
    }
    folder = tmp_path / "set"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for key, one in records.items():
            (folder / f"{key}.json").write_text(json.dumps(one))
            archive.write(folder / f"{key}.json", f"set/{key}.json")
    packed = write_packed(tmp_path / "packed", records)
    return {"folder": (str(folder), ""), "zip": (f"{folder}.zip@/set", ""), "packed": (str(folder), packed)}


@pytest.mark.parametrize("form", ["folder", "zip", "packed"])
def test_all_forms_hold_the_same(places, form):
    store = RegionStore(*places[form], feature_dim=F)
    two = store.read(9, features=True, class_scores=True)
    assert two.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert two.features.tolist() == [[0.5, 1.5, 2.5, 3.5, 4.5, 5.5], [6.5, 7.5, 8.5, 9.5, 10.5, 11.5]]
    assert two.class_scores.tolist() == [[0, 0.125, 0.25], [0.375, 0.5, 0.625]]
    assert (two.image_feature, two.image_size) == (None, (640, 480))
    one = store.read("12", features=True)
    assert one.image_feature.tolist() == [0, 1, 2, 3, 4, 5]
    assert one.features.tolist() == [[0.5, 1.5, 2.5, 3.5, 4.5, 5.5]]
    assert (one.image_size, one.class_scores) == (None, None)
    none = store.read(100, features=True)
    assert (none.boxes.shape, none.features.shape) == ((0, 4), (0, F))
    only = store.read(12, features=False, class_scores=True)
    assert (only.features, only.image_feature) == (None, None)
    assert only.class_scores.tolist() == [[0, 0.125, 0.25]]
    assert {value.dtype for value in two if isinstance(value, torch.Tensor)} == {torch.float32}


@pytest.mark.parametrize("form", ["folder", "packed"])
def test_what_is_read_may_be_written_to(places, form):
    store = RegionStore(*places[form], feature_dim=F)
    first = store.read(12, features=True)
    for value in first[:3]:
        value.add_(1)
    assert store.read(12, features=True).image_feature.tolist() == [0, 1, 2, 3, 4, 5]
    assert store.read(12, features=True).boxes.tolist() == [[0, 1, 2, 3]]


def boxes_of(store):
    return store.read(9, features=False).boxes.tolist()


@pytest.mark.parametrize("form", ["zip", "packed"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_can_read(places, form, method):
    store = RegionStore(*places[form], feature_dim=F)
    store.read(9, features=True)
    if method == "spawn":  # a copy, as a spawned worker gets it
        assert boxes_of(pickle.loads(pickle.dumps(store))) == boxes_of(store)
        assert len(pickle.dumps(store)) < 1000
        return
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(boxes_of, [store] * 4) == [boxes_of(store)] * 4


NAN, INF = np.float32("nan"), np.float32("inf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_boxes": None}, "has no num_boxes"),
        ({"num_boxes": -1}, "num_boxes is -1; expected an integer >= 0"),
        ({"num_boxes": "2"}, "num_boxes is '2'"),
        ({"num_boxes": True}, "num_boxes is True"),
        ({"num_boxes": 1}, "boxes holds 32 bytes, .*; expected 1 x 4 float32 numbers, 16 bytes"),
        ({"num_boxes": 4}, "boxes holds 32 bytes; expected 4 x 4"),
        ({"boxes": None}, "has no boxes"),
        ({"boxes": [[0, 1, 2, 3]]}, "boxes is not base64"),
        ({"boxes": "AAA"}, "boxes is not base64"),
        ({"boxes": "ä"}, "boxes is not base64"),
        (
            {"boxes": encode(range(8), "<f8")},
            "64 bytes, the size of float64: write it as '<f4'; expected",
        ),
        ({"boxes": encode([0, 1, 2, 3, 4, NAN, 6, 7])}, "boxes holds nan at row 1, column 1"),
        ({"features": None}, "has no features"),
        (
            {"features": encode(range(10))},
            "features holds 40 bytes; expected 2 x 6 float32 numbers, 48 bytes",
        ),
        ({"features": encode([*range(11), INF])}, "features holds inf at row 1, column 5"),
        ({"image_box_feature": encode(range(5))}, "image_box_feature holds 20 bytes; expected 1 x 6"),
        ({"classes": encode(range(7))}, "classes holds 28 bytes; expected 2 x 3"),
        ({"classes": None}, "has no classes"),
        ({"classes": ""}, "classes holds 0 bytes; expected 2 x 1 float32 numbers"),
        ({"image_w": 0}, "image_w is 0; expected an integer >= 1"),
        ({"image_h": None}, "has no image_h"),
    ],
)
def test_wrong_records_name_the_file(tmp_path, changes, message):
    (tmp_path / "9.json").write_text(json.dumps(record(**changes)))
    store = RegionStore(str(tmp_path), feature_dim=F)
    with pytest.raises(DataError, match=rf"9\.json: .*{message}"):
        store.read(9, features=True, class_scores=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "it is empty"), (json.dumps(record()).encode()[:-9], "expected json"), (b"[]", "json object")],
)
def test_broken_files_name_themselves(tmp_path, data, message):
    (tmp_path / "9.json").write_bytes(data)
    store = RegionStore(str(tmp_path))
    with pytest.raises(DataError, match=rf"9\.json: .*{message}"):
        store.read(9, features=True)
    with pytest.raises(DataError, match=r"10\.json: cannot be read"):
        store.read(10, features=True)


def test_boxes_alone_do_not_look_at_features(tmp_path):
    (tmp_path / "9.json").write_text(json.dumps(record(features="broken", image_box_feature="broken")))
    assert len(RegionStore(str(tmp_path)).read(9, features=False).boxes) == 2


def test_float16(tmp_path):
    values = np.linspace(-3, 3, 2 * F, dtype=np.float32)
    boxes = np.array([1000.3, 1, 2, 3] * 2, np.float32)
    path = write_packed(
        tmp_path / "p", {"9": record(features=encode(values), boxes=encode(boxes))}, "float16"
    )
    found = PackedRegions(path).read(9, F, features=True, class_scores=True)
    assert found.features.flatten().tolist() == values.astype(np.float16).astype(np.float32).tolist()
    assert found.boxes.flatten().tolist() == boxes.tolist()  # never rounded
    with pytest.raises(ValueError, match=r"too large for torch\.float16"):
        write_packed(tmp_path / "q", {"9": record(features=encode([1e5] * 12))}, "float16")


def test_ids_are_names_of_any_length(tmp_path):
    records = {"7": record(1), "00000042": record(0), "名": record(2)}
    packed = PackedRegions(write_packed(tmp_path / "p", records))
    read = {key: len(packed.read(key, F, features=True, class_scores=True).boxes) for key in records}
    assert read == {"7": 1, "00000042": 0, "名": 2}
    for absent in ("42", "8", "000000421"):
        with pytest.raises(DataError, match=f"p, image {absent}: not in this file, packed from set"):
            packed.read(absent, F, features=True, class_scores=False)


def test_every_changed_byte_is_noticed(tmp_path, places):
    path = tmp_path / "packed"
    good = path.read_bytes()
    for at in range(HEADER_BYTES, len(good), 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :])
        with pytest.raises(DataError, match=r"packed.* damaged"):  # noqa: PT012
            packed = PackedRegions(str(path))
            for image_id in (9, 12, 100):
                packed.read(image_id, F, features=True, class_scores=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-8], "has 4480 bytes, not 4488; copy it again"),
        (lambda data: data[:100], "packed: Invalid JSON"),
        (lambda data: b"", "not a file that scripts/pack_regions.py wrote"),
        (lambda data: b"PK" + data, "not a file that scripts/pack_regions.py wrote"),
        (lambda data: data.replace(b'"version":1', b'"version":2'), "version: Input should be 1"),
    ],
)
def test_packed_files_are_checked_when_opened(tmp_path, places, change, message):
    path = tmp_path / "packed"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        RegionStore(*places["packed"])


def test_packed_files_that_do_not_fit_are_refused(tmp_path, places, caplog):
    with pytest.raises(DataError, match="none: cannot be read"):
        RegionStore("set", str(tmp_path / "none"))
    write_packed(tmp_path / "begun", {"9": record()}, complete=False)
    with pytest.raises(DataError, match="begun: packing has not finished"):
        RegionStore("set", str(tmp_path / "begun"))
    with pytest.raises(DataError, match="packed: its features have 6 numbers; expected 2048"):
        RegionStore("set", places["packed"][1]).read(9, features=True)
    plain = write_packed(tmp_path / "plain", {"9": record()}, classes=False)
    with pytest.raises(DataError, match="plain: has no class scores; pack again with --classes"):
        RegionStore("set", plain).read(9, features=False, class_scores=True)
    assert caplog.messages == []
    RegionStore("data/set_36.zip@/set_36", plain)
    assert caplog.messages == [f"{plain}: was packed from set and replaces data/set_36.zip@/set_36"]


def test_missing_places_are_named_at_once(tmp_path):
    with pytest.raises(DataError, match="none: no such folder"):
        RegionStore(str(tmp_path / "none"))


@pytest.mark.parametrize("form", ["folder", "zip", "packed"])
def test_files_by_path(places, form):
    place, packed = places[form]
    files = pickle.loads(pickle.dumps(RegionFiles(packed, feature_dim=F)))
    path = f"{place}/9.json"
    files.check(path)
    two = files.read(path, features=True, class_scores=True)
    assert two.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert two.features[1].tolist() == [6.5, 7.5, 8.5, 9.5, 10.5, 11.5]
    assert two.class_scores.tolist() == [[0, 0.125, 0.25], [0.375, 0.5, 0.625]]
    assert files.read(path, features=False).features is None


def test_places_of_files_are_checked(places, tmp_path):
    RegionFiles(feature_dim=F).check(f"{places['zip'][0]}/nothing.json")
    with pytest.raises(DataError, match="none: no such folder"):
        RegionFiles().check(f"{tmp_path}/none/9.json")
    with pytest.raises(DataError, match=r"none\.zip: no such file"):
        RegionFiles().check(f"{tmp_path}/none.zip@/9.json")
    files = RegionFiles(places["packed"][1], feature_dim=F)
    for method in (files.check, lambda path: files.read(path, features=True)):
        with pytest.raises(DataError, match=r"other: not packed; .*packed from set"):
            method("d/other/9.json")
    with pytest.raises(DataError, match=r"d/set/7\.json: not in .*packed$"):
        files.read("d/set/7.json", features=True)


def test_of_several_packed_files_the_folder_tells_which(places, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more/9.json").write_text(json.dumps(record(1)))
    header = PackedHeader(dtype="float32", feature_dim=F)
    pack([str(tmp_path / "more")], tmp_path / "second", header)
    files = RegionFiles(f"{places['packed'][1]}+{tmp_path}/second", feature_dim=F)
    for path, count in (("a/set/9.json", 2), ("more/9.json", 1), ("b/more.2.zip@/9.json", 1)):
        assert len(files.read(path, features=True).boxes) == count


def test_parts_of_a_set_may_be_packed_one_by_one(tmp_path):
    header = PackedHeader(dtype="float32", feature_dim=F, classes=True)
    for part in (0, 1):
        with zipfile.ZipFile(tmp_path / f"set.{part}.zip", "w") as archive:
            archive.writestr(f"{part}.json", json.dumps(record(part + 1)))
        pack([f"{tmp_path}/set.{part}.zip"], tmp_path / str(part), header)
    files = RegionFiles(f"{tmp_path}/0+{tmp_path}/1", feature_dim=F)
    for part in (0, 1):
        path = f"set.{part}.zip@/{part}.json"
        files.check(path, class_scores=True)
        assert len(files.read(path, features=True).boxes) == part + 1
    with pytest.raises(DataError, match=r"set\.1\.zip@/2\.json: not in .*/0, .*/1$"):
        files.read("set.1.zip@/2.json", features=True)


def test_all_parts_of_a_set_have_what_is_asked_for(tmp_path):
    paths = [write_packed(tmp_path / str(part), {"9": record()}, classes=part == 0) for part in (0, 1)]
    with pytest.raises(DataError, match="1: has no class scores"):
        RegionFiles("+".join(paths), feature_dim=F).check("set/9.json", class_scores=True)


@pytest.mark.parametrize("names", ["a+", "+a", "a++b", "+"])
def test_no_packed_file_is_without_a_name(names):
    with pytest.raises(ConfigError, match=r'DATASET\.PACKED_REGIONS: ".*": must name a file, or several'):
        RegionFiles(names)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("a/b/c.json", "a/b"),
        ("c.json", "."),
        ("a/b.zip@/c.json", "a/b.zip@/"),
        ("a/b.zip@/c/d.json", "a/b.zip@/c"),
        ("b.zip@c.json", "b.zip@/"),
    ],
)
def test_place_of_a_file(path, place):
    assert parent_location(path) == place


@pytest.mark.parametrize(
    "place",
    [
        "d/set", "d/set/", "d/set.zip@/set", "d/set.zip@/", "d/set.zip", "x.zip@/a/set",
        "d/set.0.zip", "d/set.3.zip@/", "set.1.zip@",
    ],
)  # fmt: skip
def test_place_name(place):
    assert source_name(place) == "set"


def test_names_of_other_places():
    assert [source_name(place) for place in ("d/set.4.zip", "set.1", "a.0.zip@/b.2")] == [
        "set.4",
        "set.1",
        "b.2",
    ]
