import copy
import json
import pickle
import random
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
from vcr.config import VCRConfig
from vcr.dataset import VCRBatch
from vcr.task import VCRTask

WORDS = ["casey", "riley", "jessie", "dog", "who", "runs", "and", "so", "no", "yes", "because"]
VOCAB = [*SPECIAL_TOKENS, *WORDS]
SQUARE = [[2, 2], [9, 2], [9, 5], [2, 5]]

RECORD = {
    "annot_id": "val-0",
    "objects": ["person", "dog", "person"],
    "img_fn": "clip/0.png",
    "metadata_fn": "clip/0.json",
    "question": ["who", "runs"],
    "answer_choices": [[[2]], [[2], "runs"], ["no"], ["yes", [0, 2]]],
    "rationale_choices": [["because"], ["so"], ["because", [1]], ["no"]],
    "answer_label": 1,
    "rationale_label": 2,
}
METADATA = {
    "boxes": [[2, 2, 9, 5, 0.5], [0, 0, 10.5, 5, 0.9], [-4, 1, 30, 5, 1]],
    "segms": [[SQUARE], [], [SQUARE, [[0, 0], [5, 0], [0, 3]]]],
}


class World:
    """A folder with one picture, 20 pixels wide and 10 high, its left third red."""

    def __init__(self, root):
        self.root = root
        pixels = np.zeros((10, 20, 3), np.uint8)
        pixels[:, :7, 0] = 200
        (root / "images/clip").mkdir(parents=True)
        Image.fromarray(pixels).save(root / "images/clip/0.png")
        (root / "bert").mkdir()
        (root / "bert/vocab.txt").write_text("\n".join(VOCAB))
        self.metadata = copy.deepcopy(METADATA)
        self.records = [copy.deepcopy(RECORD)]

    def config(self, split, options):
        values = {
            "SCALES": [20, 50],
            "RNG_SEED": 5,
            "DATASET": {
                "DATASET_PATH": str(self.root),
                "ONLY_USE_RELEVANT_DETS": False,
                "TASK": "Q2A",
                "MASK_SIZE": 4,
                f"{split.upper()}_IMAGE_SET": "images",
                f"{split.upper()}_ANNOTATION_FILE": "records.jsonl",
            },
            "NETWORK": {"BERT_MODEL_NAME": str(self.root / "bert")},
        }
        for key, value in options.items():
            part = values
            *path, last = key.split(".")
            for name in path:
                part = part.setdefault(name, {})
            part[last] = value
        return parse_config(VCRConfig, values, "test")

    def open(self, split="val", **options):
        options = {key.replace("__", "."): value for key, value in options.items()}
        (self.root / "images/clip/0.json").write_text(json.dumps(self.metadata))
        (self.root / "records.jsonl").write_text("\n".join(map(json.dumps, self.records)))
        return VCRTask(self.config(split, options)).build_dataset(split)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def pieces(tokens):
    return " ".join(VOCAB[number] for number in tokens.ids)


def texts(sample):
    return [" ".join(VOCAB[number] for number in text.ids) for text in sample.texts]


def test_a_validation_item(world):
    sample = world.open()[ItemKey(0, 0)]
    assert (sample.index, sample.record_id, sample.label.item()) == (0, "val-0", 1)
    assert sample.image.shape == (3, 20, 40)
    assert sample.image[:, 0, 0].tolist() == [0, 0, 200]
    assert sample.padded_size == (20, 50)
    assert sample.im_info.tolist() == [40, 20, 2, 2]
    assert sample.boxes.tolist() == [[0, 0, 38, 18], [4, 4, 18, 10], [0, 0, 21, 10], [0, 2, 39, 10]]
    assert sample.box_classes.tolist() == [0, 1, 17, 1]
    assert sample.box_masks.dtype == torch.bool
    assert sample.box_masks.sum((1, 2)).tolist()[:3] == [16, 16, 0]
    assert texts(sample) == [
        "[CLS] who runs [SEP] riley [SEP]",
        "[CLS] who runs [SEP] riley runs [SEP]",
        "[CLS] who runs [SEP] no [SEP]",
        "[CLS] who runs [SEP] yes casey and riley [SEP]",
    ]
    assert sample.texts[3].tags.tolist() == [0, 0, 0, 0, 0, 1, 0, 3, 0]
    assert sample.texts[3].types.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_without_the_whole_image(world):
    sample = world.open(DATASET__ADD_IMAGE_AS_A_BOX=False)[ItemKey(0, 0)]
    assert sample.box_classes.tolist() == [1, 17, 1]
    assert len(sample.boxes) == len(sample.box_masks) == 3
    assert sample.texts[3].tags.tolist() == [0, 0, 0, 0, 0, 0, 0, 2, 0]


