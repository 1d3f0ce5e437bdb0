"""Pictures with captions, from a folder of two."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from common.config.schema import parse_config
from common.data.collate import collate
from common.data.regions.packed_format import PackedHeader
from common.data.regions.reader import unpacked_path, unpacked_region_path
from common.data.samplers import ItemKey
from common.data.storage import store
from common.data.storage.zip_archive import open_archive
from common.errors import ConfigError, DataError
from pretrain.config import PretrainConfig
from pretrain.dataset import PretrainBatch
from pretrain.task import PretrainTask
from scripts.pack_regions import pack
from tests.pretrain.items import (
    CLASSES,
    HIDDEN,
    KEPT,
    LABELLED,
    VOCAB,
    Draws,
    Items,
    encoded,
    restored,
    words,
)

PIXELS = {"IMAGE_FEAT_PRECOMPUTED": False}
RELATIONSHIP = {"WITH_REL_LOSS": True}
OWN, ANOTHER = 0.49, 0.5
CAPTION = (KEPT, KEPT, KEPT)
REGIONS = (KEPT, KEPT, KEPT, KEPT)
ORDER = [2, 1, 0, 3]
"""Rows of the region file, the surest first; the first and the last are equally sure."""


@pytest.fixture
def items(tmp_path):
    return Items(tmp_path)


def load(dataset, index, *draws, match=OWN, flip=0.9, numbers=()):
    rng = Draws(flip, match, *draws, numbers=numbers)
    sample = dataset.load(index, rng)
    assert rng.used_up
    return sample


def test_precomputed_features(items):
    sample = load(items.captions(), 0, KEPT, HIDDEN, LABELLED, HIDDEN, KEPT, LABELLED, KEPT)
    assert (sample.index, sample.record_id, sample.image) == (0, "val_image.zip@/1.jpg", None)
    assert sample.im_info.tolist() == [40, 20, 2, 2]
    assert sample.boxes.tolist() == [
        [0, 0, 38, 18],
        [0, 0, 8, 8],
        [0, 2, 39, 10],
        [4, 4, 18, 10],
        [6, 6, 12, 12],
    ]
    assert words(sample) == "[CLS] a [MASK] . [SEP]"
    assert restored(sample) == {2: "dog", 3: "."}
    assert sample.masked_regions.tolist() == [False, True, False, False, False]
    assert sample.masked_region_index.tolist() == [1, 3]
    assert sample.region_labels.tolist() == [[0.75, 0.25, 0, 0], [0.25, 0.5, 0.25, 0]]
    assert sample.box_features.shape == (5, 2048)
    # The whole image is the mean of what may be seen; features of hidden regions are the model's to replace.
    assert sample.box_features[:, 7].tolist() == pytest.approx(
        [(1 + 2 + 3) / (3 + 1e-5), 6, 2, 1, 3], rel=1e-6
    )
    assert (sample.relationship.tolist(), sample.masked_pixel_boxes) == ([1], None)


def test_the_whole_image_where_all_or_nothing_is_hidden(items):
    shown = load(items.captions(), 0, *CAPTION, *REGIONS)
    assert shown.box_features[0, 0].item() == pytest.approx(3 * 4 / (4 + 1e-5), abs=1e-6)
    # A third is rounded: what is left would be nearly nothing, but divided by 1e-5.
    values = torch.rand(3, 2048, generator=torch.Generator().manual_seed(0))
    assert (values.mean(dim=0) * 3 != values.sum(dim=0)).any()
    classes = encoded([[1, 0, 0, 0]] * 3)
    items.regions.update(
        num_boxes=3, boxes=encoded([[1, 1, 2, 2]] * 3), features=encoded(values.numpy()), classes=classes
    )
    hidden = load(items.captions(), 0, *CAPTION, *[HIDDEN] * 3)
    assert hidden.masked_regions.tolist() == [False, True, True, True]
    assert not hidden.box_features[0].any()
    unmasked = load(items.captions(network={"WITH_MVRC_LOSS": False}), 0, *CAPTION)
    assert torch.equal(unmasked.box_features[0], values.mean(dim=0))


def test_without_the_whole_image(items):
    sample = load(items.captions(ADD_IMAGE_AS_A_BOX=False), 0, *CAPTION, KEPT, HIDDEN, KEPT, KEPT)
    assert sample.box_features[:, 0].tolist() == [6, 2, 1, 3]
    assert sample.masked_regions.tolist() == [False, True, False, False]
    assert sample.masked_region_index.tolist() == [1]
    assert sample.region_labels.tolist() == [[0, 0, 0.375, 0.625]]


def test_losses_that_are_off_draw_nothing(items):
    sample = load(items.captions(network={"WITH_MLM_LOSS": False, "WITH_MVRC_LOSS": False}), 0)
    assert words(sample) == "[CLS] a dog . [SEP]"
    assert (restored(sample), sample.masked_regions.any().item()) == ({}, False)
    assert (sample.masked_region_index.shape, sample.region_labels.shape) == ((0,), (0, CLASSES))


def test_pixels(items):
    sample = load(items.captions(network=PIXELS), 0, *CAPTION, KEPT, HIDDEN, KEPT, LABELLED)
    assert sample.image.shape == (3, 20, 40)
    assert sample.padded_size == (20, 40)
    assert sample.image[2, 10, 2] > 190
    assert sample.image[2, 10, 30] < 10
    assert sample.box_features is None
    assert sample.masked_pixel_boxes.tolist() == [[0, 2, 39, 10]]
    assert sample.masked_pixel_boxes.dtype == torch.int64
    embedded = items.captions(network={**PIXELS, "MASK_RAW_PIXELS": False})
    assert load(embedded, 0, *CAPTION, *REGIONS).masked_pixel_boxes is None


def test_blanks_are_whole_pixels(items):
    items.regions.update(num_boxes=1, boxes=encoded([[1.3, 2.4, 4.9, 6.2]]), classes=encoded([[1, 0, 0, 0]]))
    sample = load(items.captions(network=PIXELS), 0, *CAPTION, HIDDEN)
    assert sample.masked_pixel_boxes.tolist() == [[2, 4, 9, 12]]


@pytest.mark.parametrize("precomputed", [True, False])
def test_flip_mirrors_the_picture_but_neither_words_nor_features(items, precomputed):
    network = {"IMAGE_FEAT_PRECOMPUTED": precomputed}
    data = items.captions(flip=0.5, network=network)
    plain, flipped = (load(data, 0, *CAPTION, HIDDEN, KEPT, KEPT, KEPT, flip=draw) for draw in (0.5, 0.49))
    assert flipped.boxes.tolist()[:3] == [[1, 0, 39, 18], [31, 0, 39, 8], [0, 2, 39, 10]]
    assert words(flipped) == words(plain)
    if precomputed:
        assert torch.equal(flipped.box_features, plain.box_features)
    else:
        assert torch.equal(flipped.image, plain.image.flip(-1))
        assert flipped.masked_pixel_boxes.tolist() == [[31, 0, 39, 8]]


def test_captions_of_other_pictures(items):
    items.records.append({**items.records[0], "caption": ["the", "cat"]})
    data = items.captions(network=RELATIONSHIP)
    own = load(data, 1, *CAPTION[:2], *REGIONS, match=OWN)
    assert (own.relationship.tolist(), words(own)) == ([1], "[CLS] red umbrella ##s [SEP]")
    # Its own number is drawn again.
    other = load(data, 1, HIDDEN, KEPT, *REGIONS, match=ANOTHER, numbers=(1, 1, 2))
    assert (other.relationship.tolist(), words(other)) == ([0], "[CLS] [MASK] cat [SEP]")
    assert (restored(other), other.record_id) == ({1: "the"}, "val_image.zip@/2.jpg")
    off = load(items.captions(), 1, *CAPTION[:2], *REGIONS, match=ANOTHER)
    assert off.relationship.tolist() == [1]


def test_about_half_of_the_captions_are_others(items):
    data = items.captions(network=RELATIONSHIP)
    matches = [data[ItemKey(epoch, 0)].relationship.item() for epoch in range(100)]
    assert 30 < sum(matches) < 70


def test_long_records_are_cut(items):
    items.records[0]["caption"] = ["the", "red", "umbrellas", "dog", "cat"]
    draws = [KEPT, KEPT, LABELLED, HIDDEN, KEPT, KEPT, HIDDEN, KEPT, LABELLED]
    # 8 tokens and 5 boxes
    sample = load(items.captions(SEQ_LEN=9), 0, *draws)
    assert words(sample) == "[CLS] the red [SEP]"
    assert (restored(sample), len(sample.boxes)) == ({}, 5)
    assert (sample.masked_region_index.tolist(), len(sample.region_labels)) == ([2, 4], 2)
    sample = load(items.captions(SEQ_LEN=8), 0, *draws)
    assert words(sample) == "[CLS] the red [SEP]"
    assert len(sample.boxes) == len(sample.box_features) == len(sample.masked_regions) == 4
    assert sample.region_labels.tolist() == [[0, 0, 0.375, 0.625]]
    sample = load(items.captions(SEQ_LEN=11), 0, *draws)
    assert (words(sample), restored(sample)) == (
        "[CLS] the red umbrella ##s [SEP]",
        {3: "umbrella", 4: "##s"},
    )
    sample = load(items.captions(SEQ_LEN=1), 0, *draws)
    assert (words(sample), len(sample.boxes)) == ("[CLS] [SEP]", 1)


def test_regions_that_are_left_out_are_blank_too(items):
    data = items.captions(SEQ_LEN=4, network=PIXELS)
    sample = load(data, 0, *CAPTION, KEPT, KEPT, KEPT, HIDDEN)
    assert len(sample.boxes) == 2
    assert sample.masked_pixel_boxes.tolist() == [[6, 6, 12, 12]]
    assert not sample.masked_regions.any()


def test_a_batch(items):
    data = items.captions(network=RELATIONSHIP)
    first = load(data, 0, HIDDEN, KEPT, KEPT, HIDDEN, *REGIONS[:3])
    second = load(data, 1, KEPT, LABELLED, KEPT, KEPT, LABELLED, HIDDEN)
    text = items.corpus("the dog", network={"VLBERT": {"visual_region_classes": CLASSES}}).load(
        0, Draws(KEPT, HIDDEN)
    )
    batch = collate([first, second, text], PretrainBatch)
    assert (batch.num_images, batch.num_boxes.sizes, batch.text.lengths.sizes) == (2, (5, 5, 0), (5, 5, 2))
    assert batch.relationship.tolist() == [1, 1]
    assert (batch.masked_token_index.values.tolist(), batch.masked_token_index.lengths.sizes) == (
        [1, 7, 8, 11],
        (1, 2, 1),
    )
    assert [VOCAB[number] for number in batch.word_labels] == ["a", "umbrella", "##s", "dog"]
    assert (batch.masked_region_index.values.tolist(), batch.masked_region_index.lengths.sizes) == (
        [1, 8, 9],
        (1, 2, 0),
    )
    assert batch.region_labels.shape == (3, CLASSES)
    assert batch.masked_regions.nonzero()[:, 0].tolist() == [1, 9]
    assert (batch.box_features.shape, batch.masked_pixel_boxes) == ((10, 2048), None)


def test_blanks_of_a_batch(items):
    data = items.captions(network=PIXELS)
    text = items.corpus("the", network=PIXELS).load(0, Draws(KEPT))
    samples = [
        load(data, 0, *CAPTION, HIDDEN, HIDDEN, KEPT, KEPT),
        load(data, 1, *CAPTION[1:], *REGIONS),
        text,
    ]
    masked_pixel_boxes = collate(samples, PretrainBatch).masked_pixel_boxes
    assert (masked_pixel_boxes.lengths.sizes, masked_pixel_boxes.values.tolist()) == (
        (2, 0, 0),
        [[0, 0, 8, 8], [0, 2, 39, 10]],
    )


@pytest.mark.parametrize(
    ("path", "image", "regions"),
    [
        ("train_x.zip@/1.json", "train_x/1.json", "train_x/1.json"),
        ("train_x.3.zip@/1.json", "train_x.3/1.json", "train_x/1.json"),
        ("train_x.4.zip@/1.json", "train_x.4/1.json", "train_x.4/1.json"),
        # The reference takes every .0 to .3 out of the second: v15/x/ab.json (B11).
        ("v1.05/x.1.zip@/a.2b.json", "v1.05/x.1/a.2b.json", "v1.05/x/a.2b.json"),
        ("train_x/1.2.json", "train_x/1.2.json", "train_x/1.2.json"),
    ],
)
def test_paths_of_unpacked_archives(path, image, regions):
    assert (unpacked_path(path), unpacked_region_path(path)) == (image, regions)


def zipped(items):
    for name, number in (("val_image", 1), ("val_image", 2), ("val_frcnn.0", 1), ("val_frcnn", 2)):
        folder = items.root / name.removesuffix(".0")
        path = next(folder.glob(f"{number}.*"))
        with zipfile.ZipFile(items.root / f"{name}.zip", "a") as archive:
            archive.write(path, path.name)
        path.unlink()


@pytest.mark.parametrize("precomputed", [True, False])
def test_archives_give_the_same(items, precomputed):
    network = {"IMAGE_FEAT_PRECOMPUTED": precomputed}
    plain = items.captions(network=network)
    expected = [plain[ItemKey(0, index)] for index in range(2)]
    zipped(items)
    config = items.config("conceptual_captions", network=network, ZIP_MODE=True)
    data = pickle.loads(pickle.dumps(type(plain)(config, config.DATASET, "train", items.tokenizer)))
    for index, sample in enumerate(expected):
        found = data[ItemKey(0, index)]
        assert torch.equal(found.boxes, sample.boxes)
        if precomputed:
            assert torch.equal(found.box_features, sample.box_features)
        else:
            assert torch.equal(found.image, sample.image)


@pytest.mark.parametrize("precomputed", [True, False])
def test_archives_are_opened_at_the_start_and_once(items, monkeypatch, precomputed):
    items.files()
    zipped(items)
    opened = []

    def open_one(path, cache):
        opened.append((path.removeprefix(f"{items.root}/"), cache.removeprefix(f"{items.root}/")))
        return open_archive(path, cache, indexed_above=0)

    monkeypatch.setattr(store, "open_archive", open_one)
    options = {"ZIP_MODE": True, "ROOT_PATH": str(items.root)}
    data = items.captions(network={"IMAGE_FEAT_PRECOMPUTED": precomputed}, **options)
    pictures = [] if precomputed else [("val_image.zip", "cache")]
    assert opened == [("val_frcnn.0.zip", "cache"), *pictures]
    assert [data[ItemKey(0, index)].record_id for index in (0, 1)] == [one["image"] for one in items.records]
    assert opened[1 + len(pictures) :] == [("val_frcnn.zip", "cache")]


@pytest.mark.parametrize("zip_mode", [False, True])
def test_packed_regions_give_the_same(items, tmp_path, zip_mode):
    plain = items.captions()
    expected = [plain[ItemKey(0, index)] for index in range(2)]
    sources = [items.root / "val_frcnn"]
    if zip_mode:
        zipped(items)
        sources = [items.root / "val_frcnn.0.zip", items.root / "val_frcnn.zip"]
    header = PackedHeader(dtype="float32", feature_dim=2048, classes=True)
    pack(list(map(str, sources)), tmp_path / "packed", header)
    other = tmp_path / "train_frcnn"
    other.mkdir()
    (other / "1.json").write_text(
        json.dumps({**items.regions, "num_boxes": 0, "boxes": "", "features": "", "classes": ""})
    )
    pack([str(other)], tmp_path / "other", header)
    # Both hold a picture 1; the folder tells which is meant.
    packed = f"{tmp_path}/other+{tmp_path}/packed"
    config = items.config("conceptual_captions", ZIP_MODE=zip_mode, PACKED_REGIONS=packed)
    data = pickle.loads(pickle.dumps(type(plain)(config, config.DATASET, "train", items.tokenizer)))
    for index, sample in enumerate(expected):
        found = data[ItemKey(0, index)]
        for name in ("boxes", "box_features", "region_labels", "masked_token_index", "masked_regions"):
            assert torch.equal(getattr(found, name), getattr(sample, name))
    with pytest.raises(DataError, match=r"val_frcnn.*: not packed; .*other from train_frcnn"):
        items.captions(PACKED_REGIONS=f"{tmp_path}/other")


def test_a_picture_without_regions(items):
    items.regions.update(num_boxes=0, boxes="", features="", classes="")
    sample = load(items.captions(), 0, *CAPTION)
    assert sample.boxes.tolist() == [[0, 0, 38, 18]]
    assert sample.box_features.tolist() == [[0] * 2048]
    assert (sample.region_labels.shape, sample.masked_regions.tolist()) == ((0, CLASSES), [False])
    with pytest.raises(DataError, match=r"no regions, and DATASET\.ADD_IMAGE_AS_A_BOX is off"):
        load(items.captions(ADD_IMAGE_AS_A_BOX=False), 0, *CAPTION)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": encoded([[1] * 5] * 4)}, "5 class scores; NETWORK.VLBERT.visual_region_classes is 4"),
        ({"classes": None}, r"val_frcnn/1\.json: classes is not base64"),
        ({"image_w": 21}, r"1\.jpg: has \(20, 10\) pixels .* of \(21, 10\)"),
        ({"num_boxes": 3}, r"1\.json: boxes"),
    ],
)
def test_wrong_region_files_show_when_the_data_are_opened(items, change, message):
    items.regions.update(change)
    with pytest.raises(DataError, match=rf"item 0 .*{message}"):
        items.captions(network=PIXELS)


def test_features_need_the_size_of_the_picture(items):
    del items.regions["image_w"], items.regions["image_h"]
    with pytest.raises(DataError, match=r"val_frcnn/1\.json: has no image_w and image_h"):
        load(items.captions(), 0, *CAPTION, *REGIONS)
    assert load(items.captions(network=PIXELS), 0, *CAPTION, *REGIONS).im_info.tolist() == [40, 20, 2, 2]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"caption": "a dog"},
            r"item 1 \(record 1\): .*val_frcnn\.json, line 2: caption: must be a list of words",
        ),
        ({"caption": []}, r"item 1 \(record val_image\.zip@/2\.jpg\): the caption of .*2\.jpg has no word"),
        ({"caption": ["\u200b", ""]}, "the caption of .* has no word"),
        ({"caption": ["a", 1]}, r"line 2: caption\.1"),
        ({"image": None}, "line 2: image"),
        ({"frcnn": "val_frcnn.zip@/3.json"}, r"val_frcnn/3\.json: cannot be read"),
    ],
)
def test_wrong_records_are_named(items, record, message):
    items.records[1].update(record)
    with pytest.raises(DataError, match=message):
        items.captions()[ItemKey(0, 1)]


@pytest.mark.parametrize("kind", ["captions", "coco_set"])
def test_without_a_path_data_lie_in_the_working_directory(items, monkeypatch, kind):
    monkeypatch.chdir(items.root)
    data = getattr(items, kind)(network=PIXELS, DATASET_PATH="")
    assert data[ItemKey(0, 1)].image is not None


def test_missing_pictures_are_no_zeros(items):
    data = items.captions(network=PIXELS)
    (items.root / "val_image/2.jpg").unlink()
    with pytest.raises(
        DataError, match=r"record val_image\.zip@/2\.jpg\): .*val_image/2\.jpg: cannot be read"
    ):
        data[ItemKey(0, 1)]
    items.captions()[ItemKey(0, 1)]


def test_what_is_wrong_at_the_door(items):
    with pytest.raises(
        ConfigError, match=r'DATASET\.TRAIN_IMAGE_SET: "vall": no such split; did you mean val\?'
    ):
        items.captions(TRAIN_IMAGE_SET="vall")
    with pytest.raises(ConfigError, match=r'DATASET\.VAL_IMAGE_SET: "": .*use train or val'):
        items.captions(split="val", VAL_IMAGE_SET="")
    with pytest.raises(ConfigError, match="pre-training has no test split"):
        items.captions(split="test")
    with pytest.raises(DataError, match=r"train_frcnn\.json: cannot be read"):
        items.captions(TRAIN_IMAGE_SET="train")
    with pytest.raises(DataError, match=r"val_frcnn\.0\.zip: no such file"):
        items.captions(ZIP_MODE=True)
    items.records[0]["image"] = "elsewhere.zip@/1.jpg"
    with pytest.raises(DataError, match="elsewhere: no such folder"):
        items.captions(network=PIXELS)
    del items.records[1]
    with pytest.raises(DataError, match=r"val_frcnn\.json: has only one caption; NETWORK\.WITH_REL_LOSS"):
        items.captions(network=RELATIONSHIP)


def test_skipping_bad_records_begins_with_the_first(items):
    items.records[0]["caption"] = []
    data = items.captions(ON_BAD_DATA="skip")
    assert data.on_bad_data == "skip"
    with pytest.raises(DataError, match=r"item 0 .* has no word"):
        items.captions(split="val", ON_BAD_DATA="skip")
    items.records[0] = {"image": "no record"}
    items.captions(ON_BAD_DATA="skip")


def test_coco(items):
    data = items.coco_set()
    assert (len(data), data.record_id(0), data.record_id(1)) == (2, "1", "2")
    sample = load(data, 1, KEPT, HIDDEN, KEPT, KEPT, HIDDEN, LABELLED)
    assert sample.record_id == "2"
    assert words(sample) == "[CLS] a [MASK] dog . [SEP]"
    # In the order of the file, twice as large: x2 = x + max(w - 1, 0).
    assert sample.boxes.tolist() == [[0, 0, 38, 18], [4, 4, 18, 10], [9, 2, 9, 10]]
    assert sample.masked_region_index.tolist() == [1, 2]
    assert sample.region_labels.shape == (2, 81)
    assert sample.region_labels.nonzero().tolist() == [[0, 2], [1, 1]]
    assert sample.masked_regions.tolist() == [False, True, False]
    assert sample.masked_pixel_boxes.tolist() == [[4, 4, 18, 10]]
    assert sample.image.shape == (3, 20, 40)
    again = load(data, 1, *[KEPT] * 6)
    assert torch.equal(again.boxes, sample.boxes)


def test_coco_from_an_archive(items):
    plain = items.coco_set()[ItemKey(0, 1)]
    with zipfile.ZipFile(items.root / "val2017.zip", "w") as archive:
        for path in (items.root / "val2017").iterdir():
            archive.write(path, f"val2017/{path.name}")
            path.unlink()
    data = items.coco_set(ZIP_MODE=True, ROOT_PATH="root")
    assert torch.equal(data[ItemKey(0, 1)].image, plain.image)
    assert data._store._cache == "root/cache"


def test_coco_keeps_the_separator_of_long_captions(items):
    sample = load(items.coco_set(SEQ_LEN=6), 1, *[KEPT] * 6)
    assert (words(sample), len(sample.boxes)) == ("[CLS] a [SEP]", 3)


def test_coco_without_labels_has_as_many_classes_as_the_model(items):
    network = {"WITH_MLM_LOSS": False, "WITH_MVRC_LOSS": False, "VLBERT": {"visual_region_classes": 1601}}
    assert load(items.coco_set(network=network), 0).region_labels.shape == (0, 1601)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i.coco_captions.pop(), r"captions_val2017\.json: has no caption of image 1"),
        (lambda i: i.coco.update(annotations=[]), r"instances_val2017\.json: has no annotation"),
        (
            lambda i: i.coco["images"][2].pop("file_name"),
            r"instances_val2017\.json: image 1 has no file_name",
        ),
        (lambda i: i.coco["images"].pop(), r"instances_val2017\.json: has no image 1"),
        (lambda i: i.coco_captions.clear(), r"captions_val2017\.json: annotations"),
    ],
)
def test_wrong_files_of_coco(items, change, message):
    change(items)
    with pytest.raises(DataError, match=message):
        items.coco_set()


def test_wrong_records_of_coco(items):
    items.coco["categories"].pop()
    with pytest.raises(DataError, match=r"item 1 \(record 2\): .*has no category 90"):
        items.coco_set()[ItemKey(0, 1)]
    Image.fromarray(np.zeros((9, 20, 3), np.uint8)).save(items.root / "val2017/1.jpg")
    with pytest.raises(DataError, match=r"record 1\): .*1\.jpg: has \(20, 9\) pixels .* of \(20, 10\)"):
        items.coco_set()[ItemKey(0, 0)]
    config = items.config("coco_captions", network=PIXELS)
    assert any("visual_region_classes: 4: must be 81" in line for line in config.problems())


@pytest.mark.parametrize("form", ["features", "pixels", "archives", "coco"])
def test_a_drawn_world(drawn, form):
    data = {"DATASET": "conceptual_captions", "DATASET_PATH": str(drawn / "conceptual-captions")}
    if form == "coco":
        data = {"DATASET": "coco_captions", "DATASET_PATH": str(drawn / "coco")}
    values = {
        "SCALES": [64, 64],
        "DATASET": {**data, "VAL_IMAGE_SET": "val", "ZIP_MODE": form == "archives"},
        "NETWORK": {
            "IMAGE_FEAT_PRECOMPUTED": form in ("features", "archives"),
            "WITH_REL_LOSS": form != "coco",
            "BERT_MODEL_NAME": str(drawn / "bert"),
            "VLBERT": {"visual_region_classes": 81 if form == "coco" else 1601},
        },
    }
    dataset = PretrainTask(parse_config(PretrainConfig, values, "test")).build_dataset("val")
    loaded = [dataset[ItemKey(0, index)] for index in range(len(dataset))]
    again = [dataset[ItemKey(0, index)] for index in range(len(dataset))]
    assert {sample.record_id for sample in loaded} == {dataset.record_id(i) for i in range(len(dataset))}
    for sample, same in zip(loaded, again, strict=True):
        # Validation asks for epoch 0 alone: its masks are always the same.
        assert torch.equal(sample.masked_token_index, same.masked_token_index)
        assert torch.equal(sample.masked_regions, same.masked_regions)
        assert sample.region_labels.sum(dim=1).tolist() == pytest.approx(
            [1] * len(sample.masked_region_index)
        )
        assert len(sample.boxes) >= 2
        assert (sample.boxes[:, :2] <= sample.boxes[:, 2:]).all()
        assert len(sample.texts[0]) + len(sample.boxes) <= 64
    batch = collate(loaded, PretrainBatch)
    assert 0 < len(batch.word_labels) < batch.text.lengths.total / 2
    assert 0 < batch.masked_regions.sum() <= len(batch.region_labels)
