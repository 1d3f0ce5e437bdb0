"""What is wrong outside of RefCOCO's program: one clear message, the right exit status, nothing half-written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input import (
    CONFIGURATION,
    FAILED,
    FILES,
    IMAGE_WEIGHTS,
    OK,
    USAGE,
    Case,
    Evil,
    Run,
    check,
    evaluation_cases,
    rewrite_zip,
    train,
    truncate,
)
from tests.refcoco.world import World

pytestmark = pytest.mark.integration

PROPOSALS = "DATASET.TRAIN_BOXES=proposal"


def refs(change: Callable[[dict], object]) -> Callable[[World], object]:
    """Changes the first training ref."""
    return lambda world: world.edit_refs(
        lambda all_refs: change(next(ref for ref in all_refs if ref["split"] == "train"))
    )


def tokens(words: list[str]) -> Callable[[World], object]:
    return refs(lambda ref: ref["sentences"][0].update(tokens=words))


def instances(change: Callable[[dict], object]) -> Callable[[World], object]:
    return lambda world: world.edit(world.instances, change)


def target_box(world: World, box: list[float]) -> None:
    number = world.split("train")[0]["ann_id"]
    for path in (world.instances, world.sizes):
        world.edit(
            path,
            lambda content: next(one for one in content["annotations"] if one["id"] == number).update(
                bbox=box
            ),
        )


def no_detections(world: World) -> None:
    number = world.split("train")[0]["image_id"]
    world.edit(
        world.detections,
        lambda found: found.__setitem__(slice(None), [one for one in found if one["image_id"] != number]),
    )


def overwrite(path: Callable[[World], Path], text: str) -> Callable[[World], object]:
    return lambda world: path(world).write_text(text)


def on_split(*flags: str) -> Run:
    return lambda world: world.evaluate("test", *world.model(path=Path("x")), *flags)


CASES = [
    *CONFIGURATION,
    *FILES,
    IMAGE_WEIGHTS,
    *evaluation_cases("test"),
    # Configuration
    Case("unknown boxes", train("DATASET.TRAIN_BOXES=all"), USAGE, "DATASET.TRAIN_BOXES: .*proposal"),
    Case("unknown dataset", train("DATASET.DATASET=refcoco++"), USAGE, "DATASET.DATASET: .*refcocog"),
    Case("split of another dataset", train("DATASET.SPLIT_BY=umd"), USAGE, "DATASET.SPLIT_BY: .*unc"),
    Case(
        "unknown split",
        train("DATASET.TRAIN_IMAGE_SET=trian"),
        USAGE,
        r"DATASET.TRAIN_IMAGE_SET: trian: .*no split 'trian'; it has testA, testB, train, val, test;",
    ),
    Case(
        "unknown split of a test",
        on_split("--split", "testD"),
        USAGE,
        r"DATASET.TEST_IMAGE_SET: testD: .*no split 'testD'",
    ),
    # Files that are not there
    Case("missing dataset", train("DATASET.DATASET=refcoco"), FAILED, r"refcoco/refs\(unc\).p: cannot be read"),
    Case("missing image folder", train(corrupt=lambda w: (w.data / "train2014").rename(w.data / "x")), FAILED,
         "train2014: no such folder"),
    Case("missing detections", train(PROPOSALS, corrupt=lambda w: w.detections.unlink()), FAILED,
         "notime_dets.json: cannot be read"),
    Case("missing regions", train(PROPOSALS, "DATASET.PROPOSAL_SOURCE=vg"), FAILED,
         "trainval2014_resnet101_faster_rcnn_genome: no such folder"),
    Case("missing image", train(corrupt=lambda w: w.image().unlink()), FAILED, r"sentence \d+ of ref.*\.jpg"),
    # Refs
    Case(
        "pickle that runs code",
        train(corrupt=lambda w: w.edit_refs(lambda found: found.append(Evil()))),
        FAILED,
        rf"refs\(unc\).p: refused: the pickle asks for {os.system.__module__}.system",
    ),
    Case("truncated pickle", train(corrupt=lambda w: truncate(w.refs)), FAILED,
         r"refs\(unc\).p: not a readable pickle"),
    Case("empty pickle", train(corrupt=overwrite(lambda w: w.refs, "")), FAILED, r"refs\(unc\).p: .*it is empty"),
    Case("no refs", train(corrupt=lambda w: w.edit_refs(list.clear)), FAILED, r"refs\(unc\).p: has no refs"),
    Case("ref without a field", train(corrupt=refs(lambda ref: ref.pop("ann_id"))), FAILED, r"refs.\d+.ann_id"),
    Case(
        "a ref twice",
        train(corrupt=lambda w: w.edit_refs(lambda found: found.append(found[0]))),
        FAILED,
        r"refs\(unc\).p: duplicate ref \d+",
    ),
    Case("unknown annotation", train(corrupt=refs(lambda ref: ref.update(ann_id=5))), FAILED,
         r"sentence \d+ of ref \d+: .*instances.json: has no annotation 5"),
    Case("unknown image", train(corrupt=refs(lambda ref: ref.update(image_id=987654))), FAILED,
         r"sentence \d+ of ref \d+: .*instances_train2014.json: has no image 987654"),
    Case("expression without words", train(corrupt=tokens([])), FAILED, r"refs.\d+.sentences.0.tokens"),
    Case("empty expression", train(corrupt=tokens([" "])), FAILED, "sentence .*: the expression is empty"),
    Case("long expression", train(corrupt=tokens(["red"] * 100)), OK),
    Case(
        "expression too long for the model",
        train("NETWORK.VLBERT.max_position_embeddings=40", corrupt=tokens(["red"] * 100)),
        FAILED,
        r"record sentence \d+ of ref \d+: a text of 102 tokens; the model takes 38",
    ),
    # COCO files and detections
    Case("empty instances", train(corrupt=overwrite(lambda w: w.instances, "")), FAILED, "instances.json: .*empty"),
    Case("broken instances", train(corrupt=lambda w: truncate(w.sizes)), FAILED,
         "instances_train2014.json: Invalid JSON"),
    Case("instances without images", train(corrupt=instances(lambda c: c.pop("images"))), FAILED,
         "instances.json: images: Field required"),
    Case("image without size", train(corrupt=instances(lambda c: c["images"][0].update(width=0))), FAILED,
         "instances.json: images.0.width"),
    Case("an annotation twice", train(corrupt=instances(lambda c: c["annotations"].append(c["annotations"][0]))),
         FAILED, r"instances.json: duplicate annotation \d+"),
    Case("box with three numbers", train(corrupt=instances(lambda c: c["annotations"][0]["bbox"].pop())), FAILED,
         r"instances.json: annotations.0.bbox"),
    Case("box that is no number", train(PROPOSALS, corrupt=lambda w: w.edit(
        w.detections, lambda found: found[0].update(box=[0, 0, "x", 1]))), FAILED, r"dets.json: 0.box.2"),
    Case("image without detections", train(PROPOSALS, corrupt=no_detections), OK),
    Case("no detections at all", train(PROPOSALS, corrupt=overwrite(lambda w: w.detections, "[]")), OK),
    Case(
        "no boxes at all",
        train(PROPOSALS, "DATASET.VAL_BOXES=proposal", "DATASET.ADD_IMAGE_AS_A_BOX=false", corrupt=no_detections),
        OK,
    ),
    Case(
        "no boxes in validation",
        train("DATASET.VAL_BOXES=proposal", "DATASET.ADD_IMAGE_AS_A_BOX=false",
              corrupt=overwrite(lambda w: w.detections, "[]")),
        FAILED,
        r"sentence \d+ of ref \d+.*the image has no regions, and DATASET.ADD_IMAGE_AS_A_BOX is off",
    ),
    Case("box outside the picture", train(corrupt=lambda w: target_box(w, [5000, 5000, 9, 9])), OK),
    Case("zero-area box", train(corrupt=lambda w: target_box(w, [5, 5, 0, 0])), OK),
    Case("inverted box", train(corrupt=lambda w: target_box(w, [50, 50, -40, -40])), OK),
    # Pictures and archives
    Case("truncated image", train(corrupt=lambda w: truncate(w.image())), FAILED, r"sentence \d+ of ref.*\.jpg"),
    Case("empty image", train(corrupt=lambda w: w.image().write_bytes(b"")), FAILED, r"sentence \d+ of.*\.jpg"),
    Case("bad image in a worker", train("NUM_WORKERS_PER_GPU=1", corrupt=lambda w: truncate(w.image())), FAILED,
         r"sentence \d+ of ref.*\.jpg"),
    Case("corrupt archive", train("DATASET.ZIP_MODE=true", corrupt=lambda w: truncate(w.data / "train2014.zip")),
         FAILED, "train2014.zip: not a complete zip"),
    Case("missing archive", train("DATASET.ZIP_MODE=true", corrupt=lambda w: (w.data / "train2014.zip").unlink()),
         FAILED, "train2014.zip: no such file"),
    Case(
        "missing member",
        train("DATASET.ZIP_MODE=true", corrupt=rewrite_zip("train2014.zip", lambda name: name.endswith("1.jpg"))),
        FAILED,
        r"train2014.zip: the archive has no member .*\.jpg",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case, world, capsys, monkeypatch):
    check(case, world, capsys, monkeypatch)


def test_too_many_bad_records_stop_a_run_that_leaves_them_out(world, capsys):
    world.image().unlink()
    assert world.train("DATASET.ON_BAD_DATA=skip") == FAILED
    assert re.search(r"1% that DATASET.ON_BAD_DATA: skip allows", capsys.readouterr().err)