def test_relevant_objects_only(world):
    data = world.open(DATASET__ONLY_USE_RELEVANT_DETS=True)
    sample = data[ItemKey(0, 0)]
    assert sample.box_classes.tolist() == [0, 1, 1]
    assert sample.boxes[1].tolist() == [0, 2, 39, 10]
    assert texts(sample)[3] == "[CLS] who runs [SEP] yes riley and casey [SEP]"
    assert sample.texts[3].tags.tolist() == [0, 0, 0, 0, 0, 2, 0, 1, 0]
    rationales = world.open(DATASET__ONLY_USE_RELEVANT_DETS=True, DATASET__TASK="QA2R")[ItemKey(0, 0)]
    assert rationales.box_classes.tolist() == [0, 1, 1, 17]


def test_flip(world):
    plain = world.open("train", TRAIN__FLIP_PROB=0.0)[ItemKey(0, 0)]
    flipped = world.open("train", TRAIN__FLIP_PROB=1.0)[ItemKey(0, 0)]
    assert torch.equal(flipped.image, plain.image.flip(-1))
    assert flipped.boxes.tolist() == [[1, 0, 39, 18], [21, 4, 35, 10], [18, 0, 39, 10], [0, 2, 39, 10]]
    assert torch.equal(flipped.box_masks, plain.box_masks.flip(-1))
    assert not torch.equal(flipped.box_masks, plain.box_masks)
    assert torch.equal(flipped.im_info, plain.im_info)


def test_portrait_canvas(world):
    Image.new("L", (10, 20)).save(world.root / "images/clip/0.png")
    sample = world.open()[ItemKey(0, 0)]
    assert sample.image.shape == (3, 40, 20)
    assert sample.padded_size == (50, 20)


def test_archive_and_folder_give_the_same(world):
    plain = world.open()
    with zipfile.ZipFile(world.root / "images.zip", "w") as archive:
        for path in (world.root / "images").rglob("*.*"):
            archive.write(path, path.relative_to(world.root))
    zipped = pickle.loads(pickle.dumps(world.open(DATASET__ZIP_MODE=True)))
    one, other = plain[ItemKey(0, 0)], zipped[ItemKey(0, 0)]
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.boxes, other.boxes)
    assert texts(one) == texts(other)


def test_rationales_follow_question_and_right_answer(world):
    sample = world.open(DATASET__TASK="QA2R")[ItemKey(0, 0)]
    assert sample.label.item() == 2
    assert texts(sample)[:2] == [
        "[CLS] who runs riley runs [SEP] because [SEP]",
        "[CLS] who runs riley runs [SEP] so [SEP]",
    ]
    sample = world.open(DATASET__TASK="QA2R", DATASET__QA2R_NOQ=True)[ItemKey(0, 0)]
    assert texts(sample)[2] == "[CLS] riley runs [SEP] because dog [SEP]"


