"""Maps and pages of any model on a folder of pictures."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from common.data.regions.sources import RegionSource, clip_to_image
from common.inference.attention import AttentionMaps
from tests.refcoco.world import SMALL, World
from tests.world import draw
from viz import attention_maps


class VizWorld(World):
    """RefCOCO's world with the command."""

    commands = {"maps": attention_maps.main}  # noqa: RUF012 - as declared


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    drawn = draw(tmp_path_factory.mktemp("drawn") / "toy", SMALL)
    world = VizWorld(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train() == 0
    return world


def write(world: VizWorld, out: str, *flags: str) -> int:
    given = (*world.model(), "--device", "cpu", "--out", str(world.out / out))
    return world.command("maps", *given, *flags)


def test_a_folder_of_pictures(trained):
    folder = str(trained.data / "train2014")
    assert write(trained, "maps", "--images", folder, "--text", "red cup", "--limit", "3") == 0
    files = sorted((trained.out / "maps").iterdir())
    assert len(files) == 10
    for path in files[3::3]:
        found = AttentionMaps.load(path)
        assert found.places.tokens == ("[CLS]", "red", "cup", "[SEP]")
        assert path.with_suffix(".html").read_text().startswith("<!")


def test_texts_of_their_own(trained, tmp_path):
    names = sorted(path.name for path in (trained.data / "train2014").iterdir())[:2]
    (tmp_path / "texts.json").write_text(json.dumps({names[1]: "cup", names[0]: "red"}))
    flags = (
        "--images",
        str(trained.data / "train2014"),
        "--texts",
        str(tmp_path / "texts.json"),
        "--no-pages",
    )
    assert write(trained, "own", *flags) == 0
    found = [
        AttentionMaps.load(path).places.tokens[1] for path in sorted((trained.out / "own").glob("*.npy"))
    ]
    assert found == ["red", "cup"]
    assert not list((trained.out / "own").glob("*.html"))


def test_other_files_in_the_folder(trained, tmp_path):
    picture = next((trained.data / "train2014").iterdir())
    (tmp_path / picture.name).write_bytes(picture.read_bytes())
    for name in ("notes.pdf", "clip.mpg"):
        (tmp_path / name).write_text("no picture")
    assert write(trained, "alone", "--images", str(tmp_path), "--text", "cup", "--no-pages") == 0
    assert [path.stem for path in (trained.out / "alone").glob("*.npy")] == [picture.stem]
    assert write(trained, "one", "--images", str(tmp_path / picture.name), "--text", "cup", "--no-pages") == 0
    assert [path.stem for path in (trained.out / "one").glob("*.npy")] == [picture.stem]


def test_boxes_of_coco_and_of_one_picture(trained, tmp_path, capsys, monkeypatch):
    folder, opened = str(trained.data / "train2014"), []
    begin = RegionSource.__init__
    monkeypatch.setattr(RegionSource, "__init__", lambda self, path: opened.append(path) or begin(self, path))
    boxes = str(trained.data / "annotations/instances_train2014.json")
    flags = ("--images", folder, "--text", "cup", "--limit", "2", "--no-pages")
    assert write(trained, "coco", *flags, "--boxes", boxes) == 0
    assert opened == [boxes]
    for path in (trained.out / "coco").glob("*.npy"):
        places = AttentionMaps.load(path).places
        assert places.upright
        given = clip_to_image(RegionSource(boxes).read(f"{path.stem}.jpg"), places.size).boxes
        np.testing.assert_allclose(places.boxes[-len(given) :], given, atol=0.1)
    (tmp_path / "one.json").write_text("[[0, 0, 5, 5]]")
    assert write(trained, "x", *flags, "--boxes", str(tmp_path / "one.json")) == 2
    assert "one.json: holds the boxes of one picture; for several, give" in capsys.readouterr().err


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
def test_mistakes(trained, flags, status, message, capsys):
    assert write(trained, "x", "--images", str(trained.data / "train2014"), *flags) == status
    assert message in capsys.readouterr().err


def test_texts_that_do_not_fit(trained, tmp_path, capsys):
    path = tmp_path / "texts.json"
    flags = ("--images", str(trained.data / "train2014"), "--texts", str(path))
    path.write_text('["a"]')
    assert write(trained, "x", *flags) == 1
    assert "expected a json object with the text of each picture" in capsys.readouterr().err
    path.write_text("{}")
    assert write(trained, "x", *flags) == 1
    assert "expected a json object with the text of each picture" in capsys.readouterr().err
    path.write_text('{"no.jpg": "a"}')
    assert write(trained, "x", *flags) == 1
    assert "no.jpg: there is no such picture in " in capsys.readouterr().err


def test_two_pictures_of_one_name(tmp_path, trained, capsys):
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(b"")
    assert write(trained, "x", "--images", str(tmp_path), "--text", "a") == 1
    assert "would both be a in the output; rename one" in capsys.readouterr().err


def test_folders_below_the_folder(tmp_path, trained):
    picture = next((trained.data / "train2014").iterdir())
    for name in ("b/1.jpg", "c/1.jpg", "c/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture.read_bytes())
    (tmp_path / "texts").write_text('{"c/1.jpg": "cup", "b/1.jpg": "red"}')
    flags = ("--images", str(tmp_path), "--texts", str(tmp_path / "texts"), "--no-pages")
    assert write(trained, "below", *flags) == 0
    found = sorted((trained.out / "below").rglob("*.npy"))
    assert [str(path.relative_to(trained.out)) for path in found] == ["below/b/1.npy", "below/c/1.npy"]
    assert [AttentionMaps.load(path).places.tokens[1] for path in found] == ["red", "cup"]


def test_a_broken_picture_and_a_rerun(tmp_path, trained, capsys, caplog):
    caplog.set_level(logging.INFO)
    pictures = sorted((trained.data / "train2014").iterdir())[:3]
    for number, picture in enumerate(pictures):
        (tmp_path / f"{number}.jpg").write_bytes(picture.read_bytes())
    (tmp_path / "1.jpg").write_bytes(b"")
    flags = ("--images", str(tmp_path), "--text")
    out = trained.out / "rerun"
    assert write(trained, "rerun", *flags, "cup") == 1
    assert "1.jpg: not a readable image (the file is empty) (--on-bad skip" in capsys.readouterr().err
    assert [path.name for path in out.glob("*.html")] == ["0.html"]
    first = (out / "0.html").stat().st_mtime_ns
    assert write(trained, "rerun", *flags, "cup", "--on-bad", "skip") == 0
    assert "3 pictures, 1 of them are done already" in caplog.messages
    assert caplog.messages[-1].endswith("attention maps of 2 pictures, 1 left out")
    assert (out / "0.html").stat().st_mtime_ns == first
    # Files of another text are not what was asked for.
    assert write(trained, "rerun", *flags, "red", "--on-bad", "skip") == 0
    assert caplog.messages.count("3 pictures, 0 of them are done already") == 2
    assert AttentionMaps.load(out / "2.npy").places.tokens[1] == "red"
    assert (
        write(
            trained, "rerun", *flags, "red", "--on-bad", "skip", "--set", "DATASET.ADD_IMAGE_AS_A_BOX=false"
        )
        == 0
    )
    assert caplog.messages.count("3 pictures, 0 of them are done already") == 3
