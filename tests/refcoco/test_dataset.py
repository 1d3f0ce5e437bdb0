"""Items of RefCOCO by hand, and its grouping by aspect."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from common.config.schema import parse_config
from common.data.collate import collate
from common.data.samplers import EpochBatches, ItemKey
from common.data.tokenizer import SPECIAL_TOKENS
from common.errors import DataError
from refcoco.config import RefCOCOConfig
from refcoco.dataset import REGION_SET, RefCOCOBatch
from refcoco.task import RefCOCOTask
from tests.refcoco.test_refer import ref

VOCAB = [*SPECIAL_TOKENS, "left", "right", "##most", "red", "cup", "the"]
# Annotated: the target and another object. Corners: (2, 2) to (8, 7), and (10, 0) to (21.5, 8).
ANNOTATIONS = [
    {"id": 101, "image_id": 9, "category_id": 1, "bbox": [2, 2, 6, 5], "iscrowd": 0},
    {"id": 55, "image_id": 9, "category_id": 2, "bbox": [10, 0, 11.5, 8], "iscrowd": 1},
    {"id": 102, "image_id": 11, "category_id": 2, "bbox": [1, 1, 3, 3], "iscrowd": 0},
]
DETECTIONS = [
    {"det_id": 0, "image_id": 9, "category_id": 1, "box": [3, 2, 6, 5], "score": 0.1},
    {"det_id": 1, "image_id": 9, "category_id": 1, "box": [12, 2, 4, 4], "score": 0.9},
]
WHOLE, TARGET, OTHER = [0, 0, 38, 18], [4, 4, 16, 14], [20, 0, 39, 16]
FOUND = [[6, 4, 18, 14], [24, 4, 32, 12]]


class World:
    """Image 9, 20 pixels wide and 10 high, left third red; image 11, 10 wide and 20 high, without detections."""

    def __init__(self, root):
        self.root = root
        pixels = np.zeros((10, 20, 3), np.uint8)
        pixels[:, :7, 0] = 200
        (root / "train2014").mkdir()
        self.save(9, Image.fromarray(pixels))
        self.save(11, Image.new("L", (10, 20)))
        (root / "bert").mkdir()
        (root / "bert/vocab.txt").write_text("\n".join(VOCAB))
        self.annotations, self.detections = list(ANNOTATIONS), list(DETECTIONS)
        self.refs = [ref(1, "train", "the left cup", "leftmost red"), ref(2, "train", "cup")]
        self.refs[1] = {**self.refs[1], "image_id": 11}

    def save(self, number, image):
        image.save(self.root / f"train2014/COCO_train2014_{number:012d}.jpg", format="PNG")

    def write(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def regions(self, number, boxes, **changes):
        data = base64.b64encode(np.array(boxes, "<f4").tobytes()).decode()
        content = {"image_id": number, "image_w": 20, "image_h": 10, "num_boxes": len(boxes), "boxes": data}
        self.write(f"vgbua_res101_precomputed/{REGION_SET}/{number}.json", {**content, **changes})

    def task(self, split="train", **options):
        images = [{"id": 9, "width": 20, "height": 10}, {"id": 11, "width": 10, "height": 20}]
        instances = {"images": images, "annotations": self.annotations, "categories": []}
        self.write("annotations/instances_train2014.json", instances)
        for dataset in {"refcoco+", options.get("DATASET__DATASET", "refcoco+")}:
            by = options.get("DATASET__SPLIT_BY", "umd" if dataset == "refcocog" else "unc")
            self.write(f"{dataset}/instances.json", instances)
            self.write(f"{dataset}/proposal/res101_coco_minus_refer_notime_dets.json", self.detections)
            (self.root / dataset / f"refs({by}).p").write_bytes(pickle.dumps(self.refs, protocol=0))
        values = {
            "SCALES": [20, 50],
            "RNG_SEED": 5,
            "DATASET": {
                "DATASET": "refcoco+",
                "DATASET_PATH": str(self.root),
                **{f"{name}_IMAGE_SET": "train" for name in ("TRAIN", "VAL", "TEST")},
            },
            "TRAIN": {"FLIP_PROB": 0.0},
            "NETWORK": {"BERT_MODEL_NAME": str(self.root / "bert")},
        }
        for key, value in options.items():
            section, name = key.split("__")
            values[section][name] = value
        return RefCOCOTask(parse_config(RefCOCOConfig, values, "test"))

    def open(self, split="train", **options):
        return self.task(split, **options).build_dataset(split)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def text(sample):
    return " ".join(VOCAB[number] for number in sample.texts[0].ids)


def boxes(split, value):
    return {f"DATASET__{split.upper()}_BOXES": value}


def test_an_item(world):
    dataset = world.open()
    assert len(dataset) == 3
    sample = dataset[ItemKey(0, 0)]
    assert (sample.index, sample.record_id) == (0, "sentence 10 of ref 1")
    assert sample.image.shape == (3, 20, 40)
    assert sample.image[:, 0, 0].tolist() == [0, 0, 200]
    assert sample.padded_size == (20, 40)
    assert sample.im_info.tolist() == [40, 20, 2, 2]
    assert sample.boxes.tolist() == [WHOLE, TARGET, OTHER]
    assert sample.label.tolist() == [0, 1, 0]
    assert text(sample) == "[CLS] the left cup [SEP]"
    assert sample.texts[0].types.tolist() == sample.texts[0].tags.tolist() == [0] * 5
    assert (sample.ref_id.item(), sample.sent_id.item(), sample.target_region.item()) == (1, 10, 1)
    assert sample.target.tolist() == [2, 2, 8, 7]


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("value", "expected", "region"),
    [
        ("gt", [TARGET, OTHER], 1),
        ("proposal", FOUND, -1),
        ("proposal+gt", [*FOUND, TARGET, OTHER], 3),
        ("gt+proposal", [*FOUND, TARGET, OTHER], 3),
    ],
)
def test_candidates(world, split, value, expected, region):
    sample = world.open(split, **boxes(split, value))[ItemKey(0, 0)]
    assert sample.boxes.tolist() == [WHOLE, *expected]
    assert sample.target_region.item() == region
    if split == "test":
        assert sample.label is None
    else:
        # By hand: 11 x 11 pixels in common of 13 x 11 and 13 x 11.
        assert sample.label.tolist() == [0, *[float(box in (TARGET, FOUND[0])) for box in expected]]


def test_without_the_whole_image(world):
    sample = world.open(DATASET__ADD_IMAGE_AS_A_BOX=False)[ItemKey(0, 0)]
    assert sample.boxes.tolist() == [TARGET, OTHER]
    assert sample.target_region.item() == 0


def test_the_whole_image_is_right_where_the_target_covers_more_than_half(world):
    world.annotations[0] = {**ANNOTATIONS[0], "bbox": [0, 0, 20, 6]}
    # Resized and clamped: the image box has 39 x 19 pixels, the target 40 x 13: 507 in common of 754.
    sample = world.open()[ItemKey(0, 0)]
    assert sample.boxes[1].tolist() == [0, 0, 39, 12]
    assert sample.label.tolist() == [1, 1, 0]


def test_half_is_not_more_than_half(world):
    world.detections = [{"image_id": 9, "box": [2, 2, 6, 11]}]
    # Resized and clamped, 13 x 11 pixels of 13 x 16.
    sample = world.open("val", **boxes("val", "proposal"))[ItemKey(0, 0)]
    assert sample.boxes[1].tolist() == [4, 4, 16, 19]
    assert sample.label.tolist() == [0, 1]
    world.annotations[0] = {**ANNOTATIONS[0], "bbox": [2, 2, 6, 3.5]}  # 13 x 8 of 13 x 16
    assert world.open("val", **boxes("val", "proposal"))[ItemKey(0, 0)].label.tolist() == [0, 0]


def test_refcoco_dataset_flips_image_boxes_and_words(world):
    plain, flipped = world.open(), world.open(TRAIN__FLIP_PROB=1.0)
    first, flipped_sample = plain[ItemKey(0, 0)], flipped[ItemKey(0, 0)]
    assert torch.equal(flipped_sample.image, first.image.flip(-1))
    assert flipped_sample.boxes.tolist() == [[1, 0, 39, 18], [23, 4, 35, 14], [0, 0, 19, 16]]
    assert flipped_sample.label.tolist() == first.label.tolist()
    assert flipped_sample.target.tolist() == first.target.tolist(), "in original pixels"
    assert text(flipped_sample) == "[CLS] the right cup [SEP]"
    assert text(flipped[ItemKey(0, 1)]) == "[CLS] right ##most red [SEP]"


def test_sizes_come_from_coco_and_not_from_the_file(world):
    world.save(9, Image.new("RGB", (200, 100)))
    sample = world.open()[ItemKey(0, 0)]
    assert sample.image.shape == (3, 20, 40)
    assert sample.boxes.tolist() == [WHOLE, TARGET, OTHER]


def test_an_image_without_detections(world, caplog):
    with caplog.at_level(logging.WARNING):
        train = world.open("train", **boxes("train", "proposal"))
    assert (
        "no region for 1 of 2 images (train: 11 ...); they keep the whole image and the annotated boxes"
        in (caplog.text)
    )
    sample = train[ItemKey(0, 2)]
    assert sample.boxes.tolist() == [[0, 0, 18, 38], [2, 2, 8, 8]]
    assert sample.target_region.item() == 1
    validated = world.open("val", **boxes("val", "proposal"))[ItemKey(0, 2)]
    assert validated.boxes.tolist() == [[0, 0, 18, 38]]
    with pytest.raises(
        DataError, match=r"item 2 \(record sentence 20 of ref 2\): .*ADD_IMAGE_AS_A_BOX is off"
    ):
        world.open("val", DATASET__ADD_IMAGE_AS_A_BOX=False, **boxes("val", "proposal"))[ItemKey(0, 2)]


def vg(world, **options):
    return world.open("val", DATASET__PROPOSAL_SOURCE="vg", **boxes("val", "proposal"), **options)


def test_regions_of_bottom_up_attention(world):
    world.regions(9, [[3, 2, 9, 7], [-1, 0, 30, 5]])
    folder = vg(world)[ItemKey(0, 0)]
    assert folder.boxes.tolist() == [WHOLE, FOUND[0], [0, 0, 39, 10]]
    for name, inside in ((REGION_SET, "vgbua_res101_precomputed/"), ("train2014", "")):
        with zipfile.ZipFile(world.root / f"{inside}{name}.zip", "w") as archive:
            for path in (world.root / inside / name).iterdir():
                archive.write(path, f"{name}/{path.name}")
                path.unlink()
    archived = vg(world, DATASET__ZIP_MODE=True)[ItemKey(0, 0)]
    assert torch.equal(archived.boxes, folder.boxes)
    assert torch.equal(archived.image, folder.image)


@pytest.mark.parametrize(
    ("boxes", "changes", "message"),
    [
        ([[0, 0, 1, 1]], {"image_w": 21}, r"regions of image 9 are for an image of \(21, 10\).*\(20, 10\)"),
        ([[0, 0, 1, 1]], {"num_boxes": 2}, r"9.json: boxes"),
        ([[0, 0, 1, np.nan]], {}, r"9.json: boxes.*nan"),
    ],
)
def test_region_files_that_are_wrong(world, boxes, changes, message):
    world.regions(9, boxes, **changes)
    with pytest.raises(DataError, match=rf"item 0 \(record sentence 10 of ref 1\): .*{message}"):
        vg(world)[ItemKey(0, 0)]


@pytest.mark.parametrize(
    ("dataset", "options"),
    [("refcoco", {}), ("refcoco", {"DATASET__SPLIT_BY": "google"}), ("refcocog", {})],
)
def test_the_other_datasets(world, dataset, options):
    assert len(world.open(DATASET__DATASET=dataset, **options)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ann_id": 1},
            r"refs\(unc\).p: sentence 10 of ref 1: .*refcoco\+/instances.json: has no annotation 1",
        ),
        ({"image_id": 1}, r"sentence 10 of ref 1: .*instances_train2014.json: has no image 1"),
        (
            {"sentences": [{"sent_id": 1, "tokens": ["", " "]}]},
            "sentence 1 of ref 1: the expression is empty",
        ),
    ],
)
def test_refs_that_do_not_fit(world, change, message):
    world.refs[0] = {**world.refs[0], **change}
    with pytest.raises(DataError, match=message):
        world.open()


def test_a_batch(world):
    dataset = world.open(**boxes("train", "proposal+gt"))
    batch = collate([dataset[ItemKey(0, 0)], dataset[ItemKey(0, 2)]], RefCOCOBatch)
    assert batch.num_boxes.sizes == (5, 2)
    assert batch.label.tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert batch.images.shape == (2, 3, 40, 40)
    assert batch.text.per_image.sizes == (1, 1)
    assert (batch.ref_id.tolist(), batch.sent_id.tolist()) == ([1, 2], [10, 20])
    assert batch.target.shape == (2, 4)


def test_aspect_groups_give_every_rank_equally_many_batches(world):
    texts = ["cup"] * 7
    landscape, portrait = ref(1, "train", *texts), {**ref(2, "train", *texts[:4]), "image_id": 11}
    world.refs = [landscape, portrait]
    dataset = world.open()
    groups = dataset.groups()
    assert list(groups) == [0] * 7 + [1] * 4
    per_rank = []
    for rank in range(3):
        batches = EpochBatches(11, 2, shuffle=True, seed=1, rank=rank, world_size=3, groups=groups)
        assert len(list(batches)) == len(batches) == 2
        assert all(len({groups[key.index] for key in batch}) == 1 for batch in batches)
        per_rank += [key.index for batch in batches for key in batch]
    assert set(per_rank) == set(range(11))
