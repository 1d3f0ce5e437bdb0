"""What is wrong outside of pre-training: one clear message, the right exit status, nothing half-written."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.bad_input import (
    CONFIGURATION,
    FAILED,
    FILES,
    IMAGE_WEIGHTS,
    OK,
    USAGE,
    Case,
    Corruption,
    check,
    evaluation_cases,
    rewrite_zip,
    train,
    truncate,
)
from tests.pretrain.world import World

pytestmark = pytest.mark.integration

PIXELS = (
    "NETWORK.IMAGE_FEAT_PRECOMPUTED=false",
    "NETWORK.IMAGE_NUM_LAYERS=18",
    "NETWORK.PIXEL_MEANS=[103.0, 116.0, 123.0]",
    "NETWORK.PIXEL_STDS=[1.0, 1.0, 1.0]",
)
RECORD = r"CaptionDataset item \d+ \(record train_image.zip@/\d+.jpg\): .*"
TEXT = "DATASET.1.TRAIN_ANNOTATION_FILE"


def records(world: World) -> Path:
    return world.data / "train_frcnn.json"


def line(change: Callable[[dict[str, Any]], object]) -> Corruption:
    """Changes the second caption."""

    def corrupt(world: World) -> None:
        lines = records(world).read_text().splitlines()
        record = json.loads(lines[1])
        change(record)
        records(world).write_text("\n".join([lines[0], json.dumps(record), *lines[2:]]))

    return corrupt


def regions(change: Callable[[dict[str, Any]], object]) -> Corruption:
    """Changes the region file of the first picture."""

    def corrupt(world: World) -> None:
        content = json.loads(region_file(world).read_text())
        change(content)
        region_file(world).write_text(json.dumps(content))

    return corrupt


def region_file(world: World) -> Path:
    return world.data / "train_frcnn/00000000.json"


def picture(world: World) -> Path:
    return world.data / "train_image/00000000.jpg"


def with_nan(content: dict[str, Any]) -> None:
    values = np.frombuffer(base64.b64decode(content["classes"]), "<f4").copy()
    values[3] = np.nan
    content["classes"] = base64.b64encode(values.tobytes()).decode()


def narrower(content: dict[str, Any]) -> None:
    values = np.frombuffer(base64.b64decode(content["features"]), "<f4").reshape(content["num_boxes"], -1)
    content["features"] = base64.b64encode(values[:, :1024].tobytes()).decode()


def no_regions(content: dict[str, Any]) -> None:
    content.update(num_boxes=0, boxes="", features="", classes="")


def grey(world: World) -> None:
    Image.open(picture(world)).convert("L").save(picture(world))


def text(content: bytes) -> Corruption:
    return lambda world: (world.corpus / "wiki.doc").write_bytes(content)


def text_alone(content: bytes) -> Callable[[World], int]:
    def run(world: World) -> int:
        text(content)(world)
        return world.train(f"{TEXT}={world.corpus}/wiki.doc")

    return run


def half_scored_packs(world: World) -> int:
    from scripts.pack_regions import main

    packed = {split: world.data / f"{split}.packed" for split in ("train", "val")}
    main([str(world.data / "train_frcnn"), "--out", str(packed["train"]), "--classes"])
    main([str(world.data / "val_frcnn"), "--out", str(packed["val"])])
    status = world.train(f"DATASET.0.PACKED_REGIONS={packed['train']}+{packed['val']}")
    assert (
        "Epoch[0]" not in next(world.out.rglob("*.log")).read_text()
    )  # before the training, not after an epoch
    return status


def other_classes_of_the_validation(world: World) -> int:
    path = world.data / "val_frcnn/00000000.json"
    content = json.loads(path.read_text())
    content["classes"] = base64.b64encode(np.full((content["num_boxes"], 401), 0.1, "<f4").tobytes()).decode()
    path.write_text(json.dumps(content))
    status = world.train()
    assert "Epoch[0]" not in next(world.out.rglob("*.log")).read_text()
    return status


def unknown_pack(world: World) -> int:
    from scripts.pack_regions import main

    main([str(world.data / "val_frcnn"), "--out", str(world.data / "packed"), "--classes"])
    return world.train(f"DATASET.0.PACKED_REGIONS={world.data}/packed")


CASES = [
    *CONFIGURATION,
    *(case for case in FILES if case.name != "missing data folder"),
    Case(
        IMAGE_WEIGHTS.name,
        train(*PIXELS, "NETWORK.IMAGE_PRETRAINED=/nowhere/resnet"),
        FAILED,
        IMAGE_WEIGHTS.message,
    ),
    *evaluation_cases("val"),
    # Configuration
    Case(
        "missing data folder", train("DATASET.0.DATASET_PATH=/nowhere"), FAILED, "/nowhere/train_frcnn.json: "
    ),
    Case(
        "unknown key in a list of datasets",
        train("DATASET.0.ZIP_MOD=true"),
        USAGE,
        r"DATASET.0.ZIP_MOD: unknown key; did you mean ZIP_MODE\?",
    ),
    Case(
        "unknown split",
        train("DATASET.0.TRAIN_IMAGE_SET=test"),
        USAGE,
        r'DATASET.0.TRAIN_IMAGE_SET: "test": no such split.*; use train or val',
    ),
    Case("no text is named", train(f"{TEXT}=''"), USAGE, f'{TEXT}: "": must name a text file'),
    Case(
        "classes of another detector",
        train("NETWORK.VLBERT.visual_region_classes=401"),
        FAILED,
        RECORD + "1601 class scores; NETWORK.VLBERT.visual_region_classes is 401",
    ),
    Case(
        "classes of another detector in the validation",
        other_classes_of_the_validation,
        FAILED,
        r"CaptionDataset item 0 .*401 class scores; NETWORK.VLBERT.visual_region_classes is 1601",
    ),
    Case("no loss of words", train("NETWORK.WITH_MLM_LOSS=false"), OK),
    # Captions
    Case(
        "missing captions",
        train(corrupt=lambda w: records(w).unlink()),
        FAILED,
        "train_frcnn.json: cannot be",
    ),
    Case(
        "no captions",
        train(corrupt=lambda w: records(w).write_text("\n \n")),
        FAILED,
        "train_frcnn.json: has no records; expected one json object per line",
    ),
    Case(
        "truncated captions",
        train(corrupt=lambda w: truncate(records(w), 0.55)),
        FAILED,
        r"frcnn.json, line \d+: .*JSON",
    ),
    Case(
        "blank lines between captions",
        train(corrupt=lambda w: records(w).write_text("\n\n" + records(w).read_text().replace("\n", "\n\n"))),
        OK,
    ),
    Case(
        "caption without regions",
        train(corrupt=line(lambda r: r.pop("frcnn"))),
        FAILED,
        r"CaptionDataset item 1 \(record 1\): .*frcnn.json, line 2: frcnn: Field required",
    ),
    Case(
        "caption that is one text",
        train(corrupt=line(lambda r: r.update(caption=" ".join(r["caption"])))),
        FAILED,
        r"train_frcnn.json, line 2: caption: must be a list of words, not a text",
    ),
    Case(
        "empty caption",
        train(corrupt=line(lambda r: r.update(caption=[" "]))),
        FAILED,
        RECORD + "has no word",
    ),
    Case("long caption", train(corrupt=line(lambda r: r.update(caption=["red"] * 300))), OK),
    Case(
        "one caption to be told from others",
        train(
            "NETWORK.WITH_REL_LOSS=true",
            "NETWORK.VLBERT.with_pooler=true",
            corrupt=lambda w: records(w).write_text(records(w).read_text().splitlines()[0]),
        ),
        FAILED,
        "train_frcnn.json: has only one caption; NETWORK.WITH_REL_LOSS needs at least two",
    ),
    # Pictures
    Case("grey picture", train(*PIXELS, corrupt=grey), OK),
    Case(
        "missing picture",
        train(*PIXELS, corrupt=lambda w: picture(w).unlink()),
        FAILED,
        RECORD + "00.jpg: cannot",
    ),
    Case(
        "truncated picture",
        train(*PIXELS, corrupt=lambda w: truncate(picture(w))),
        FAILED,
        RECORD + "00.jpg: not a rea",
    ),
    Case(
        "missing pictures",
        train(*PIXELS, corrupt=lambda w: (w.data / "train_image").rename(w.data / "x")),
        FAILED,
        "train_image: no such folder",
    ),
    Case(
        "pictures are not needed for features",
        train(corrupt=lambda w: (w.data / "train_image").rename(w.data / "x")),
        OK,
    ),
    # Region files
    Case(
        "missing region files",
        train(corrupt=lambda w: (w.data / "train_frcnn").rename(w.data / "x")),
        FAILED,
        "train_frcnn: no such folder",
    ),
    Case(
        "missing region file",
        train(corrupt=lambda w: region_file(w).unlink()),
        FAILED,
        RECORD + r"\d+.json: cannot be read",
    ),
    Case(
        "region file of 0 bytes in a worker",
        train("NUM_WORKERS_PER_GPU=1", corrupt=lambda w: region_file(w).write_text("")),
        FAILED,
        RECORD + r"\d+.json: .*empty",
    ),
    Case(
        "truncated region file",
        train(corrupt=lambda w: truncate(region_file(w))),
        FAILED,
        RECORD + r"\d+.json: ",
    ),
    Case(
        "class scores with NaN", train(corrupt=regions(with_nan)), FAILED, RECORD + r"\d+.json: classes .*nan"
    ),
    Case("features of another width", train(corrupt=regions(narrower)), FAILED, RECORD + "features.*2048"),
    Case(
        "too few regions",
        train(corrupt=regions(lambda r: r.update(num_boxes=1))),
        FAILED,
        RECORD + "json: boxes",
    ),
    Case(
        "no class scores",
        train(corrupt=regions(lambda r: r.pop("classes"))),
        FAILED,
        RECORD + r"\d+.json: has no classes",
    ),
    Case(
        "regions without the size of the picture",
        train(corrupt=regions(lambda r: (r.pop("image_w"), r.pop("image_h")))),
        FAILED,
        RECORD + r"\d+.json: has no image_w and image_h",
    ),
    Case(
        "regions of another picture",
        train(*PIXELS, corrupt=regions(lambda r: r.update(image_w=1000))),
        FAILED,
        RECORD + r"its regions are for an image of \(1000, \d+\); .*DATASET.ON_BAD_DATA: skip",
    ),
    Case("no regions", train(corrupt=regions(no_regions)), OK),
    Case("no regions of a picture that is read", train(*PIXELS, corrupt=regions(no_regions)), OK),
    Case(
        "no regions and no image box",
        train("DATASET.0.ADD_IMAGE_AS_A_BOX=false", corrupt=regions(no_regions)),
        FAILED,
        RECORD + "DATASET.ADD_IMAGE_AS_A_BOX",
    ),
    Case(
        "packed regions of the validation without class scores",
        half_scored_packs,
        FAILED,
        "val.packed: has no class scores; pack again with --classes",
    ),
    Case(
        "regions packed from another folder",
        unknown_pack,
        FAILED,
        "train_frcnn: not packed; .*from val_frcnn",
    ),
    # Archives
    Case(
        "corrupt archive",
        train("DATASET.0.ZIP_MODE=true", corrupt=lambda w: truncate(w.data / "train_frcnn.zip")),
        FAILED,
        "train_frcnn.zip: not a complete zip",
    ),
    Case(
        "missing archive",
        train("DATASET.0.ZIP_MODE=true", corrupt=lambda w: (w.data / "train_frcnn.zip").unlink()),
        FAILED,
        "train_frcnn.zip: no such file",
    ),
    Case(
        "missing member",
        train("DATASET.0.ZIP_MODE=true", corrupt=rewrite_zip("train_frcnn.zip", lambda name: False)),
        FAILED,
        RECORD + r"train_frcnn.zip: the archive has no member \d+.json",
    ),
    # Texts
    Case(
        "missing text",
        train(corrupt=lambda w: (w.corpus / "wiki.doc").unlink()),
        FAILED,
        "wiki.doc: cannot be read",
    ),
    Case("empty text", text_alone(b"\n \n\t\n"), FAILED, "wiki.doc: has no text"),
    Case(
        "text without a word",
        text_alone("\u200b\n\u200b\n".encode()),
        FAILED,
        "wiki.doc: has no word in 2 lines",
    ),
    Case("one word", text_alone(b"dog"), OK),
    Case(
        "text in another encoding",
        train(corrupt=text(b"a dog\n\na caf\xe9\n")),
        FAILED,
        r"CorpusDataset item \d+ \(record \d+\): .*wiki.doc, line 3: expected text in UTF-8",
    ),
    Case(
        "name missing between two +",
        train(f"{TEXT}=a.doc++b.doc"),
        USAGE,
        rf'{TEXT}: "a.doc\+\+b.doc": must name a text file, or several joined with \+',
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case, world, capsys, monkeypatch):
    check(case, world, capsys, monkeypatch)


def test_too_many_bad_records_stop_a_run_that_leaves_them_out(world, capsys):
    region_file(world).unlink()
    assert world.train("DATASET.0.ON_BAD_DATA=skip") == FAILED
    assert re.search(r"1% that DATASET.ON_BAD_DATA: skip allows", capsys.readouterr().err)
