import errno
import json
import logging
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.box_file import BoxFile
from common.data.found import FoundRegions
from common.data.packed_regions import PackedRegions
from common.data.regions import RegionStore
from common.engine import extraction
from common.engine.extraction import Extraction, Recipe, class_scores, list_pictures
from common.engine.region_extractor import PooledFeatures
from common.errors import DataError, UsageError
from scripts import pack_regions

CPU = torch.device("cpu")
F = 3


class Colours:
    """The feature of every region is the colour of the first pixel, times `scale`."""

    seen: list[int]

    def __init__(self, device, scale=1.0):
        self._scale = scale
        Colours.seen = []

    def __call__(self, images, boxes):
        Colours.seen.append(len(images))
        colours = [self._scale * torch.tensor(image.getpixel((0, 0))).float() for image in images]
        return [
            PooledFeatures(colour.repeat(len(own), 1), colour)
            for colour, own in zip(colours, boxes, strict=True)
        ]


class Corner:
    """Finds a car in the first pixel."""

    def __init__(self, device):
        pass

    def __call__(self, images):
        return [
            FoundRegions(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([3]), torch.tensor([0.75]))
            for _ in images
        ]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "pictures"
    made.mkdir()
    for number in range(7):
        Image.new("RGB", (8 + number, 6), (number, 0, 9)).save(made / f"p_{number:03d}.png")
    (made / "notes.txt").write_text("no picture")
    return made


def work(folder, **changes):
    options = {
        "pictures": list_pictures(str(folder)),
        "boxes": None,
        "recipe": Recipe(Colours, Corner, classes=True),
        "devices": [CPU],
        "batch_size": 3,
    }
    return Extraction(**{**options, **changes})


def colours(place, keys, packed=""):
    store = RegionStore(str(place), packed, feature_dim=F)
    return [store.read(key, features=True, classes=True).features[0, 0].item() for key in keys]


def test_pictures_of_a_folder_and_of_an_archive(folder, tmp_path):
    names = [f"p_{number:03d}" for number in range(7)]
    assert list(list_pictures(str(folder))) == names
    assert list(list_pictures(str(folder), by_number=True)) == [str(number) for number in range(7)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"in/{path.name}")
    for place in (f"{tmp_path}/a.zip", f"{tmp_path}/a.zip@/in"):
        found = list_pictures(place)
        assert found["p_003"] == f"{tmp_path}/a.zip@/in/p_003.png"
    work(folder, pictures=found).to_folder(tmp_path / "out")
    assert colours(tmp_path / "out", names) == list(range(7))


