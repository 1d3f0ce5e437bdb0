"""Items of VQA from a folder of one picture."""

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
from common.data.samplers import ItemKey
from common.data.tokenizer import SPECIAL_TOKENS
from common.errors import DataError
from vqa.config import VQAConfig
from vqa.dataset import VQABatch
from vqa.task import VQATask

VOCAB = [*SPECIAL_TOKENS, "what", "is", "left", "right", "##most", "of", "it", "?"]
ANSWERS = ["<unk>", "left", "right", "on left", "t-shirt", "yes"]
REGIONS = "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"


def encoded(values: object) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


class World:
    """A folder with one picture, 20 pixels wide and 10 high, its left third red, and two regions of it."""

    def __init__(self, root):
        self.root = root
        for folder in ("vqa", "annotations", "val2014", "bert", REGIONS):
            (root / folder).mkdir(parents=True)
        pixels = np.zeros((10, 20, 3), np.uint8)
        pixels[:, :7, 0] = 200
        Image.fromarray(pixels).save(root / "val2014/COCO_val2014_000000000042.jpg", quality=100)
        (root / "bert/vocab.txt").write_text("\n".join(VOCAB))
        (root / "answers.txt").write_text("\n".join(ANSWERS))
        self.write("annotations/instances_val2014.json", {"images": [{"id": 42, "width": 20, "height": 10}]})
        self.question = "What is left of it?"
        self.answers = ["left", "left", "on left", "yes", "t-shirt", "cat"]
        self.regions = {
            "num_boxes": 2,
            "image_w": 20,
            "image_h": 10,
            "boxes": encoded([[2, 2, 9, 5], [-4, 1, 30, 5]]),
            "features": encoded([[1] * 2048, [4] * 2048]),
        }

    def write(self, name, content):
        (self.root / name).write_text(json.dumps(content))

    def files(self):
        ids = {"image_id": 42, "question_id": 42000}
        said = [{"answer": answer} for answer in self.answers]
        self.write(
            "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
            {"questions": [{**ids, "question": self.question}]},
        )
        self.write("vqa/v2_mscoco_val2014_annotations.json", {"annotations": [{**ids, "answers": said}]})
        self.write(f"{REGIONS}/42.json", self.regions)

    def open(self, split="val", precomputed=True, flip=0.0, **data):
        self.files()
        values = {
            "SCALES": [20, 50],
            "RNG_SEED": 5,
            "DATASET": {
                "DATASET_PATH": str(self.root),
                "ANSWER_VOCAB_FILE": str(self.root / "answers.txt"),
                "ANSWER_VOCAB_SIZE": len(ANSWERS),
                "BOXES": "10-100ada",
                "USE_IMDB": False,
                f"{split.upper()}_IMAGE_SET": "val2014",
                **data,
            },
            "NETWORK": {
                "BERT_MODEL_NAME": str(self.root / "bert"),
                "IMAGE_FEAT_PRECOMPUTED": precomputed,
            },
            split.upper(): {"FLIP_PROB": flip},
        }
        return VQATask(parse_config(VQAConfig, values, "test")).build_dataset(split)

    def item(self, *args, **kwargs):
        return self.open(*args, **kwargs)[ItemKey(0, 0)]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def words(sample):
    return " ".join(VOCAB[number] for number in sample.texts[0].ids)


def test_precomputed_features(world):
    sample = world.item()
    assert (sample.index, sample.record_id, sample.image) == (0, "42000", None)
    assert sample.im_info.tolist() == [40, 20, 2, 2]
    assert sample.boxes.tolist() == [[0, 0, 38, 18], [4, 4, 18, 10], [0, 2, 39, 10]]
    assert sample.box_features.shape == (3, 2048)
    assert sample.box_features[:, 7].tolist() == [2.5, 1, 4]
    assert words(sample) == "[CLS] what is left of it ? [SEP] [MASK] [SEP]"
    assert sample.texts[0].types.tolist() == [0] * 8 + [1, 1]
    assert sample.texts[0].tags.tolist() == [0] * 10
    # Of six: two said left, one on left, one yes; "t-shirt" is no entry of the normalised vocabulary.
    assert sample.label.tolist() == pytest.approx([0, (2 / 3 + 8 / 3) / 6, 0, 5 / 18, 0, 5 / 18])


def test_the_feature_of_the_whole_image_may_come_with_the_file(world):
    world.regions["image_box_feature"] = encoded([9] * 2048)
    assert world.item().box_features[:, 0].tolist() == [9, 1, 4]


def test_without_the_whole_image(world):
    sample = world.item(ADD_IMAGE_AS_A_BOX=False)
    assert sample.boxes.tolist() == [[4, 4, 18, 10], [0, 2, 39, 10]]
    assert sample.box_features[:, 0].tolist() == [1, 4]


def test_pixels(world):
    sample = world.item(precomputed=False)
    assert sample.image.shape == (3, 20, 40)
    assert sample.padded_size == (20, 40)
    assert sample.image[2, 10, 2] > 190
    assert sample.image[2, 10, 30] < 10
    assert sample.box_features is None
    assert sample.boxes.tolist() == [[0, 0, 38, 18], [4, 4, 18, 10], [0, 2, 39, 10]]


