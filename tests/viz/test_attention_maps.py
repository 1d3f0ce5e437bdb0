"""Maps and pages of any model on a folder of pictures."""

from __future__ import annotations

import json

import pytest

from common.engine.attention import AttentionMaps
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
    assert len(files) == 9
    for path in files[2::3]:
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


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        ((), 2, "--text and --texts: give one of them"),
        (("--text", "a", "--texts", "b"), 2, "--text and --texts: give one of them"),
        (("--text", "a", "--images", "nowhere"), 2, "--images: nowhere: no picture there"),
        (("--texts", "nowhere.json"), 1, "nowhere.json: cannot be read"),
        (("--text", "a", "--limit", "0"), 2, "--limit: 0: must be at least 1"),
        (("--text", "a", "--out", "/dev/null/x"), 2, "--out: /dev/null/x: cannot write there"),
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
    path.write_text('{"no.jpg": "a"}')
    assert write(trained, "x", *flags) == 1
    assert "no.jpg: there is no such picture in " in capsys.readouterr().err


def test_two_pictures_of_one_name(tmp_path, trained, capsys):
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(b"")
    assert write(trained, "x", "--images", str(tmp_path), "--text", "a") == 2
    assert "several pictures are called a" in capsys.readouterr().err