def test_pictures_that_cannot_be_told_apart(folder, tmp_path):
    Image.new("RGB", (1, 1)).save(folder / "p_003.bmp")
    with pytest.raises(
        DataError, match=r"p_003\.png and .*p_003\.bmp would have the same region file p_003\.json"
    ):
        list_pictures(str(folder))
    (folder / "p_003.bmp").rename(folder / "p_x.bmp")
    with pytest.raises(DataError, match=r"p_x\.bmp: its name does not end in a number"):
        list_pictures(str(folder), by_number=True)
    with pytest.raises(DataError, match="none: no such folder"):
        list_pictures(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no pictures; expected files \.jpg"):
        list_pictures(str(tmp_path / "empty"))


def test_class_scores_are_distributions():
    found = FoundRegions(torch.zeros(3, 4), torch.tensor([3, 0, 80]), torch.tensor([0.75, 1.0, 1.0]))
    scores = class_scores(found)
    assert scores.shape == (3, 81)
    assert scores.sum(dim=1).tolist() == [1, 1, 1]
    assert [scores[0, 3], scores[0, 0], scores[1, 0], scores[2, 80]] == [0.75, 0.25, 1, 1]
    assert class_scores(FoundRegions(torch.zeros(0, 4), found.classes[:0], found.scores[:0])).shape == (0, 81)


def test_both_outputs_hold_the_same(folder, tmp_path):
    names = [f"p_{number:03d}" for number in range(7)]
    assert work(folder).to_folder(tmp_path / "out") == 0
    found = RegionStore(str(tmp_path / "out"), feature_dim=F).read("p_002", features=True, classes=True)
    assert found.boxes.tolist() == [[0, 0, 1, 1]]
    assert (found.features.tolist(), found.image_feature.tolist()) == ([[2, 0, 9]], [2, 0, 9])
    assert (found.size, found.classes[0, 3]) == ((10, 6), 0.75)
    assert work(folder).to_packed_file(tmp_path / "out.packed", "float32", F) == 0
    assert colours("out", names, str(tmp_path / "out.packed")) == list(range(7))
    flags = [str(tmp_path / "out"), "--out", str(tmp_path / "again"), "--feature-dim", str(F), "--classes"]
    pack_regions.main(flags)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out.packed").read_bytes()


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_there_is_not_done_again(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    work(folder).to_folder(out)
    whole = files(out)
    (out / "p_004.json").unlink()
    (out / ".p_004.json.1.tmp").write_text("what a killed process left")
    work(folder).to_folder(out)
    assert Colours.seen == [3]  # all of the batch, as the first time
    assert files(out) == whole
    assert "7 pictures, 6 of them are done already" in caplog.messages
    work(folder).to_folder(out)
    assert Colours.seen == []


def test_packing_continues(folder, tmp_path):
    work(folder).to_packed_file(tmp_path / "whole.packed", "float16", F)
    whole = (tmp_path / "whole.packed").read_bytes()
    (tmp_path / "whole.packed").rename(tmp_path / "other")
    for size in (0, *range(4096, len(whole), 150), len(whole)):
        (tmp_path / "whole.packed.partial").write_bytes(whole[:size])
        work(folder).to_packed_file(tmp_path / "whole.packed", "float16", F)
        assert (tmp_path / "whole.packed").read_bytes() == whole
        (tmp_path / "whole.packed").unlink()
    (tmp_path / "whole.packed.partial").write_bytes(whole)
    with pytest.raises(UsageError, match="begun with other arguments"):
        work(folder).to_packed_file(tmp_path / "whole.packed", "float32", F)
    (folder / "p_002.png").unlink()
    with pytest.raises(UsageError, match="partial holds p_002, which is no picture any more"):
        work(folder).to_packed_file(tmp_path / "whole.packed", "float16", F)


def spoil(folder):
    (folder / "p_001.png").write_bytes(b"")
    (folder / "p_005.png").write_bytes((folder / "p_005.png").read_bytes()[:50])


@pytest.mark.parametrize("packed", [False, True])
def test_bad_pictures_stop_it_or_are_left_out(folder, tmp_path, caplog, packed):
    spoil(folder)
    out = tmp_path / "out.packed"

    def start(**options):
        job = work(folder, **options)
        return job.to_packed_file(out, "float32", F) if packed else job.to_folder(tmp_path / "out")

    with pytest.raises(DataError, match=r"p_001\.png: .*the file is empty\) \(--on-bad skip leaves such"):
        start()
    assert start(skip_bad=True) == 2
    assert [message[:8] for message in caplog.messages if "left out" in message] == ["left out"] * 2
    assert (
        colours("out", ["p_006"], str(out)) == [6] if packed else colours(tmp_path / "out", ["p_006"]) == [6]
    )
    if packed:
        assert PackedRegions(str(out)).header.left_out == 2
    else:
        assert len(files(tmp_path / "out")) == 5


def test_nothing_can_be_used(folder, tmp_path):
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of 7 pictures can be used"):
        work(folder, skip_bad=True).to_packed_file(tmp_path / "a.packed", "float32", F)
    assert not (tmp_path / "a.packed").exists()


def test_boxes_that_are_given(folder, tmp_path):
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    for number in range(7):
        (boxes / f"p_{number:03d}.json").write_text(f'{{"boxes": [[0, 0, {number}, 5]], "classes": ["car"]}}')
    (boxes / "p_003.json").write_text("[[8, 8, 1, 1]]")
    (boxes / "p_004.json").unlink()
    job = work(folder, boxes=BoxFile(str(boxes)), recipe=Recipe(Colours, None, classes=True), skip_bad=True)
    assert job.to_folder(tmp_path / "out") == 2
    found = RegionStore(str(tmp_path / "out")).read("p_006", features=False, classes=True)
    assert (found.boxes.tolist(), found.classes[0, 3]) == ([[0, 0, 6, 5]], 1)
    with pytest.raises(DataError, match=r"p_003\.json: box 0, .*, is empty"):
        work(folder, boxes=BoxFile(str(boxes)), recipe=Recipe(Colours, None, classes=True)).to_folder(
            tmp_path / "more"
        )


def test_numbers_that_cannot_be_stored(folder, tmp_path):
    huge = Recipe(partial(Colours, scale=1e5), Corner, classes=False)
    with pytest.raises(DataError, match=r"p_000\.png: holds numbers too large for torch\.float16"):
        work(folder, recipe=huge).to_packed_file(tmp_path / "a.packed", "float16", F)
    broken = Recipe(partial(Colours, scale=np.nan), Corner, classes=False)
    with pytest.raises(DataError, match=r"p_000\.png: its features are not finite; are the weights right"):
        work(folder, recipe=broken).to_folder(tmp_path / "out")


def test_names_of_many_digits(folder, tmp_path):
    digits = "9" * 24
    (folder / "p_003.png").rename(folder / f"{digits}.png")
    work(folder, pictures={digits: f"{folder}/{digits}.png", "7": f"{folder}/p_002.png"}).to_folder(
        tmp_path / "out"
    )
    ids = {path.stem: json.loads(path.read_text())["image_id"] for path in (tmp_path / "out").iterdir()}
    assert ids == {digits: digits, "7": 7}


def test_other_errors_are_not_those_of_the_folder(tmp_path):
    for error in (BlockingIOError("no process"), OSError("no memory")):
        with pytest.raises(type(error), match=str(error)), extraction._open_folder(tmp_path / "out"):
            raise error


def test_a_file_that_cannot_be_written(folder, tmp_path, monkeypatch):
    def full(path, fill):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extraction, "replace_file", full)
    with pytest.raises(
        DataError, match=r"p_000\.json: cannot be written \(No space .*the same command continues"
    ):
        work(folder).to_folder(tmp_path / "out")


def test_two_processes_do_not_write_one_folder(folder, tmp_path):
    out = tmp_path / "out"
    with extraction._open_folder(out), pytest.raises(UsageError, match="out: another process is writing it"):
        work(folder).to_folder(out)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: cannot be written"):
        work(folder).to_folder(tmp_path / "file")
