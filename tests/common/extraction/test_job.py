import errno
import json
import logging
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.regions.packed_format import PackedRegions
from common.data.regions.reader import RegionStore
from common.data.regions.sources import RegionSource
from common.data.regions.types import Regions
from common.errors import DataError, UsageError
from common.extraction import job as extraction
from common.extraction.job import Extraction, Recipe, class_distribution, list_images
from common.extraction.resume import resumable_folder
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
        Colours.seen += [image.getpixel((0, 0))[0] for image in images]
        colours = [self._scale * torch.tensor(image.getpixel((0, 0))).float() for image in images]
        return [(colour.repeat(len(own), 1), colour) for colour, own in zip(colours, boxes, strict=True)]


class Corner:
    """Finds a car in the first pixel of all but very wide pictures."""

    def __init__(self, device):
        pass

    def __call__(self, images):
        if images[0].width > 100:
            raise DataError("too wide")
        return [
            Regions(torch.tensor([[0.0, 0, 1, 1]]), class_ids=torch.tensor([3]), scores=torch.tensor([0.75]))
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
        "root": str(folder),
        "images": list_images(str(folder)),
        "boxes": None,
        "recipe": Recipe(Colours, Corner, class_scores=True),
        "devices": [CPU],
        "batch_size": 3,
    }
    return Extraction(**{**options, **changes})


def colours(place, keys, packed=""):
    store = RegionStore(str(place), packed, feature_dim=F)
    return [store.read(key, features=True, class_scores=True).features[0, 0].item() for key in keys]


