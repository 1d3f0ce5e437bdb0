import base64
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
    """Decodes the weights as the page does."""
    codes = np.frombuffer(zlib.decompress(base64.b64decode(data["weights"])), np.uint8)
    length = len(data["tokens"]) + len(data["labels"]) + 1
    return ((codes / 255) ** 2).reshape(data["layers"], data["heads"], length, length)


def image_of(data: dict) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data["image"].partition(",")[2])))


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
    return AttentionMaps(SequenceTokens(**{**fields, **changes}), np.full((1, 1, 6, 6), 1 / 6, np.float32))


def test_page_contains_record_and_image(tmp_path):
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


def test_page_loads_no_external_resource(tmp_path):
    page = written(tmp_path, small())
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import|import\(", page)


def test_stored_weights_have_small_error(tmp_path):
    record = example(2, 3)
    error = np.abs(weights_of(data_of(written(tmp_path, record))) - record.maps)
    assert error.max() < 0.004
    assert error[record.maps < 0.01].max() < 0.0004


@pytest.mark.integration
def test_base_model_page_is_below_five_megabytes(tmp_path):
    # 100 positions; noise in weights and image does not compress.
    record = example(words=60, regions=36)
    generator = np.random.default_rng(0)
    noise = generator.random(record.maps.shape, np.float32)
    record = replace(record, maps=noise / noise.sum(-1, keepdims=True))
    image = Image.fromarray(generator.integers(0, 256, (960, 1280, 3), np.uint8))
    page = written(tmp_path, record, image)
    assert len(page.encode()) < 5_000_000
    assert data_of(page)["image"] is not None


@pytest.mark.integration
def test_large_page_warns(tmp_path, caplog):
    record = example(1, 2, words=126, regions=149)
    written(tmp_path, record)
    assert caplog.messages == []
    page = written(tmp_path, replace(record, maps=np.tile(record.maps, (12, 6, 1, 1))))
    assert 5_000_000 < len(page) < 7_500_000  # 8 million with the default deflate strategy
    (message,) = caplog.messages
    assert re.search(r"page\.html: \d MB for 279 positions in 144 heads; use fewer regions", message)


def test_large_image_is_scaled_down(tmp_path):
    data = data_of(written(tmp_path, small(), Image.new("RGB", (2000, 1500))))
    assert image_of(data).size == (1000, 750)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_image_modes(tmp_path, mode):
    assert data_of(written(tmp_path, small(), Image.new(mode, (40, 30))))["image"] is not None


def test_data_is_never_parsed_as_html(tmp_path):
    token, label, name = '</script><script>alert("1")</script>', '1 <!--"&\\ 猫', "$data<b>é"
    record = small(image_id=name, tokens=("[CLS]", token, "[SEP]"), labels=("image", label))
    page = written(tmp_path, record)
    data = data_of(page)
    assert (data["tokens"][1], data["labels"][1], data["name"]) == (token, label, name)
    assert page.count("<script") == page.count("</script>") == 2
    assert f"<title>{html.escape('Attention ' + name)}</title>" in page


def test_roberta_tokens_and_text_without_regions(tmp_path):
    assert data_of(written(tmp_path, small(tokens=("<s>", "Ġa", "</s>"))))["words"] == [1]
    sequence = small().sequence.model_copy(update={"boxes": (), "labels": ()})
    text_only = AttentionMaps(sequence, np.full((1, 1, 4, 4), 0.25, np.float32))
    assert data_of(written(tmp_path, text_only))["regions"] == []


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
def test_inconsistent_record_raises(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        written(tmp_path, record)
    assert list(tmp_path.iterdir()) == []


def test_image_must_have_recorded_aspect_ratio(tmp_path):
    with pytest.raises(DataError, match="40 × 30 pixels; this one has 30 × 40"):
        written(tmp_path, small(), Image.new("RGB", (30, 40)))
    written(tmp_path, small(), Image.new("RGB", (80, 60)))  # a scaled image is accepted


def test_exif_orientation_is_applied_if_model_saw_image_upright(tmp_path):
    # A square image, whose size does not tell whether it was rotated.
    image = Image.new("RGB", (40, 40), "blue")
    image.paste("red", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise: top becomes right
    image.save(tmp_path / "image.png", exif=exif)
    for upright, right_is_red, top_is_red in ((True, True, False), (False, False, True)):
        record = small(size=(40, 40), upright=upright)
        opened = explorer.find_image(str(tmp_path / "image.png"), record.sequence)
        shown = image_of(data_of(written(tmp_path, record, opened)))
        assert [shown.getpixel(xy)[0] > 200 for xy in ((38, 38), (2, 2))] == [right_is_red, top_is_red]


def test_unwritable_page_raises(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(DataError, match=r"page.html: cannot be written \(Is a directory\)"):
        explorer.write_page(small(), None, tmp_path / "page.html")


def command(*arguments: object) -> int:
    return run(lambda: explorer.main([str(argument) for argument in arguments]))


@pytest.fixture
def maps(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "car.png")
    return small(image=str(tmp_path / "car.png")).save(tmp_path)


def test_command_finds_recorded_image(tmp_path, maps, capsys):
    flags = ("--attention", maps, "--out", tmp_path / "page.html")
    assert command(*flags) == 0
    assert data_of((tmp_path / "page.html").read_text())["image"] is not None
    assert "page.html: 0.0 MB" in capsys.readouterr().out
    (tmp_path / "car.png").rename(tmp_path / "moved.png")
    assert command(*flags) == 0
    assert data_of((tmp_path / "page.html").read_text())["image"] is None
    assert "pass it with --image" in capsys.readouterr().out
    assert command(*flags, "--image", tmp_path / "moved.png") == 0
    assert data_of((tmp_path / "page.html").read_text())["image"] is not None


def test_command_does_not_overwrite_its_input(tmp_path, maps, capsys):
    image = tmp_path / "car.png"
    for out in (maps, tmp_path / "../" / tmp_path.name / "small.json", image):
        before = out.read_bytes()
        assert command("--attention", maps, "--image", image, "--out", out) == 2
        assert "would overwrite" in capsys.readouterr().err
        assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "flags", "status", "message"),
    [
        (None, ("--out", "none/page.html"), 2, "none/page.html: "),
        (None, ("--image", "missing.jpg"), 1, "missing.jpg"),
        (lambda: Path("car.png").write_bytes(b"no image"), ("--image", "car.png"), 1, "car.png"),
        (lambda: Path("small.npy").unlink(), (), 1, "small.npy: cannot be read"),
        (lambda: Path("small.json").unlink(), (), 1, "small.json: cannot be read"),
        (lambda: Path("small.npy").write_bytes(b"no"), (), 1, "small.npy: not an array"),
        (lambda: np.save("small.npy", np.zeros((2, 2))), (), 1, "small.npy: has shape (2, 2)"),
    ],
)
def test_command_bad_input(tmp_path, maps, monkeypatch, capsys, damage, flags, status, message):
    monkeypatch.chdir(tmp_path)
    if damage:
        damage()
    assert command("--attention", "small.npy", "--out", "page.html", *flags) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
