"""Region files for toy pictures, from the command line to a step of training."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from common.cli.run import run
from common.data.regions.reader import RegionStore
from common.models.fast_rcnn import FastRCNN
from data import extract_regions
from scripts.make_toy_data import ToyWorld
from tests.pretrain.world import World as PretrainWorld
from tests.vqa.world import SMALL
from tests.vqa.world import World as VQAWorld
from tests.world import ROOT, draw
from vl_bert import read_config

pytestmark = pytest.mark.integration

CFG = ROOT / "cfgs/pretrain/toy_e2e.yaml"
PICTURES = 50
F = 32  # of a ResNet-18 with 4 channels
TINY = ["NETWORK.IMAGE_WIDTH=4", "SCALES=[96, 96]"]
DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"
SETTINGS = [part for value in TINY for part in ("--set", value)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    world = ToyWorld(tasks=("pretrain",), train=2 * PICTURES, val=4, test=1)
    return draw(tmp_path_factory.mktemp("drawn") / "toy", world)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "toy.model"
    torch.manual_seed(0)
    state = FastRCNN.from_config(read_config(CFG, TINY)).state_dict()
    torch.save(
        {"state_dict": {f"image_feature_extractor.{name}": value for name, value in state.items()}}, path
    )
    return path


@pytest.fixture(scope="module")
def flags(drawn, checkpoint):
    images = drawn / "conceptual-captions/train_image"
    return [str(images), "--cfg", str(CFG), "--ckpt", str(checkpoint), *SETTINGS, "--classes"]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """What an undisturbed run writes, in both forms; of the folder the bytes by name."""
    folder = tmp_path_factory.mktemp("whole")
    for out in ("train_frcnn", "train_frcnn.packed"):
        extract_regions.main([*flags, "--out", str(folder / out)])
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_files_are_right(whole):
    (folder, packed) = (str(whole / name) for name in ("train_frcnn", "train_frcnn.packed"))
    assert len(list((whole / "train_frcnn").glob("*.json"))) == PICTURES
    for number in range(PICTURES):
        one, other = (
            RegionStore(folder, path, feature_dim=F).read(f"{number:08d}", features=True, class_scores=True)
            for path in ("", packed)
        )
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, torch.Tensor))
        assert one.image_size == other.image_size
        assert (one.boxes.shape, one.features.shape, one.class_scores.shape) == ((14, 4), (14, F), (14, 81))
        assert one.features.std(dim=0).sum() > 0
        assert torch.equal(one.class_scores.sum(dim=1), torch.ones(14))


def begun(out):
    """How much of an output is there, in pictures or bytes."""
    if out.suffix:
        partial = out.with_name(f"{out.name}.partial")
        return partial.stat().st_size if partial.exists() else 0
    return len(list(out.glob("*.json"))) if out.exists() else 0


@pytest.mark.parametrize(
    ("name", "enough", "call", "processes"),
    [
        ("train_frcnn", 10, [str(ROOT / "data/extract_regions.py")], 1),
        pytest.param("train_frcnn.packed", 40_000, ["-m", "data.extract_regions"], 2, marks=pytest.mark.dist),
    ],
)
def test_killed_at_half_and_started_again_it_ends_with_the_same_bytes(
    flags, whole, tmp_path, name, enough, call, processes
):
    out, log = tmp_path / name, tmp_path / "log"
    command = [sys.executable, *call, *flags, "--out", str(out), "--processes", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads() * processes)}
    with (
        log.open("w") as shown,
        subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=shown) as started,
    ):
        deadline = time.monotonic() + 120
        while begun(out) < enough and time.monotonic() < deadline:
            assert started.poll() is None
            time.sleep(0.001)
        started.kill()
    while time.monotonic() < deadline:  # its processes end by themselves
        try:
            os.killpg(started.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("processes are left")
    assert log.read_text().count("using a grid of 14 regions") == 1
    assert enough <= begun(out)
    assert not (out / f"{PICTURES - 1:08d}.json").exists()
    assert not out.is_file()
    extract_regions.main([*flags, "--out", str(out)])
    if out.is_dir():
        assert contents(out) == contents(whole / name)
    else:
        assert out.read_bytes() == (whole / name).read_bytes()
        assert not begun(out)


@pytest.mark.dist
def test_processes_and_batches_do_not_change_a_byte(flags, whole, tmp_path):
    out = tmp_path / "train_frcnn.packed"
    extract_regions.main([*flags, "--out", str(out), "--processes", "2", "--batch-size", "7"])
    assert out.read_bytes() == (whole / "train_frcnn.packed").read_bytes()


def test_one_thread_computes(flags, tmp_path, monkeypatch):
    """Sums of several threads end in other bits than those of one."""
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(
        extract_regions.Extraction, "to_folder", lambda self, out: seen.append(torch.get_num_threads()) or 0
    )
    torch.set_num_threads(2)
    try:
        extract_regions.main([*flags, "--out", str(tmp_path / "out")])
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        (["--ckpt", "{other}"], "--ckpt"),
        (["--set", "SCALES=[64, 64]"], "--cfg"),
        (["--boxes", "{boxes}"], "--boxes"),
        (["--names", "number"], "--names"),
        (["--dtype", "float16"], "--dtype"),
    ],
)
def test_other_arguments_do_not_continue(flags, whole, checkpoint, tmp_path, capsys, changes, flag):
    state = torch.load(checkpoint)
    state["state_dict"]["image_feature_extractor.backbone.conv1.weight"] += 1
    torch.save(state, tmp_path / "other.model")
    names = {"{other}": str(tmp_path / "other.model"), "{boxes}": str(tmp_path)}
    given = [names.get(part, part) for part in changes]
    out = tmp_path / "train_frcnn.packed"
    out.with_suffix(".packed.partial").write_bytes((whole / out.name).read_bytes())
    assert run(lambda: extract_regions.main([*flags, *given, "--out", str(out)])) == 2
    assert (
        f"--out {out}: was started with other arguments: {flag}; use the same or" in capsys.readouterr().err
    )


@pytest.mark.parametrize("packed", [False, True])
def test_pre_training_runs_on_the_files(drawn, whole, tmp_path, packed):
    world = PretrainWorld(drawn, tmp_path)
    for path in (world.data / "train_frcnn").iterdir():
        path.unlink()
    if not packed:
        for name, data in contents(whole / "train_frcnn").items():
            (world.data / "train_frcnn" / name).write_bytes(data)
    changes = [
        "NETWORK.PARTIAL_PRETRAIN=", "NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES=[]", *TINY,
        "NETWORK.VLBERT.visual_region_classes=81", "DATASET.0.VAL_IMAGE_SET=train", "LOG_FREQUENT=1",
        "TRAIN.BATCH_IMAGES=[50,50]", "VAL.BATCH_IMAGES=[50,50]",
        f"DATASET.0.PACKED_REGIONS={whole / 'train_frcnn.packed' if packed else ''}",
    ]  # fmt: skip
    assert world.train(*changes, cfg=CFG) == 0
    log = next(world.checkpoint().parent.glob("*.log")).read_text()
    assert "MVRCLoss" in log


def test_vqa_trains_on_features_of_a_wide_resnet(tmp_path_factory, tmp_path):
    """As the published features: 2048 numbers, boxes that are given, files named by the number of the picture."""
    world = VQAWorld(draw(tmp_path_factory.mktemp("drawn") / "toy", SMALL), tmp_path)
    torch.manual_seed(0)
    branch = FastRCNN(final_dim=1, depth=50, dilated=False, stride_in_1x1=False)
    state = {name.removeprefix("backbone."): value for name, value in branch.state_dict().items()}
    weights = {
        name.replace("roi_head_feature_extractor.", "layer4."): value
        for name, value in state.items()
        if "obj_" not in name
    }
    torch.save(weights, tmp_path / "resnet50.model")
    regions = world.data / "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"
    for path in regions.iterdir():
        path.unlink()
    for split in ("train2014", "val2014"):
        extract_regions.main([
            str(world.data / split), "--out", str(regions), "--names", "number",
            "--boxes", str(world.data / f"annotations/instances_{split}.json"),
            "--weights", str(tmp_path / "resnet50.model"), "--cfg", str(CFG),
            "--set", "NETWORK.IMAGE_NUM_LAYERS=50", "--set", "NETWORK.IMAGE_WIDTH=64", "--set", "SCALES=[32, 48]",
            "--set", "NETWORK.IMAGE_C5_DILATED=false", "--set", "NETWORK.IMAGE_STRIDE_IN_1x1=false",
        ])  # fmt: skip
    image = world.records(world.questions())[0]["image_id"]
    found = RegionStore(str(regions)).read(image, features=True)
    assert found.features.shape == (len(found.boxes), 2048)
    assert world.train() == 0


def bad_pictures(folder):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-900])
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    (folder / "text.png").write_text("no picture")
    return {"cut", "huge", "text"}


def good_pictures(folder):
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (20_000, 20)).save(folder / "long.png")
    Image.new("CMYK", (8, 8)).save(folder / "cmyk.jpg")
    Image.new("RGB", (8, 8)).save(
        folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    )
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "deep.png")
    return {"one", "long", "cmyk", "moving", "deep"}


def test_pictures_of_all_kinds(checkpoint, tmp_path, caplog):
    good, bad = good_pictures(tmp_path), bad_pictures(tmp_path)
    out = tmp_path / "out"
    extract_regions.main(
        [
            str(tmp_path),
            "--out",
            str(out),
            "--cfg",
            str(CFG),
            "--ckpt",
            str(checkpoint),
            *SETTINGS,
            "--on-bad",
            "skip",
        ]
    )
    assert {path.stem for path in out.glob("*.json")} == good
    assert sum(message.startswith("skipped") for message in caplog.messages) == len(bad)
    for name in good:
        assert RegionStore(str(out), feature_dim=F).read(name, features=True).features.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        (["--weights", "x"], 2, "give --weights FILE, or --cfg YAML with --ckpt FILE"),
        (["--boxes", "x", "--detector", "y"], 2, "--boxes and --detector: give one of them"),
        (["--boxes", "{one}"], 2, "has the boxes of one image; for several images, give a folder"),
        (["--boxes", "none.json"], 1, "none.json: cannot be read"),
        (["--detector", "yolo", "--detector-weights", "x"], 2, "--detector: yolo: no such detector"),
        (
            ["--dtype", "float16"],
            2,
            "--dtype float16: json files are float32; use a file name that ends in .packed",
        ),
        (["--batch-size", "0"], 2, "--batch-size: 0: must be at least 1"),
        (["--processes", "-1"], 2, "--processes: -1: must be at least 0"),
        (["--device", "tpu"], 2, '--device: "tpu": no such device'),
        (["--cfg", str(ROOT / "cfgs/pretrain/toy_prec.yaml")], 2, "NETWORK.IMAGE_FEAT_PRECOMPUTED: true"),
        (["--ckpt", "none"], 1, "none: no such file"),
        (["--detector", DETECTOR, "--detector-weights", "none.pth"], 1, "none.pth: no such file"),
        (["--names", "numbre"], 2, "--names"),
        (["--set", "NETWORK.IMAGE_WIDTH=8"], 1, "shapes differ from the configured model"),
    ],
)
def test_wrong_flags(flags, tmp_path, capsys, changes, status, message):
    one = tmp_path / "one.json"
    one.write_text(json.dumps([[0, 0, 5, 5]]))
    given = [str(one) if part == "{one}" else part for part in changes]
    arguments = [*flags, "--out", str(tmp_path / "out"), *given]
    assert run(lambda: extract_regions.main(arguments)) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")
    assert not (tmp_path / "out").exists()


def test_a_detector(flags, tmp_path):
    from torchvision.models import get_model

    torch.manual_seed(0)
    torch.save(get_model(DETECTOR, weights=None, weights_backbone=None).state_dict(), tmp_path / "d.pth")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.effect_noise((96, 64), 90).save(pictures / "a.png")
    given = ["--detector", DETECTOR, "--detector-weights", str(tmp_path / "d.pth"), "--score-threshold", "0"]
    extract_regions.main(
        [str(pictures), *flags[1:], *given, "--max-boxes", "3", "--out", str(tmp_path / "out")]
    )
    found = RegionStore(str(tmp_path / "out"), feature_dim=F).read("a", features=True, class_scores=True)
    assert (len(found.boxes), found.image_size) == (3, (96, 64))
    assert ((found.class_scores > 0).sum(dim=1) <= 2).all()


def test_signals_end_it(flags, tmp_path):
    for attempt in range(20):  # on a busy machine the run may end before the signal
        out = tmp_path / str(attempt)
        command = [sys.executable, "-m", "data.extract_regions", *flags, "--out", str(out)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as started:
            deadline = time.monotonic() + 120
            while not begun(out) and time.monotonic() < deadline:
                time.sleep(0.001)
            started.send_signal(signal.SIGINT)
            _, error = started.communicate()
        if begun(out) < PICTURES:
            break
    assert (started.returncode, error) == (130, "interrupted\n")