def test_pictures_of_a_folder_and_of_an_archive(folder, tmp_path):
    """The same names, whatever holds them: those below the place."""
    (folder / "b/c").mkdir(parents=True)
    (folder / "p_002.png").rename(folder / "b/c/p_002.png")
    for hidden in (".p_001.png", "__MACOSX/._p_001.png", ".git/p_001.png", "d.png/notes.txt"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_text("no picture")
    (folder / "b/back").symlink_to(folder)
    numbers = [2, 0, 1, 3, 4, 5, 6]
    names = ["b/c/p_002", *(f"p_{number:03d}" for number in numbers[1:])]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            if "back" not in path.parts:
                archive.write(path, f"in/{path.relative_to(folder)}")
    for place in (str(folder), f"{tmp_path}/a.zip@/in"):
        assert list(list_images(place)) == names
        assert list(list_images(place, by_number=True)) == [str(number) for number in numbers]
    assert list(list_images(f"{tmp_path}/a.zip")) == [f"in/{name}" for name in names]
    found = list_images(f"{tmp_path}/a.zip@/in")
    assert found["p_003"] == f"{tmp_path}/a.zip@/in/p_003.png"
    work(folder, images=found).to_folder(tmp_path / "out")
    assert colours(tmp_path / "out", names) == numbers
    work(folder, images=found).to_packed_file(tmp_path / "out.packed", "float32", F)
    assert colours("out", names, str(tmp_path / "out.packed")) == numbers


def test_names_that_windows_packs(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(folder / "p_004.png", "a\\p.png")
    found = list_images(f"{tmp_path}/a.zip")
    assert list(found) == ["a/p"]
    work(folder, images=found).to_folder(tmp_path / "out")
    assert colours(tmp_path / "out", ["a/p"]) == [4]
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.write(folder / "p_004.png", "a/p.png")
    with pytest.raises(DataError, match=r"a\\p\.png and .*a/p\.png would both be a/p in the output"):
        list_images(f"{tmp_path}/a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(folder / "p_004.png", "../../p.png")
    with pytest.raises(DataError, match=r"b\.zip@/\.\./\.\./p\.png: its name leaves the archive"):
        list_images(f"{tmp_path}/b.zip")


def test_pictures_that_cannot_be_told_apart(folder, tmp_path):
    Image.new("RGB", (1, 1)).save(folder / "p_003.bmp")
    with pytest.raises(
        DataError, match=r"p_003\.png and .*p_003\.bmp would both be p_003 in the output; rename one"
    ):
        list_images(str(folder))
    (folder / "p_003.bmp").rename(folder / "p_x.bmp")
    with pytest.raises(DataError, match=r"p_x\.bmp: its name does not end in a number"):
        list_images(str(folder), by_number=True)
    with pytest.raises(DataError, match="none: no such folder"):
        list_images(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no images; expected files \.jpg"):
        list_images(str(tmp_path / "empty"))


def test_class_scores_are_distributions():
    found = Regions(
        torch.zeros(3, 4),
        class_ids=torch.tensor([3, 0, 80]),
        scores=torch.tensor([0.75, 1.0, 1.0]),
    )
    scores = class_distribution(found.class_ids, found.scores)
    assert scores.shape == (3, 81)
    assert scores.sum(dim=1).tolist() == [1, 1, 1]
    assert [scores[0, 3], scores[0, 0], scores[1, 0], scores[2, 80]] == [0.75, 0.25, 1, 1]
    assert class_distribution(found.class_ids[:0], found.scores[:0]).shape == (0, 81)


def test_both_outputs_hold_the_same(folder, tmp_path):
    names = [f"p_{number:03d}" for number in range(7)]
    assert work(folder).to_folder(tmp_path / "out") == 0
    found = RegionStore(str(tmp_path / "out"), feature_dim=F).read("p_002", features=True, class_scores=True)
    assert found.boxes.tolist() == [[0, 0, 1, 1]]
    assert (found.features.tolist(), found.image_feature.tolist()) == ([[2, 0, 9]], [2, 0, 9])
    assert (found.image_size, found.class_scores[0, 3]) == ((10, 6), 0.75)
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
    assert Colours.seen == [4]
    assert files(out) == whole
    assert "7 images, 6 of them done already" in caplog.messages
    work(folder).to_folder(out)
    assert Colours.seen == []


def test_what_is_done_is_never_written_again(folder, tmp_path):
    """Whatever the size of a batch."""
    out = tmp_path / "out"
    work(folder).to_folder(out)
    (out / "p_004.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in out.glob("p_*")}
    work(folder, batch_size=7).to_folder(out)
    assert {path: path.stat().st_mtime_ns for path in times} == times


BEGUN = {"--weights": "1", "--boxes": "2"}


@pytest.mark.parametrize(("device", "seen"), [("cpu", [4]), ("cuda", [4])])
def test_extraction_computes_only_missing_images(folder, tmp_path, device, seen):
    out = tmp_path / "out"
    on_device = work(folder, devices=[torch.device(device)])  # the stand-ins compute anywhere
    on_device.to_folder(out)
    files = sorted(out.glob("*.json"))
    assert len(files) == 7
    files[4].unlink()
    before = {path: path.stat().st_ino for path in files if path != files[4]}
    assert on_device.to_folder(out) == 0
    assert Colours.seen == seen
    assert {path: path.stat().st_ino for path in before} == before
    assert colours(out, ["p_004"]) == [4]


def test_a_folder_is_continued_with_the_same_arguments(folder, tmp_path, caplog):
    out, other = tmp_path / "out", tmp_path / "other"
    work(folder, arguments=BEGUN).to_folder(out)
    (out / "p_004.json").unlink()
    for changes, flags in (
        ({"--weights": "9"}, "--weights"),
        ({"--boxes": "3", "--classes": "True"}, "--boxes, --classes"),
    ):
        with pytest.raises(
            UsageError,
            match=f"out: was started with other arguments: {flags}; use the same or another --out",
        ):
            work(folder, arguments=BEGUN | changes).to_folder(out)
    work(folder, arguments=BEGUN).to_folder(out)
    # Pictures of another folder may have their boxes from elsewhere, but not other features.
    other.mkdir()
    Image.new("RGB", (9, 6)).save(other / "q.png")
    with pytest.raises(UsageError, match="other arguments: --weights;"):
        work(other, arguments=BEGUN | {"--weights": "9"}).to_folder(out)
    work(other, arguments=BEGUN | {"--boxes": "3"}).to_folder(out)
    (other / "q.png").rename(other / "p_004.png")
    with pytest.raises(
        UsageError, match=f"out: already holds p_004 of the images in {folder} or {other}; use another"
    ):
        work(tmp_path, images={"p_004": f"{other}/p_004.png"}, root="x", arguments=BEGUN).to_folder(out)
    assert not caplog.messages


def test_arguments_count_once_something_is_written(folder, tmp_path, caplog):
    for packed in (False, True):
        out = tmp_path / ("out.packed" if packed else "out")

        def start(where=out, packed=packed, **options):
            job = work(folder, **options)
            return job.to_packed_file(where, "float32", F) if packed else job.to_folder(where)

        with pytest.raises(DataError, match="not finite"):
            start(arguments=BEGUN, recipe=Recipe(partial(Colours, scale=np.nan), Corner, class_scores=True))
        start(arguments={"--weights": "9"})
    (tmp_path / "out" / ".arguments").unlink()
    work(folder, arguments=BEGUN).to_folder(tmp_path / "out")
    assert caplog.messages == [f"{tmp_path}/out: the arguments of its files are unknown; they are kept"]


def test_packing_continues(folder, tmp_path):
    job = work(folder, arguments=BEGUN)
    job.to_packed_file(tmp_path / "whole.packed", "float16", F)
    whole = (tmp_path / "whole.packed").read_bytes()
    (tmp_path / "whole.packed").rename(tmp_path / "other")
    for size in (0, *range(4096, len(whole), 150), len(whole)):
        (tmp_path / "whole.packed.partial").write_bytes(whole[:size])
        job.to_packed_file(tmp_path / "whole.packed", "float16", F)
        assert (tmp_path / "whole.packed").read_bytes() == whole
        (tmp_path / "whole.packed").unlink()
    (tmp_path / "whole.packed.partial").write_bytes(whole)
    with pytest.raises(UsageError, match=r"whole\.packed: was started with other arguments: --dtype;"):
        job.to_packed_file(tmp_path / "whole.packed", "float32", F)
    with pytest.raises(UsageError, match=r"whole\.packed: was started with other arguments: --weights; use"):
        work(folder, arguments={**BEGUN, "--weights": "9"}).to_packed_file(
            tmp_path / "whole.packed", "float16", F + 1
        )
    (folder / "p_002.png").unlink()
    with pytest.raises(UsageError, match="partial holds p_002, which is no longer an image"):
        work(folder, arguments=BEGUN).to_packed_file(tmp_path / "whole.packed", "float16", F)


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
    assert [message[:7] for message in caplog.messages if "skipped" in message] == ["skipped"] * 2
    assert (
        colours("out", ["p_006"], str(out)) == [6] if packed else colours(tmp_path / "out", ["p_006"]) == [6]
    )
    if packed:
        assert PackedRegions(str(out)).header.left_out == 2
    else:
        assert len(list((tmp_path / "out").glob("*.json"))) == 5


def test_what_a_finder_cannot_look_at_is_left_out(folder, tmp_path):
    Image.new("RGB", (200, 1)).save(folder / "p_003.png")
    with pytest.raises(DataError, match=r"p_003\.png: too wide \(--on-bad skip leaves"):
        work(folder).to_folder(tmp_path / "out")
    assert work(folder, skip_bad=True).to_folder(tmp_path / "out") == 1


def test_nothing_can_be_used(folder, tmp_path):
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of 7 images can be used"):
        work(folder, skip_bad=True).to_packed_file(tmp_path / "a.packed", "float32", F)
    assert not (tmp_path / "a.packed").exists()


def test_boxes_that_are_given(folder, tmp_path):
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    for number in range(7):
        (boxes / f"p_{number:03d}.json").write_text(f'{{"boxes": [[0, 0, {number}, 5]], "classes": ["car"]}}')
    (boxes / "p_003.json").write_text("[[8, 8, 1, 1]]")
    (boxes / "p_004.json").unlink()
    job = work(
        folder, boxes=RegionSource(str(boxes)), recipe=Recipe(Colours, None, class_scores=True), skip_bad=True
    )
    assert job.to_folder(tmp_path / "out") == 2
    found = RegionStore(str(tmp_path / "out")).read("p_006", features=False, class_scores=True)
    assert (found.boxes.tolist(), found.class_scores[0, 3]) == ([[0, 0, 6, 5]], 1)
    with pytest.raises(DataError, match=r"p_003\.json: box 0, .*, is empty"):
        work(
            folder, boxes=RegionSource(str(boxes)), recipe=Recipe(Colours, None, class_scores=True)
        ).to_folder(tmp_path / "more")


def test_numbers_that_cannot_be_stored(folder, tmp_path):
    huge = Recipe(partial(Colours, scale=1e5), Corner, class_scores=False)
    with pytest.raises(DataError, match=r"p_000\.png: holds numbers too large for torch\.float16"):
        work(folder, recipe=huge).to_packed_file(tmp_path / "a.packed", "float16", F)
    broken = Recipe(partial(Colours, scale=np.nan), Corner, class_scores=False)
    with pytest.raises(DataError, match=r"p_000\.png: its features are not finite; check the weights"):
        work(folder, recipe=broken).to_folder(tmp_path / "out")


def test_names_of_many_digits(folder, tmp_path):
    digits = "9" * 24
    (folder / "p_003.png").rename(folder / f"{digits}.png")
    work(folder, images={digits: f"{folder}/{digits}.png", "7": f"{folder}/p_002.png"}).to_folder(
        tmp_path / "out"
    )
    ids = {path.stem: json.loads(path.read_text())["image_id"] for path in (tmp_path / "out").glob("*.json")}
    assert ids == {digits: digits, "7": 7}


def test_other_errors_are_not_those_of_the_folder(tmp_path):
    for error in (BlockingIOError("no process"), OSError("no memory")):
        with pytest.raises(type(error), match=str(error)), resumable_folder(tmp_path / "out", [], "", {}):
            raise error


def test_a_file_that_cannot_be_written(folder, tmp_path, monkeypatch):
    def full(path, fill):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extraction, "replace_file", full)
    with pytest.raises(
        DataError, match=r"p_000\.json: cannot be written \(No space .*rerun the same command to resume"
    ):
        work(folder).to_folder(tmp_path / "out")


def test_two_processes_do_not_write_one_folder(folder, tmp_path):
    out = tmp_path / "out"
    with (
        resumable_folder(out, [], "", {}),
        pytest.raises(UsageError, match="out: another process is writing"),
    ):
        work(folder).to_folder(out)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: cannot be written"):
        work(folder).to_folder(tmp_path / "file")
