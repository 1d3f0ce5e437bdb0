"""Maps and pages for a folder of images."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from common.data.regions.sources import RegionSource
from common.inference.attention import AttentionMaps
from tests.refcoco.world import SMALL, World
from tests.world import draw
from viz import attention_maps

pytestmark = pytest.mark.integration


class VizWorld(World):
    """The RefCOCO world with this command."""

    commands = {"maps": attention_maps.main}  # noqa: RUF012 - as declared


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    drawn = draw(tmp_path_factory.mktemp("drawn") / "toy", SMALL)
    world = VizWorld(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train() == 0
    return world


@pytest.fixture
def images(trained):
    return sorted((trained.data / "train2014").iterdir())


@pytest.fixture
def write(trained, images):
    """Runs the command; `--images` defaults to the folder of all images."""

    def write(out: str, *flags: str) -> int:
        fixed = (*trained.model(), "--device", "cpu", "--out", str(trained.out / out))
        return trained.command("maps", *fixed, "--images", str(images[0].parent), *flags)

    return write


def words(path) -> tuple[str, ...]:
    return AttentionMaps.load(path).sequence.tokens[1:-1]


def test_folder_of_images(trained, write):
    assert write("maps", "--text", "red cup", "--limit", "3") == 0
    arrays = sorted((trained.out / "maps").glob("*.npy"))
    assert len(arrays) == 3
    for path in arrays:
        assert words(path) == ("red", "cup")
        assert path.with_suffix(".html").read_text().startswith("<!")
    assert len(list((trained.out / "maps").iterdir())) == 10  # and the manifest


def test_texts_file(trained, images, write, tmp_path):
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({images[1].name: "cup", images[0].name: "red"}))
    assert write("own", "--texts", str(texts), "--no-pages") == 0
    assert [words(path) for path in sorted((trained.out / "own").glob("*.npy"))] == [("red",), ("cup",)]
    assert not list((trained.out / "own").glob("*.html"))


def test_other_files_are_ignored(trained, images, write, tmp_path):
    image = tmp_path / images[0].name
    image.write_bytes(images[0].read_bytes())
    (tmp_path / "notes.pdf").write_text("no image")
    for out, source in (("folder", tmp_path), ("single", image)):
        assert write(out, "--images", str(source), "--text", "cup", "--no-pages") == 0
        assert [path.stem for path in (trained.out / out).glob("*.npy")] == [image.stem]


def test_subfolders(trained, images, write, tmp_path):
    for name in ("b/1.jpg", "c/1.jpg", "c/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(images[0].read_bytes())
    (tmp_path / "texts").write_text('{"c/1.jpg": "cup", "b/1.jpg": "red"}')
    flags = ("--images", str(tmp_path), "--texts", str(tmp_path / "texts"), "--no-pages")
    assert write("below", *flags) == 0
    paths = sorted((trained.out / "below").rglob("*.npy"))
    assert [str(path.relative_to(trained.out)) for path in paths] == ["below/b/1.npy", "below/c/1.npy"]
    assert list(map(words, paths)) == [("red",), ("cup",)]


def test_box_files(trained, write, tmp_path, capsys, monkeypatch):
    opened = []
    init = RegionSource.__init__
    monkeypatch.setattr(RegionSource, "__init__", lambda self, path: opened.append(path) or init(self, path))
    boxes = str(trained.data / "annotations/instances_train2014.json")
    flags = ("--text", "cup", "--limit", "2", "--no-pages")
    assert write("coco", *flags, "--boxes", boxes) == 0
    assert opened == [boxes]  # once for all images
    for path in (trained.out / "coco").glob("*.npy"):
        sequence = AttentionMaps.load(path).sequence
        assert sequence.upright
        expected = RegionSource(boxes).read(f"{path.stem}.jpg").boxes
        np.testing.assert_allclose(sequence.boxes[-len(expected) :], expected, atol=0.1)
    (tmp_path / "one.json").write_text("[[0, 0, 5, 5]]")
    assert write("x", *flags, "--boxes", str(tmp_path / "one.json")) == 2
    assert "one.json: has the boxes of one image; for several images, give" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ((), 2, "--text and --texts: give one of them"),
        (("--text", "a", "--texts", "b"), 2, "--text and --texts: give one of them"),
        (("--text", "a", "--images", "nowhere"), 1, "nowhere: no such folder"),
        (("--texts", "nowhere.json"), 1, "nowhere.json: cannot be read"),
        (("--text", "a", "--limit", "0"), 2, "--limit: 0: must be at least 1"),
        (("--text", "a", "--out", "/dev/null/x"), 2, "--out: /dev/null/x: not writable"),
    ],
)
def test_bad_flags(write, flags, status, message, capsys):
    assert write("x", *flags) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('["a"]', "expected a json object with the text of each image"),
        ("{}", "expected a json object with the text of each image"),
        ('{"no.jpg": "a"}', "no.jpg: no such image in "),
    ],
)
def test_bad_texts_file(write, tmp_path, capsys, content, message):
    (tmp_path / "texts.json").write_text(content)
    assert write("x", "--texts", str(tmp_path / "texts.json")) == 1
    assert message in capsys.readouterr().err


def test_images_with_same_output_name(write, tmp_path, capsys):
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(b"")
    assert write("x", "--images", str(tmp_path), "--text", "a") == 1
    assert "would both be a in the output; rename one" in capsys.readouterr().err


def test_rerun_after_broken_image(trained, images, write, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    for index, image in enumerate(images[:3]):
        (tmp_path / f"{index}.jpg").write_bytes(image.read_bytes())
    (tmp_path / "1.jpg").write_bytes(b"")
    flags = ("--images", str(tmp_path), "--text")
    out = trained.out / "rerun"
    assert write("rerun", *flags, "cup") == 1
    assert "1.jpg: not a readable image (the file is empty) (--on-bad skip" in capsys.readouterr().err
    assert [path.name for path in out.glob("*.html")] == ["0.html"]
    first = (out / "0.html").stat().st_mtime_ns
    skip = ("--on-bad", "skip")
    assert write("rerun", *flags, "cup", *skip) == 0
    assert "3 images, 1 already done" in caplog.messages
    assert caplog.messages[-1].endswith("attention maps of 2 images, 1 skipped")
    assert (out / "0.html").stat().st_mtime_ns == first
    # Another text or setting makes the outputs outdated.
    assert write("rerun", *flags, "red", *skip) == 0
    assert caplog.messages.count("3 images, 0 already done") == 2
    assert words(out / "2.npy") == ("red",)
    assert write("rerun", *flags, "red", *skip, "--set", "DATASET.ADD_IMAGE_AS_A_BOX=false") == 0
    assert caplog.messages.count("3 images, 0 already done") == 3