def test_rationales_follow_every_answer_in_test_mode(world):
    for name in ("answer_label", "rationale_label"):
        del world.records[0][name]
    sample = world.open("test", DATASET__TASK="QA2R")[ItemKey(0, 0)]
    assert sample.label is None
    assert len(sample.texts) == 16
    assert texts(sample)[4 * 2 + 1] == "[CLS] who runs no [SEP] so [SEP]"
    assert texts(sample)[4 * 3 + 0] == "[CLS] who runs yes casey and riley [SEP] because [SEP]"
    batch = collate([sample, sample], VCRBatch)
    assert (batch.num_conditions, batch.label) == (4, None)
    assert collate([world.open("test")[ItemKey(0, 0)]], VCRBatch).num_conditions == 1


def test_long_texts_are_cut_but_for_rationales_in_test_mode(world):
    world.records[0]["question"] = ["who"] * 50
    world.records[0]["answer_choices"][3] = ["yes"] * 40
    world.records[0]["rationale_choices"][3] = ["so"] * 90
    data = world.open()
    (question,), answers = data.preprocessor.texts(data.records[0], 0)
    assert (len(question.ids), [len(answer.ids) for answer in answers]) == (32, [1, 2, 1, 32])
    data = world.open(DATASET__TASK="QA2R")
    (question,), rationales = data.preprocessor.texts(data.records[0], 0)
    assert (len(question.ids), [len(rationale.ids) for rationale in rationales]) == (32, [1, 1, 2, 32])
    data = world.open("test", DATASET__TASK="QA2R")
    questions, rationales = data.preprocessor.texts(data.records[0], 0)
    assert [len(question.ids) for question in questions] == [51, 52, 51, 90]
    assert len(rationales[3].ids) == 90


def test_layout_options(world):
    assert texts(world.open(NETWORK__ANSWER_FIRST=True)[ItemKey(0, 0)])[2] == "[CLS] no [SEP] who runs [SEP]"
    assert texts(world.open(NETWORK__QA_ONE_SENT=True)[ItemKey(0, 0)])[2] == "[CLS] who runs no [SEP]"


def test_evaluation_continues_the_names_of_earlier_records(world):
    world.records = [dict(RECORD, annot_id=f"val-{number}") for number in range(8)]
    data = world.open()
    assert data.name_offsets.tolist() == [0, 2, 4, 6, 8, 10, 12, 1]
    assert texts(data[ItemKey(0, 7)])[3] == "[CLS] who runs [SEP] yes riley and jessie [SEP]"
    assert texts(data[ItemKey(3, 7)]) == texts(data[ItemKey(0, 7)])
    assert (
        world.open(DATASET__ONLY_USE_RELEVANT_DETS=True).name_offsets.tolist() == data.name_offsets.tolist()
    )
    world.records[0]["answer_choices"] = [["no"]] * 4
    assert world.open(DATASET__ONLY_USE_RELEVANT_DETS=True).name_offsets.tolist()[:3] == [0, 0, 2]


def test_training_draws_names_after_the_flip(world):
    data = world.open("train")
    rng = random.Random(1)
    rng.random()
    expected = data.preprocessor.texts(data.records[0], rng.randrange(13))[1][3]
    assert data.load(0, random.Random(1)).texts[3].ids[4:-1].tolist() == list(expected.ids)
    drawn = {tuple(texts(data[ItemKey(epoch, 0)])) for epoch in range(60)}
    assert 3 <= len(drawn) <= 13


def test_blind_models_need_no_pixels(world):
    seen, blind = world.open()[ItemKey(0, 0)], world.open(NETWORK__BLIND=True)[ItemKey(0, 0)]
    assert blind.image is None
    assert torch.equal(blind.boxes, seen.boxes)
    assert (blind.padded_size, blind.im_info.tolist()) == (seen.padded_size, seen.im_info.tolist())


def test_a_picture_without_objects(world):
    world.records[0].update(objects=[], answer_choices=[["no"]] * 4, rationale_choices=[["no"]] * 4)
    world.metadata = {"boxes": [], "segms": []}
    sample = world.open()[ItemKey(0, 0)]
    assert sample.boxes.tolist() == [[0, 0, 38, 18]]
    assert sample.boxes.dtype == torch.float32
    with pytest.raises(
        DataError, match=r"record val-0\): no object is visible, and DATASET.ADD_IMAGE_AS_A_BOX"
    ):
        world.open(DATASET__ADD_IMAGE_AS_A_BOX=False)[ItemKey(0, 0)]


