from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from common.errors import UsageError
from scripts import make_toy_data
from scripts.make_toy_data import MANIFEST, ToyWorld, main
from scripts.toy import refcoco, vqa
from scripts.toy.coco import Picture
from scripts.toy.regions import CLASSES, FEATURES, region_class
from scripts.toy.vocabulary import VOCAB_SIZE
from scripts.toy.world import COLOURS, KINDS

WORLD = ToyWorld(train=800, val=80, test=40)
SMALL = ToyWorld(train=9, val=5, test=3)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "toy"
    assert make_toy_data.make_toy_data(root, WORLD)
    return root


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def decode(text: str, columns: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").reshape(-1, columns)


def digests(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_inside(boxes: Any, width: float, height: float) -> None:
    x1, y1, x2, y2 = np.asarray(boxes, dtype=np.float64)[:, :4].T
    assert (x1 >= 0).all()
    assert (y1 >= 0).all()
    assert (x2 <= width - 1).all()
    assert (y2 <= height - 1).all()
    assert (x2 - x1 >= 16).all()
    assert (y2 - y1 >= 16).all()


def word(tokens: list[Any]) -> str:
    return " ".join(token for token in tokens if isinstance(token, str))


def colour_in(tokens: list[Any]) -> str | None:
    return next((token for token in tokens if isinstance(token, str) and token in COLOURS), None)


def seen_colour(pixels: np.ndarray, box: list[float]) -> str:
    """The colour that most pixels of a box come close to."""
    x1, y1, x2, y2 = (int(v) for v in box[:4])
    inside = pixels[y1:y2, x1:x2].reshape(-1, 1, 3).astype(float)
    near = np.abs(inside - np.array(list(COLOURS.values()))).max(axis=2) < 30
    return list(COLOURS)[int(near.sum(axis=0).argmax())]


# ---- VCR


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_vcr_records_are_complete_and_join_with_their_pictures(toy: Path, split: str) -> None:
    records = read_lines(toy / "vcr" / f"{split}.jsonl")
    assert len(records) == WORLD.sizes[split]
    assert len({record["annot_id"] for record in records}) == len(records)
    for record in records:
        objects = record["objects"]
        assert ("answer_label" in record, "rationale_label" in record) == (split != "test",) * 2
        for choices in (record["answer_choices"], record["rationale_choices"]):
            assert len({json.dumps(choice) for choice in choices}) == len(choices) == 4
            assert len({len(choice) for choice in choices if "wears" in choice or "because" in choice}) <= 1
        for tokens in [record["question"], *record["answer_choices"], *record["rationale_choices"]]:
            assert all(0 <= i < len(objects) for token in tokens if isinstance(token, list) for i in token)
        about = read(toy / "vcr" / "vcr1images" / record["metadata_fn"])
        with Image.open(toy / "vcr" / "vcr1images" / record["img_fn"]) as picture:
            assert picture.size == (about["width"], about["height"])
        assert about["names"] == objects
        assert len(about["boxes"]) == len(about["segms"]) == len(objects)
        assert_inside(about["boxes"], about["width"], about["height"])
        for box, polygons in zip(about["boxes"], about["segms"], strict=True):
            corners = np.array(polygons[0])
            assert np.abs([*corners.min(axis=0), *corners.max(axis=0)] - np.array(box[:4])).max() < 2.5
            assert 0 < box[4] <= 1


def test_vcr_pictures_answer_the_questions(toy: Path) -> None:
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for record in read_lines(toy / "vcr" / "val.jsonl"):
        boxes = read(toy / "vcr" / "vcr1images" / record["metadata_fn"])["boxes"]
        with Image.open(toy / "vcr" / "vcr1images" / record["img_fn"]) as picture:
            pixels = np.asarray(picture)
        for kind in ("answer", "rationale"):
            true = record[f"{kind}_choices"][record[f"{kind}_label"]]
            thing = next(token[0] for token in true if isinstance(token, list))
            if colour := colour_in(true):
                asked[kind] += 1
                right[kind] += seen_colour(pixels, boxes[thing]) == colour
            else:
                (x1, y1, x2, y2, _), other = boxes[thing], boxes[true[-2][0]]
                holds = {"left of": x2 < other[0] + 3, "right of": x1 > other[2] - 3}
                holds |= {"above": y2 < other[1] + 3, "below": y1 > other[3] - 3}
                assert holds[word(true[:-1]).removeprefix("is ")]
    assert asked["answer"] > 60
    assert all(right[kind] / asked[kind] > 0.97 for kind in asked)


def test_vcr_is_at_chance_without_the_picture(toy: Path) -> None:
    records = read_lines(toy / "vcr" / "train.jsonl")
    for kind in ("answer", "rationale"):
        labels = [record[f"{kind}_label"] for record in records]
        assert set(Counter(labels).values()) == {len(records) // 4}
        trues = Counter(word(r[f"{kind}_choices"][r[f"{kind}_label"]][-3:]) for r in records)
        assert max(trues.values()) / len(records) < 0.3
        # The most frequent true colour of a class, and the order of the words, tell nothing.
        by_class: dict[str, Counter[str]] = {}
        for record in records:
            true = record[f"{kind}_choices"][record[f"{kind}_label"]]
            if colour := colour_in(true):
                thing = next(token[0] for token in true if isinstance(token, list))
                by_class.setdefault(record["objects"][thing], Counter())[colour] += 1
        assert all(max(colours.values()) / colours.total() < 0.35 for colours in by_class.values())
    # Neither does copying (or shunning) the colour of the answer where a rationale offers it.
    offered = copied = 0
    for record in records:
        colour = colour_in(record["answer_choices"][record["answer_label"]])
        reasons = [colour_in(choice) for choice in record["rationale_choices"]]
        if colour in reasons:
            offered += 1
            copied += reasons.index(colour) == record["rationale_label"]
    assert offered > 300
    assert 0.18 < copied / offered < 0.32


# ---- region files, VQA


def check_regions(path: Path, width: int, height: int, classes: bool) -> int:
    regions = read(path)
    count = regions["num_boxes"]
    assert (regions["image_w"], regions["image_h"]) == (width, height)
    boxes = decode(regions["boxes"], 4)
    assert boxes.shape == (count, 4)
    assert decode(regions["features"], FEATURES).shape == (count, FEATURES)
    assert_inside(boxes, width, height)
    assert ("classes" in regions) == classes
    if classes:
        scores = decode(regions["classes"], CLASSES)
        assert scores.shape == (count, CLASSES)
        assert (scores.sum(axis=1) == 1).all()
        assert (scores.max(axis=1) > 0.5).all()
    return int(count)


@pytest.mark.parametrize("image_set", ["train2014", "val2014", "test2015"])
def test_vqa_questions_have_pictures_sizes_and_regions(toy: Path, image_set: str) -> None:
    coco = toy / "coco"
    annotation_file = "image_info_test2015" if image_set == "test2015" else f"instances_{image_set}"
    sizes = {image["id"]: image for image in read(coco / "annotations" / f"{annotation_file}.json")["images"]}
    questions = read(coco / "vqa" / f"v2_OpenEnded_mscoco_{image_set}_questions.json")["questions"]
    split = {"train2014": "train", "val2014": "val", "test2015": "test"}[image_set]
    assert len(questions) == WORLD.sizes[split] * (vqa.TRAIN_FACTOR if split == "train" else 1)
    assert len({question["question_id"] for question in questions}) == len(questions)
    for image_id in {question["image_id"] for question in questions}:
        width, height = sizes[image_id]["width"], sizes[image_id]["height"]
        with Image.open(coco / image_set / f"COCO_{image_set}_{image_id:012d}.jpg") as picture:
            assert picture.size == (width, height)
        ada, fixed = (coco / "vgbua_res101_precomputed" / name for name in vqa.BOX_SETS[image_set])
        check_regions(ada / f"{image_id}.json", width, height, classes=False)
        assert check_regions(fixed / f"{image_id}.json", width, height, classes=False) == vqa.REGIONS_36


def test_vqa_answers_join_agree_and_are_in_the_vocabulary(toy: Path) -> None:
    folder = toy / "coco" / "vqa"
    vocabulary = (folder / "answers_vqa.txt").read_text(encoding="utf-8").splitlines()
    assert vocabulary == list(vqa.ANSWERS)
    assert len(set(vocabulary)) == len(vocabulary)
    ids = {}
    for split in ("train2014", "val2014", "minival2014", "valminusminival2014"):
        questions = read(folder / f"v2_OpenEnded_mscoco_{split}_questions.json")["questions"]
        annotations = read(folder / f"v2_mscoco_{split}_annotations.json")["annotations"]
        ids[split] = [question["question_id"] for question in questions]
        assert ids[split] == [annotation["question_id"] for annotation in annotations]
        for annotation in annotations:
            answers = [answer["answer"] for answer in annotation["answers"]]
            assert len(answers) == 10
            assert answers.count(annotation["multiple_choice_answer"]) >= 8
            assert set(answers) <= set(vocabulary)
    assert ids["minival2014"] + ids["valminusminival2014"] == ids["val2014"]
    assert ids["minival2014"]
    assert ids["valminusminival2014"]
    test, dev = (
        [q["question_id"] for q in read(folder / f"v2_OpenEnded_mscoco_{split}_questions.json")["questions"]]
        for split in ("test2015", "test-dev2015")
    )
    assert test[: len(dev)] == dev
    assert 0 < len(dev) < len(test)


def test_vqa_needs_the_picture(toy: Path) -> None:
    folder = toy / "coco" / "vqa"

    def load(split: str) -> list[tuple[str, Counter[str]]]:
        questions = read(folder / f"v2_OpenEnded_mscoco_{split}_questions.json")["questions"]
        annotations = read(folder / f"v2_mscoco_{split}_annotations.json")["annotations"]
        answers = [
            Counter(answer["answer"] for answer in annotation["answers"]) for annotation in annotations
        ]
        return [(question["question"], answer) for question, answer in zip(questions, answers, strict=True)]

    by_beginning: dict[str, Counter[str]] = {}
    for question, answers in load("train2014"):
        by_beginning.setdefault(" ".join(question.split()[:2]), Counter()).update(answers)
    scores = []
    for question, answers in load("val2014"):
        guess = by_beginning[" ".join(question.split()[:2])].most_common(1)[0][0]
        scores.append(min(1.0, answers[guess] / 3))
    assert np.mean(scores) < 0.45
    true = Counter(answers.most_common(1)[0][0] for _, answers in load("train2014"))
    assert max(true.values()) / true.total() < 0.3
    assert 0.8 < true["yes"] / true["no"] < 1.25


def test_vqa_features_tell_colours_apart(toy: Path) -> None:
    folder = toy / "coco" / "vgbua_res101_precomputed" / vqa.BOX_SETS["train2014"][0]
    samples: dict[str, list[np.ndarray]] = {colour: [] for colour in COLOURS}
    for number in range(40):
        picture = Picture(WORLD.seed, "train2014", number)
        regions = read(folder / f"{picture.image_id}.json")
        boxes, features = decode(regions["boxes"], 4), decode(regions["features"], FEATURES)
        for thing in picture.scene.things:
            nearest = np.abs(boxes - np.array(thing.box)).sum(axis=1).argmin()
            samples[thing.colour].append(features[nearest])
    means = np.stack([np.mean(samples[colour][::2], axis=0) for colour in COLOURS])
    held = [(i, row) for i, colour in enumerate(COLOURS) for row in samples[colour][1::2]]
    centred = means - means.mean(axis=0)
    right = [int((centred @ (row - means.mean(axis=0))).argmax()) == i for i, row in held]
    assert np.mean(right) > 0.95


# ---- RefCOCO+


def test_refcoco_expressions_fit_one_thing_of_the_picture(toy: Path) -> None:
    folder = toy / "coco" / "refcoco+"
    refs = pickle.loads((folder / "refs(unc).p").read_bytes())
    targets = {a["id"]: a for a in read(folder / "instances.json")["annotations"]}
    known = read(toy / "coco" / "annotations" / "instances_train2014.json")
    assert targets.items() <= {a["id"]: a for a in known["annotations"]}.items()
    sizes = {image["id"]: (image["width"], image["height"]) for image in known["images"]}
    categories = {category["id"]: category["name"] for category in known["categories"]}
    sentences: Counter[str] = Counter()
    for ref in refs:
        target = targets[ref["ann_id"]]
        assert (target["image_id"], target["category_id"]) == (ref["image_id"], ref["category_id"])
        x, y, w, h = target["bbox"]
        assert_inside([(x, y, x + w, y + h)], *sizes[ref["image_id"]])
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        sentences[ref["split"]] += len(ref["sentences"])
        if ref["split"].startswith("test"):
            assert (categories[ref["category_id"]] == "person") == (ref["split"] == "testA")
        scene = Picture(WORLD.seed, "train2014", ref["image_id"] - 1).scene
        for sentence in ref["sentences"]:
            assert sentence["tokens"] == sentence["sent"].split()
            fitting = [
                thing for thing in scene.things if sentence["sent"] in refcoco.expressions(scene, thing)
            ]
            assert [list(thing.box[:2]) for thing in fitting] == [[x, y]]
    assert sentences == {"train": 800, "val": 80, "testA": 40, "testB": 40}
    assert len({i for ref in refs for i in ref["sent_ids"]}) == sentences.total()


def test_refcoco_splits_share_no_picture_and_all_have_proposals(toy: Path) -> None:
    folder = toy / "coco" / "refcoco+"
    split_of: dict[int, set[str]] = {}
    for ref in pickle.loads((folder / "refs(unc).p").read_bytes()):
        split_of.setdefault(ref["image_id"], set()).add(ref["split"][:4])
        assert (toy / "coco" / "train2014" / f"COCO_train2014_{ref['image_id']:012d}.jpg").is_file()
    assert all(len(splits) == 1 for splits in split_of.values())
    detections = read(folder / "proposal" / "res101_coco_minus_refer_notime_dets.json")
    assert split_of.keys() <= {detection["image_id"] for detection in detections}
    assert all(0 < detection["score"] <= 1 and len(detection["box"]) == 4 for detection in detections)


# ---- pre-training


@pytest.mark.parametrize("split", ["train", "val"])
def test_conceptual_captions_point_to_pictures_and_regions(toy: Path, split: str) -> None:
    root = toy / "conceptual-captions"
    records = read_lines(root / f"{split}_frcnn.json")
    assert len(records) == WORLD.sizes[split]
    for image, frcnn in {(record["image"], record["frcnn"]) for record in records}:
        assert image.startswith(f"{split}_image.zip@/")
        with Image.open(root / image.replace(".zip@", "")) as picture:
            check_regions(root / frcnn.replace(".zip@", ""), *picture.size, classes=True)


def test_captions_name_everything_that_the_detector_found(toy: Path) -> None:
    root = toy / "conceptual-captions"
    nouns = [kind.noun for kind in KINDS]
    things: Counter[tuple[str, str]] = Counter()
    for record in read_lines(root / "train_frcnn.json"):
        said = record["caption"]
        named = {(said[i - 1], word) for i, word in enumerate(said) if word in nouns}
        scores = decode(read(root / record["frcnn"].replace(".zip@", ""))["classes"], CLASSES)
        known = {
            region_class(kind, colour): (name, noun)
            for kind, noun in enumerate(nouns)
            for colour, name in enumerate(COLOURS)
        }
        tops = set(scores.argmax(axis=1).tolist())
        assert {known[top] for top in tops - {0}} == named
        assert 0 in tops
        things.update((colour, noun) for colour, noun in itertools.pairwise(said) if noun in nouns)
    # Blind, a masked colour or kind is a guess: both are uniform, and independent of each other.
    colours, kinds = Counter[str](), Counter[str]()
    for (colour, noun), count in things.items():
        colours[colour] += count
        kinds[noun] += count
    assert set(colours) == set(COLOURS)
    assert max(colours.values()) / colours.total() < 0.22
    assert max(kinds.values()) / kinds.total() < 0.18
    for noun in nouns:
        assert max(things[colour, noun] for colour in COLOURS) / kinds[noun] < 0.3


def test_coco_captions_and_corpus(toy: Path) -> None:
    folder = toy / "coco" / "annotations"
    instances, captions = read(folder / "instances_val2017.json"), read(folder / "captions_val2017.json")
    images = {image["id"] for image in instances["images"]}
    assert {annotation["image_id"] for annotation in instances["annotations"]} == images
    assert {annotation["image_id"] for annotation in captions["annotations"]} == images
    assert all((toy / "coco" / "val2017" / image["file_name"]).is_file() for image in captions["images"])
    for name in ("wiki.doc", "bc1g.doc"):
        lines = (toy / "en_corpus" / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) == WORLD.train
        assert all(lines)


# ---- vocabulary


def test_vocabulary_has_every_word(toy: Path) -> None:
    tokens = (toy / "bert" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    ids = {token: i for i, token in enumerate(tokens)}
    assert len(ids) == len(tokens) == VOCAB_SIZE
    assert [ids[t] for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 100, 101, 102, 103]
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    texts = [line for file in (toy / "en_corpus").iterdir() for line in file.read_text().splitlines()]
    for record in read_lines(toy / "vcr" / "train.jsonl"):
        texts += [
            word(t) for t in [record["question"], *record["answer_choices"], *record["rationale_choices"]]
        ]
        texts += record["objects"]
    questions = read(toy / "coco" / "vqa" / "v2_OpenEnded_mscoco_train2014_questions.json")["questions"]
    texts += [question["question"] for question in questions]
    for ref in pickle.loads((toy / "coco" / "refcoco+" / "refs(unc).p").read_bytes()):
        texts += [sentence["raw"] for sentence in ref["sentences"]]
    texts += ["Casey Riley Jessie Jackie Avery Jaime Peyton Kerry Jody Kendall Frankie Pat Quinn"]
    pieces = {piece for text in set(texts) for piece in tokenizer.encode(text).tokens}
    continuations = {piece for piece in pieces if piece.startswith("##")}
    assert "[UNK]" not in pieces
    assert continuations == {"##brella", "##ball", "##ing", "##ure"}
    assert "[UNK]" not in tokenizer.encode("zyxw qvuts 0123456789, (anything)!").tokens


# ---- the folder


def test_same_seed_same_bytes_whatever_else_is_drawn(tmp_path: Path) -> None:
    make_toy_data.make_toy_data(tmp_path / "a", SMALL)
    make_toy_data.make_toy_data(tmp_path / "b", SMALL)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    make_toy_data.make_toy_data(tmp_path / "c", ToyWorld(("vcr", "vqa"), 9, 5, 3))
    one, other = digests(tmp_path / "a"), digests(tmp_path / "c")
    differing = {name for name in one.keys() & other.keys() if one[name] != other[name]}
    assert differing == {MANIFEST, "coco/annotations/instances_train2014.json"}  # pictures of RefCOCO+ only
    make_toy_data.make_toy_data(tmp_path / "d", ToyWorld(("vcr",), 9, 5, 3, seed=1))
    assert digests(tmp_path / "d")["vcr/train.jsonl"] != one["vcr/train.jsonl"]


def test_same_arguments_again_do_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "deep" / "toy"
    world = ToyWorld(("vcr",), 4, 4, 4)
    assert make_toy_data.make_toy_data(out, world)
    marker = out / "vcr" / "train.jsonl"
    marker.write_text("mine")
    with caplog.at_level("INFO"):
        assert not make_toy_data.make_toy_data(out, world)
    assert "nothing to do" in caplog.text
    assert marker.read_text() == "mine"
    assert make_toy_data.make_toy_data(out, ToyWorld(("vcr",), 5, 4, 4))
    assert len(read_lines(marker)) == 5
    assert [path.name for path in out.parent.iterdir()] == ["toy"]


def test_foreign_folders_and_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="did not write"):
        make_toy_data.make_toy_data(tmp_path, SMALL)
    with pytest.raises(UsageError, match="is a file"):
        make_toy_data.make_toy_data(tmp_path / "thesis.txt", SMALL)
    assert main(["--out", str(tmp_path), "--train", "4"]) == 2
    assert main(["--out", str(tmp_path / "new"), "--val", "0"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    out = tmp_path / "toy"
    make_toy_data.make_toy_data(out, ToyWorld(("vcr",), 4, 4, 4))
    before = digests(out)
    monkeypatch.setattr(make_toy_data, "write_vcr", fail)
    assert main(["--out", str(out), "--train", "5"]) == 1
    assert digests(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_command_line_from_anywhere_with_archives(tmp_path: Path) -> None:
    script = Path(make_toy_data.__file__)
    sizes = ["--train", "4", "--val", "2", "--test", "2"]
    done = subprocess.run(
        [sys.executable, str(script), "--out", "toy", *sizes, "--zip"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "wrote the toy world" in done.stderr
    toy = tmp_path / "toy"
    for folder, prefix in {
        "vcr/vcr1images": "vcr1images/",
        "coco/train2014": "train2014/",
        f"coco/vgbua_res101_precomputed/{vqa.BOX_SETS['val2014'][1]}": f"{vqa.BOX_SETS['val2014'][1]}/",
        "conceptual-captions/val_image": "",
        "conceptual-captions/train_frcnn": "",
    }.items():
        with zipfile.ZipFile(f"{toy / folder}.zip") as archive:
            inside = {name: archive.read(name) for name in archive.namelist()}
        files = [path for path in (toy / folder).rglob("*") if path.is_file()]
        assert inside == {
            prefix + path.relative_to(toy / folder).as_posix(): path.read_bytes() for path in files
        }
        for name, content in inside.items():
            if name.endswith(".jpg"):
                Image.open(io.BytesIO(content)).verify()