def test_flip(world):
    world.question = "What is left right leftmost?"
    flipped = world.item("train", precomputed=False, flip=1.0)
    plain = world.item("train", precomputed=False)
    assert torch.equal(flipped.image, plain.image.flip(-1))
    assert flipped.boxes.tolist() == [[1, 0, 39, 18], [21, 4, 35, 10], [0, 2, 39, 10]]
    assert words(flipped) == "[CLS] what is right left right ##most ? [SEP] [MASK] [SEP]"
    assert words(plain) == "[CLS] what is left right left ##most ? [SEP] [MASK] [SEP]"
    # "on left" becomes "on right", which is no class.
    assert flipped.label.tolist() == pytest.approx([0, 0, 5 / 9, 0, 0, 5 / 18])


def test_flips_leave_features_as_they_are(world):
    assert torch.equal(
        world.item("train", flip=1.0).box_features,
        world.item("train").box_features,
    )


def test_imdb_questions_swap_words_before_they_are_cut_to_pieces(world):
    (world.root / "vqa/vqa_imdb").mkdir()
    array = np.empty(2, dtype=object)
    tokens = ["what", "is", "left", "leftmost"]
    array[:] = [
        {},
        {"image_id": 42, "question_id": 7, "question_tokens": tokens, "answers": ["t-shirt", "yes"]},
    ]
    np.save(world.root / "vqa/vqa_imdb/imdb_val2014.npy", array, allow_pickle=True)
    sample = world.item("train", flip=1.0, USE_IMDB=True)
    assert words(sample) == "[CLS] what is right left ##most [SEP] [MASK] [SEP]"
    assert sample.label.tolist() == pytest.approx([0, 0, 0, 0, 1 / 6, 1 / 6])


def test_annotated_answers_may_be_spelled_like_the_vocabulary(world):
    assert world.item(ANSWER_NORMALISE="both").label[4] == pytest.approx(5 / 18)


def test_test_mode_has_no_label(world):
    sample = world.item("test")
    assert sample.label is None
    batch = collate([sample, sample], VQABatch)
    assert (batch.label, batch.question_ids) == (None, [42000, 42000])


def test_a_batch(world):
    sample = world.item()
    batch = collate([sample, sample], VQABatch)
    assert batch.label.shape == (2, 6)
    assert (batch.num_boxes.sizes, batch.text.lengths.sizes) == ((3, 3), (10, 10))
    assert batch.box_features.shape == (6, 2048)


@pytest.mark.parametrize("precomputed", [True, False])
def test_archive_and_folder_give_the_same(world, precomputed):
    plain = world.item(precomputed=precomputed)
    for folder in (world.root / "val2014", world.root / REGIONS):
        with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
            for path in folder.iterdir():
                archive.write(path, path.relative_to(folder.parent))
                path.unlink()
    data = pickle.loads(pickle.dumps(world.open(precomputed=precomputed, ZIP_MODE=True)))
    zipped = data[ItemKey(0, 0)]
    assert torch.equal(zipped.boxes, plain.boxes)
    if precomputed:
        assert torch.equal(zipped.box_features, plain.box_features)
    else:
        assert torch.equal(zipped.image, plain.image)


def test_groups(world):
    assert world.open("train").groups() == [0]
    world.write("annotations/instances_val2014.json", {"images": [{"id": 42, "width": 10, "height": 20}]})
    assert world.open("train", precomputed=False).groups() == [1]


def test_the_log_counts_answers_without_class(world, caplog):
    with caplog.at_level(logging.INFO):
        world.open()
    assert "val2014: 1 questions; 2 of 6 answers are not in" in caplog.text


def test_a_picture_without_regions(world):
    world.regions.update(num_boxes=0, boxes="", features="")
    sample = world.item()
    assert sample.boxes.tolist() == [[0, 0, 38, 18]]
    assert sample.box_features.tolist() == [[0] * 2048]
    with pytest.raises(
        DataError, match=r"record 42000\): .*no regions, and DATASET.ADD_IMAGE_AS_A_BOX is off"
    ):
        world.item(ADD_IMAGE_AS_A_BOX=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_w": 21}, r"for an image of \(21, 10\) pixels .* but the image has \(20, 10\)"),
        ({"features": encoded([[1] * 2048, [float("nan")] * 2048])}, "42.json: .*nan"),
        ({"features": encoded([[1] * 1024] * 2)}, "42.json: features"),
        ({"num_boxes": 3}, "42.json: boxes"),
    ],
)
def test_wrong_region_files_are_named(world, change, message):
    world.regions.update(change)
    with pytest.raises(DataError, match=rf"VQADataset item 0 \(record 42000\): .*{message}"):
        world.item()


def test_missing_files_are_named(world):
    data = world.open(precomputed=False)
    (world.root / "val2014/COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(DataError, match=r"record 42000\): .*COCO_val2014_000000000042.jpg: cannot be read"):
        data[ItemKey(0, 0)]
    with pytest.raises(DataError, match=r"trainval_resnet101_faster_rcnn_genome_36: no such folder"):
        world.open(BOXES="36")
    world.write("annotations/instances_val2014.json", {"images": [{"id": 1, "width": 10, "height": 20}]})
    with pytest.raises(DataError, match=r"record 42000\): .*instances_val2014.json: has no image 42"):
        world.item()


def test_evaluation_never_leaves_out_a_record(world):
    for split, status in (("train", "skip"), ("val", "raise"), ("test", "raise")):
        assert world.open(split, ON_BAD_DATA="skip").on_bad_data == status


@pytest.mark.parametrize("precomputed", [True, False])
def test_without_a_path_data_lie_in_the_working_directory(world, monkeypatch, precomputed):
    monkeypatch.chdir(world.root)
    assert len(world.open("train", precomputed, DATASET_PATH="")[ItemKey(0, 0)].boxes) == 3