def test_boxes_without_area(world):
    world.metadata["boxes"] = [[5, 5, 4, 4, 1], [9, 9, 2, 2, 1], [3, 3, 3, 3, 1]]
    assert torch.isfinite(world.open()[ItemKey(0, 0)].boxes).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annot_id": 7}, "annot_id: Input should be a valid string"),
        ({"objects": ["person", "dragon"]}, 'objects.1: "dragon" is not one of the 80 object classes'),
        ({"objects": ["__background__"]}, 'objects.0: "__background__" is not one'),
        ({"question": []}, "question: List should have at least 1 item"),
        ({"question": ["who", []]}, "question.1.* List should have at least 1 item"),
        ({"question": ["who", [-1]]}, "question.1.* greater than or equal to 0"),
        ({"question": ["who", [3]]}, "a text refers to object 3, but there are 3, counted from 0"),
        ({"answer_choices": [["no"]] * 3}, "answer_choices: List should have at least 4 items"),
        ({"answer_choices": [["no"], ["no"], [], ["no"]]}, "answer_choices.2: List should have at least 1"),
        ({"answer_label": 4}, "answer_label: Input should be less than 4"),
        ({"answer_label": None}, "answer_label: Field required"),
        ({"rationale_choices": None}, "rationale_choices: Field required"),
        ({"rationale_label": None}, "rationale_label: Field required"),
    ],
)
def test_wrong_records_are_found_on_opening(world, change, message):
    world.records.append({**RECORD, **change})
    with pytest.raises(DataError, match=rf"records.jsonl, line 2: {message}"):
        world.open(DATASET__TASK="QA2R")


def test_answers_need_no_rationales(world):
    for name in ("rationale_choices", "rationale_label"):
        del world.records[0][name]
    assert len(world.open()[ItemKey(0, 0)].texts) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": METADATA["boxes"][:2]}, "2 boxes and 3 segms; expected 3 of each"),
        ({"boxes": [[1, 2, 3, 4]] * 3}, "boxes.0.4: Field required"),
        ({"boxes": [[1, 2, 3, 4, None]] * 3}, "boxes.0.4: Input should be a valid number"),
        ({"boxes": [[1, 2, 3, float("inf"), 1]] * 3}, "boxes.0.3: Input should be a finite number"),
        ({"segms": [[], [], [[[1, 2, 3]]]]}, "segms.2.0.0: Tuple should have at most 2 items"),
    ],
)
def test_wrong_metadata_is_named(world, change, message):
    world.metadata.update(change)
    with pytest.raises(DataError, match=rf"VCRDataset item 0 \(record val-0\): .*clip/0.json: {message}"):
        world.open()[ItemKey(0, 0)]


def test_missing_files_are_named(world):
    data = world.open()
    (world.root / "images/clip/0.png").unlink()
    with pytest.raises(DataError, match=r"item 0 \(record val-0\): .*clip/0.png: cannot be read"):
        data[ItemKey(0, 0)]
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        world.open(DATASET__VAL_IMAGE_SET="nowhere")
    with pytest.raises(DataError, match=r"images.zip: no such file; expected a zip archive"):
        world.open(DATASET__ZIP_MODE=True)


def test_evaluation_never_leaves_out_a_record(world):
    world.records = [dict(RECORD, annot_id=f"val-{number}") for number in range(200)]
    world.records[3]["img_fn"] = "clip/gone.png"
    assert world.open("train", DATASET__ON_BAD_DATA="skip")[ItemKey(0, 3)].index == 4
    with pytest.raises(DataError, match=r"gone.png: cannot be read"):
        world.open(DATASET__ON_BAD_DATA="skip")[ItemKey(0, 3)]
