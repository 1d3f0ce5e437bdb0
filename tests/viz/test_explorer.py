import base64
import errno
import html
import json
import re
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.cli.run import run
from common.errors import DataError
from common.inference.attention import AttentionMaps, SequenceTokens
from tests.viz.example import example
from viz import explorer


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])


def weights_of(data: dict) -> np.ndarray:
    """The weights as the page decodes them."""
    codes = np.frombuffer(zlib.decompress(base64.b64decode(data["weights"])), np.uint8)
    side = len(data["tokens"]) + len(data["labels"]) + 1
    return ((codes / 255) ** 2).reshape(data["layers"], data["heads"], side, side)


def written(folder: Path, record: AttentionMaps, image: Image.Image | None = None) -> str:
    explorer.write_page(record, image, folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def small(**changes: object) -> AttentionMaps:
    """One layer, one head: [CLS] a [SEP] image 1 [END]."""
    fields = {
        "image_id": "small",
        "image": "",
        "size": (40, 30),
        "tokens": ("[CLS]", "a", "[SEP]"),
        "boxes": ((0.0, 0.0, 39.0, 29.0), (10.0, 5.0, 19.0, 14.0)),
        "labels": ("image", "1 car"),
    }
    places = SequenceTokens(**{**fields, **changes})
    return AttentionMaps(places, np.full((1, 1, 6, 6), 1 / 6, np.float32))


def test_the_page_holds_everything(tmp_path):
    record = small()
    record.maps[0, 0, 1] = [0, 0.5, 0, 0, 0.25, 0.25]
    data = data_of(written(tmp_path, record, Image.new("RGB", (40, 30), "red")))
    assert data["tokens"] == ["[CLS]", "a", "[SEP]"]
    assert data["labels"] == ["image", "1 car"]
    assert (data["words"], data["regions"]) == ([1], [4])
    assert data["boxes"] == [[0, 0, 39, 29], [10, 5, 19, 14]]
    assert (data["name"], data["size"], data["layers"], data["heads"]) == ("small", [40, 30], 1, 1)
    np.testing.assert_allclose(weights_of(data)[0, 0, 1], [0, 0.5, 0, 0, 0.25, 0.25], atol=2e-3)
    assert data["image"].startswith("data:image/jpeg;base64,")


def test_a_page_asks_for_nothing_from_elsewhere(tmp_path):
    page = written(tmp_path, small())
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import|import\(", page)


def test_error_of_the_stored_weights(tmp_path):
    record = example(2, 3)
    error = np.abs(weights_of(data_of(written(tmp_path, record))) - record.maps)
    assert error.max() < 0.004
    assert error[record.maps < 0.01].max() < 0.0004


def test_pages_of_a_base_model_stay_below_five_megabytes(tmp_path):
    # 100 places, noise for weights and picture: nothing that compresses.
    record = example(words=60, regions=36)
    generator = np.random.default_rng(0)
    noise = generator.random(record.maps.shape, np.float32)
    record = replace(record, maps=noise / noise.sum(-1, keepdims=True))
    picture = Image.fromarray(generator.integers(0, 256, (960, 1280, 3), np.uint8))
    page = written(tmp_path, record, picture)
    assert len(page.encode()) < 5_000_000
    assert data_of(page)["image"] is not None


def test_a_large_page_says_so(tmp_path, caplog):
    record = example(1, 2, words=126, regions=149)
    written(tmp_path, record)
    assert caplog.messages == []
    again = {"maps": np.tile(record.maps, (12, 6, 1, 1))}
    page = written(tmp_path, replace(record, **again))
    assert 5_000_000 < len(page) < 7_500_000  # 8 million where deflate looks for repeats, as noise has none
    (message,) = caplog.messages
    assert re.search(
        r"page\.html: has \d MB: 279 places in 144 heads; fewer regions or a shorter text", message
    )


def test_large_pictures_are_made_smaller(tmp_path):
    page = written(tmp_path, small(), Image.new("RGB", (2000, 1500)))
    content = base64.b64decode(data_of(page)["image"].partition(",")[2])
    assert Image.open(BytesIO(content)).size == (1000, 750)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_pictures_of_any_mode(tmp_path, mode):
    assert data_of(written(tmp_path, small(), Image.new(mode, (40, 30))))["image"] is not None


def test_nothing_in_the_data_becomes_html(tmp_path):
    token, label, name = '</script><script>alert("1")</script>', '1 <!--"&\\ 猫', "$data<b>é"
    record = small(image_id=name, tokens=("[CLS]", token, "[SEP]"), labels=("image", label))
    page = written(tmp_path, record)
    data = data_of(page)
    assert (data["tokens"][1], data["labels"][1], data["name"]) == (token, label, name)
    assert page.count("<script") == page.count("</script>") == 2
    assert f"<title>{html.escape('Attention ' + name)}</title>" in page


def test_roberta_tokens_and_missing_sides(tmp_path):
    data = data_of(written(tmp_path, small(tokens=("<s>", "Ġa", "</s>"))))
    assert data["words"] == [1]
    places = small().places.model_copy(update={"boxes": (), "labels": ()})
    text = AttentionMaps(places, np.full((1, 1, 4, 4), 0.25, np.float32))
    assert data_of(written(tmp_path, text))["regions"] == []


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (replace(small(), maps=np.zeros((1, 1, 5, 5), np.float32)), r"\(layers, heads, 6, 6\)"),
        (replace(small(), maps=np.zeros((0, 1, 6, 6), np.float32)), "shape"),
        (replace(small(), maps=np.full((1, 1, 6, 6), np.nan, np.float32)), "expected 0 to 1"),
        (replace(small(), maps=np.full((1, 1, 6, 6), -1.0, np.float32)), "expected 0 to 1"),
        (small(boxes=((0.0, 0.0, 1.0, 1.0),)), "1 boxes but 2 labels"),
    ],
)
def test_records_that_do_not_hold_together(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        written(tmp_path, record)
    assert list(tmp_path.iterdir()) == []


def test_another_picture(tmp_path):
    with pytest.raises(DataError, match="40 × 30 pixels, this one has 30 × 40"):
        written(tmp_path, small(), Image.new("RGB", (30, 40)))
    written(tmp_path, small(), Image.new("RGB", (80, 60)))  # scaled is fine


def test_a_picture_that_its_camera_turned(tmp_path):
    # The size does not tell it: a user's own picture is read as it is shown, one of a data set as it is stored.
    turned = Image.new("RGB", (40, 40), "blue")
    turned.paste("red", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: the top is at the right
    turned.save(tmp_path / "turned.png", exif=exif)
    for upright, right, top in ((True, True, False), (False, False, True)):
        record = small(size=(40, 40), upright=upright)
        page = written(tmp_path, record, explorer.find_picture(str(tmp_path / "turned.png"), record.places))
        shown = Image.open(BytesIO(base64.b64decode(data_of(page)["image"].partition(",")[2])))
        assert [shown.getpixel(at)[0] > 200 for at in ((38, 38), (2, 2))] == [right, top]


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(path, fill):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(explorer, "replace_file", full)
    with pytest.raises(DataError, match=r"page.html: cannot be written \(No space left on device\)"):
        explorer.write_page(small(), None, tmp_path / "page.html")


# The command line.


def command(*arguments: object) -> int:
    return run(lambda: explorer.main([str(argument) for argument in arguments]))


@pytest.fixture
def maps(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "car.png")
    return small(image=str(tmp_path / "car.png")).save(tmp_path)


def test_the_recorded_picture_is_taken(tmp_path, maps, capsys):
    assert command("--attention", maps, "--out", tmp_path / "page.html") == 0
    assert data_of((tmp_path / "page.html").read_text())["image"] is not None
    assert "page.html: 0.0 MB" in capsys.readouterr().out


def test_the_recorded_picture_may_be_gone(tmp_path, maps, capsys):
    (tmp_path / "car.png").unlink()
    assert command("--attention", maps, "--out", tmp_path / "page.html") == 0
    assert data_of((tmp_path / "page.html").read_text())["image"] is None
    assert "give it with --image" in capsys.readouterr().out


def test_what_the_page_is_made_from_is_not_overwritten(tmp_path, maps, capsys):
    picture = tmp_path / "car.png"
    for out in (maps, tmp_path / "../" / tmp_path.name / "small.json", picture):
        before = out.read_bytes()
        assert command("--attention", maps, "--image", picture, "--out", out) == 2
        assert "would overwrite an input; name another file" in capsys.readouterr().err
        assert out.read_bytes() == before


def test_a_folder_that_is_missing(tmp_path, maps, capsys):
    assert command("--attention", maps, "--out", tmp_path / "none/page.html") == 2
    assert "none/page.html: no such directory" in capsys.readouterr().err


def test_another_place_of_the_picture(tmp_path, maps):
    (tmp_path / "car.png").rename(tmp_path / "moved.png")
    picture = ("--image", tmp_path / "moved.png")
    assert command("--attention", maps, *picture, "--out", tmp_path / "page.html") == 0
    assert data_of((tmp_path / "page.html").read_text())["image"] is not None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "small.npy").unlink(), "small.npy: cannot be read"),
        (lambda folder: (folder / "small.json").unlink(), "small.json: cannot be read"),
        (lambda folder: (folder / "small.npy").write_bytes(b"no"), "small.npy: not an array"),
        (lambda folder: np.save(folder / "small.npy", np.zeros((2, 2))), r"small.npy: has the shape (2, 2)"),
    ],
)
def test_maps_that_cannot_be_read(tmp_path, maps, capsys, spoil, message):
    spoil(tmp_path)
    assert command("--attention", maps, "--out", tmp_path / "page.html") == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_picture_that_cannot_be_read(tmp_path, maps, capsys, content):
    given = tmp_path / "given.jpg"
    if content is not None:
        given.write_bytes(content)
    assert command("--attention", maps, "--image", given, "--out", tmp_path / "page.html") == 1
    assert "given.jpg" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
