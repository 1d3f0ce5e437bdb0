import base64
import hashlib
import itertools
import json
import pickle
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from scripts import make_toy_data
from scripts.make_toy_data import MANIFEST, ToyWorld, main
from scripts.toy import refcoco, vqa
from scripts.toy.coco import CocoImage
from scripts.toy.regions import CLASSES, FEATURES, region_class
from scripts.toy.vocabulary import VOCAB_SIZE
from scripts.toy.world import CATEGORIES, COLORS

pytestmark = pytest.mark.integration

WORLD = ToyWorld(train=800, val=80, test=40)
SMALL = ToyWorld(train=9, val=5, test=3)
VCR_ONLY = ToyWorld(("vcr",), 4, 4, 4)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("world") / "toy"
    assert make_toy_data.make_toy_data(root, WORLD)
    return root


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def decode(text, columns):
    return np.frombuffer(base64.b64decode(text), dtype="<f4").reshape(-1, columns)


def digests(root):
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_inside(boxes, width, height):
    boxes = np.asarray(boxes, dtype=np.float64)[:, :4]
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= (width - 1, height - 1)).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 16).all()


def check_regions(path, size, classes=False):
    """Checks a region file; returns its number of regions."""
    regions = read(path)
    assert (regions["image_w"], regions["image_h"]) == size
    boxes = decode(regions["boxes"], 4)
    assert len(boxes) == len(decode(regions["features"], FEATURES)) == regions["num_boxes"]
    assert_inside(boxes, *size)
    assert ("classes" in regions) == classes
    if classes:
        scores = decode(regions["classes"], CLASSES)
        assert len(scores) == len(boxes)
        assert (scores.sum(axis=1) == 1).all()
        assert (scores.max(axis=1) > 0.5).all()
    return len(boxes)


# VCR


def correct_choice(record, kind):
    return record[f"{kind}_choices"][record[f"{kind}_label"]]


def words(tokens):
    return " ".join(token for token in tokens if isinstance(token, str))


def subject(tokens):
    return next(token[0] for token in tokens if isinstance(token, list))


def color_in(tokens):
    return next((token for token in tokens if isinstance(token, str) and token in COLORS), None)


def main_color(pixels, box):
    """The color that is closest to most pixels of a box."""
    x1, y1, x2, y2 = (int(v) for v in box[:4])
    inside = pixels[y1:y2, x1:x2].reshape(-1, 1, 3).astype(float)
    near = np.abs(inside - np.array(list(COLORS.values()))).max(axis=2) < 30
    return list(COLORS)[int(near.sum(axis=0).argmax())]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_vcr_records_match_their_images(toy, split):
    records = read_lines(toy / "vcr" / f"{split}.jsonl")
    assert len(records) == len({record["annot_id"] for record in records}) == WORLD.sizes[split]
    for record in records:
        objects = record["objects"]
        assert ("answer_label" in record, "rationale_label" in record) == (split != "test",) * 2
        for choices in (record["answer_choices"], record["rationale_choices"]):
            assert len({json.dumps(choice) for choice in choices}) == len(choices) == 4
            assert len({len(choice) for choice in choices if "wears" in choice or "because" in choice}) <= 1
        for tokens in [record["question"], *record["answer_choices"], *record["rationale_choices"]]:
            assert all(0 <= i < len(objects) for token in tokens if isinstance(token, list) for i in token)
        metadata = read(toy / "vcr" / "vcr1images" / record["metadata_fn"])
        with Image.open(toy / "vcr" / "vcr1images" / record["img_fn"]) as image:
            assert image.size == (metadata["width"], metadata["height"])
        assert metadata["names"] == objects
        assert_inside(metadata["boxes"], metadata["width"], metadata["height"])
        for box, polygons, _ in zip(metadata["boxes"], metadata["segms"], objects, strict=True):
            corners = np.array(polygons[0])
            assert np.abs([*corners.min(axis=0), *corners.max(axis=0)] - np.array(box[:4])).max() < 2.5
            assert 0 < box[4] <= 1


def test_vcr_images_contain_the_answers(toy):
    correct, total = Counter(), Counter()
    for record in read_lines(toy / "vcr" / "val.jsonl"):
        boxes = read(toy / "vcr" / "vcr1images" / record["metadata_fn"])["boxes"]
        with Image.open(toy / "vcr" / "vcr1images" / record["img_fn"]) as image:
            pixels = np.asarray(image)
        for kind in ("answer", "rationale"):
            choice = correct_choice(record, kind)
            index = subject(choice)
            if color := color_in(choice):
                total[kind] += 1
                correct[kind] += main_color(pixels, boxes[index]) == color
            else:
                (x1, y1, x2, y2, _), other = boxes[index], boxes[choice[-2][0]]
                relations = {"left of": x2 < other[0] + 3, "right of": x1 > other[2] - 3}
                relations |= {"above": y2 < other[1] + 3, "below": y1 > other[3] - 3}
                assert relations[words(choice[:-1]).removeprefix("is ")]
    assert total["answer"] > 60
    assert all(correct[kind] / total[kind] > 0.97 for kind in total)


def test_vcr_texts_do_not_reveal_the_answer(toy):
    records = read_lines(toy / "vcr" / "train.jsonl")
    for kind in ("answer", "rationale"):
        assert set(Counter(record[f"{kind}_label"] for record in records).values()) == {len(records) // 4}
        endings = Counter(words(correct_choice(record, kind)[-3:]) for record in records)
        assert max(endings.values()) / len(records) < 0.3
        by_category = defaultdict(Counter)
        for record in records:
            choice = correct_choice(record, kind)
            if color := color_in(choice):
                by_category[record["objects"][subject(choice)]][color] += 1
        assert all(max(colors.values()) / colors.total() < 0.35 for colors in by_category.values())
    # Rationales that repeat the color of the answer are neither more nor less often correct.
    offered = copied = 0
    for record in records:
        color = color_in(correct_choice(record, "answer"))
        rationale_colors = [color_in(choice) for choice in record["rationale_choices"]]
        if color in rationale_colors:
            offered += 1
            copied += rationale_colors.index(color) == record["rationale_label"]
    assert offered > 300
    assert 0.18 < copied / offered < 0.32


# VQA


def load_vqa(toy, split):
    """Pairs of question and annotation; the test splits have no annotations."""
    folder = toy / "coco" / "vqa"
    questions = read(folder / f"v2_OpenEnded_mscoco_{split}_questions.json")["questions"]
    if split.startswith("test"):
        return [(question, {}) for question in questions]
    return list(
        zip(questions, read(folder / f"v2_mscoco_{split}_annotations.json")["annotations"], strict=True)
    )


def answers_of(annotation):
    return Counter(answer["answer"] for answer in annotation["answers"])


@pytest.mark.parametrize("image_set", ["train2014", "val2014", "test2015"])
def test_vqa_questions_have_images_and_regions(toy, image_set):
    coco = toy / "coco"
    annotation_file = "image_info_test2015" if image_set == "test2015" else f"instances_{image_set}"
    images = {
        image["id"]: image for image in read(coco / "annotations" / f"{annotation_file}.json")["images"]
    }
    questions = [question for question, _ in load_vqa(toy, image_set)]
    split = {"train2014": "train", "val2014": "val", "test2015": "test"}[image_set]
    assert len(questions) == WORLD.sizes[split] * (vqa.TRAIN_FACTOR if split == "train" else 1)
    assert len({question["question_id"] for question in questions}) == len(questions)
    for image_id in {question["image_id"] for question in questions}:
        size = images[image_id]["width"], images[image_id]["height"]
        with Image.open(coco / image_set / f"COCO_{image_set}_{image_id:012d}.jpg") as image:
            assert image.size == size
        adaptive, fixed = (coco / "vgbua_res101_precomputed" / name for name in vqa.BOX_SETS[image_set])
        check_regions(adaptive / f"{image_id}.json", size)
        assert check_regions(fixed / f"{image_id}.json", size) == vqa.REGIONS_36


def test_vqa_annotations_match_questions_and_vocabulary(toy):
    vocabulary = (toy / "coco/vqa/answers_vqa.txt").read_text(encoding="utf-8").splitlines()
    assert vocabulary == list(vqa.ANSWERS)
    assert len(set(vocabulary)) == len(vocabulary)
    ids = {}
    splits = ("train2014", "val2014", "minival2014", "valminusminival2014", "test2015", "test-dev2015")
    for split in splits:
        ids[split] = [question["question_id"] for question, _ in load_vqa(toy, split)]
        assert ids[split]
        for question, annotation in load_vqa(toy, split):
            if annotation:
                answers = answers_of(annotation)
                assert question["question_id"] == annotation["question_id"]
                assert answers.total() == 10
                assert answers[annotation["multiple_choice_answer"]] >= 8
                assert set(answers) <= set(vocabulary)
    assert ids["minival2014"] + ids["valminusminival2014"] == ids["val2014"]
    assert ids["test2015"][: len(ids["test-dev2015"])] == ids["test-dev2015"] != ids["test2015"]


def test_vqa_questions_do_not_reveal_the_answer(toy):
    def opening(question):
        return " ".join(question["question"].split()[:2])

    by_opening, correct = defaultdict(Counter), Counter()
    for question, annotation in load_vqa(toy, "train2014"):
        by_opening[opening(question)].update(answers_of(annotation))
        correct[answers_of(annotation).most_common(1)[0][0]] += 1
    scores = [
        min(1.0, answers_of(annotation)[by_opening[opening(question)].most_common(1)[0][0]] / 3)
        for question, annotation in load_vqa(toy, "val2014")
    ]
    assert np.mean(scores) < 0.45
    assert max(correct.values()) / correct.total() < 0.3
    assert 0.8 < correct["yes"] / correct["no"] < 1.25


def test_vqa_features_separate_colors(toy):
    folder = toy / "coco" / "vgbua_res101_precomputed" / vqa.BOX_SETS["train2014"][0]
    samples = {color: [] for color in COLORS}
    for index in range(40):
        image = CocoImage(WORLD.seed, "train2014", index)
        regions = read(folder / f"{image.image_id}.json")
        boxes, features = decode(regions["boxes"], 4), decode(regions["features"], FEATURES)
        for scene_object in image.scene.objects:
            nearest = np.abs(boxes - np.array(scene_object.box)).sum(axis=1).argmin()
            samples[scene_object.color].append(features[nearest])
    means = np.stack([np.mean(samples[color][::2], axis=0) for color in COLORS])
    center = means.mean(axis=0)
    correct = [
        int(((means - center) @ (row - center)).argmax()) == i
        for i, color in enumerate(COLORS)
        for row in samples[color][1::2]
    ]
    assert np.mean(correct) > 0.95


# RefCOCO+


def test_refcoco_expressions_fit_one_object_of_the_image(toy):
    folder = toy / "coco" / "refcoco+"
    targets = {a["id"]: a for a in read(folder / "instances.json")["annotations"]}
    coco = read(toy / "coco" / "annotations" / "instances_train2014.json")
    assert targets.items() <= {a["id"]: a for a in coco["annotations"]}.items()
    images = {image["id"]: image for image in coco["images"]}
    categories = {category["id"]: category["name"] for category in coco["categories"]}
    sentence_ids, splits = defaultdict(list), defaultdict(set)
    for ref in pickle.loads((folder / "refs(unc).p").read_bytes()):
        target, image = targets[ref["ann_id"]], images[ref["image_id"]]
        assert (target["image_id"], target["category_id"]) == (ref["image_id"], ref["category_id"])
        assert (toy / "coco" / "train2014" / image["file_name"]).is_file()
        x, y, w, h = target["bbox"]
        assert_inside([(x, y, x + w, y + h)], image["width"], image["height"])
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        sentence_ids[ref["split"]] += ref["sent_ids"]
        splits[ref["image_id"]].add(ref["split"][:4])
        if ref["split"].startswith("test"):
            assert (categories[ref["category_id"]] == "person") == (ref["split"] == "testA")
        scene = CocoImage(WORLD.seed, "train2014", ref["image_id"] - 1).scene
        for sentence in ref["sentences"]:
            assert sentence["tokens"] == sentence["sent"].split()
            fitting = [each for each in scene.objects if sentence["sent"] in refcoco.expressions(scene, each)]
            assert [list(each.box[:2]) for each in fitting] == [[x, y]]
    counts = {split: len(ids) for split, ids in sentence_ids.items()}
    assert counts == {"train": 800, "val": 80, "testA": 40, "testB": 40}
    assert len(set().union(*sentence_ids.values())) == sum(counts.values())
    assert all(len(names) == 1 for names in splits.values())  # no image is in two of train, val and test
    detections = read(folder / "proposal" / "res101_coco_minus_refer_notime_dets.json")
    assert splits.keys() <= {detection["image_id"] for detection in detections}
    assert all(0 < detection["score"] <= 1 and len(detection["box"]) == 4 for detection in detections)


# Pre-training


@pytest.mark.parametrize("split", ["train", "val"])
def test_conceptual_captions_match_images_and_regions(toy, split):
    root = toy / "conceptual-captions"
    records = read_lines(root / f"{split}_frcnn.json")
    assert len(records) == WORLD.sizes[split]
    for image_path, region_path in {(record["image"], record["frcnn"]) for record in records}:
        assert image_path.startswith(f"{split}_image.zip@/")
        with Image.open(root / image_path.replace(".zip@", "")) as image:
            check_regions(root / region_path.replace(".zip@", ""), image.size, classes=True)


def test_captions_name_every_detected_object(toy):
    root = toy / "conceptual-captions"
    nouns = [category.noun for category in CATEGORIES]
    names = {
        region_class(i, j): (color, noun) for i, noun in enumerate(nouns) for j, color in enumerate(COLORS)
    }
    pairs = Counter()
    for record in read_lines(root / "train_frcnn.json"):
        in_caption = [pair for pair in itertools.pairwise(record["caption"]) if pair[1] in nouns]
        scores = decode(read(root / record["frcnn"].replace(".zip@", ""))["classes"], CLASSES)
        classes = set(scores.argmax(axis=1).tolist())
        assert {names[each] for each in classes - {0}} == set(in_caption)
        assert 0 in classes
        pairs.update(in_caption)
    # Without the image, a masked color or noun can only be guessed: both are uniform, and independent.
    colors, categories = Counter(), Counter()
    for (color, noun), count in pairs.items():
        colors[color] += count
        categories[noun] += count
    assert set(colors) == set(COLORS)
    assert max(colors.values()) / colors.total() < 0.22
    assert max(categories.values()) / categories.total() < 0.18
    assert all(max(pairs[color, noun] for color in COLORS) / categories[noun] < 0.3 for noun in nouns)


def test_coco_captions_and_corpus_are_complete(toy):
    folder = toy / "coco" / "annotations"
    instances, captions = read(folder / "instances_val2017.json"), read(folder / "captions_val2017.json")
    images = {image["id"] for image in instances["images"]}
    for file in (instances, captions):
        assert {annotation["image_id"] for annotation in file["annotations"]} == images
    assert all((toy / "coco" / "val2017" / image["file_name"]).is_file() for image in captions["images"])
    for name in ("wiki.doc", "bc1g.doc"):
        lines = (toy / "en_corpus" / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) == WORLD.train
        assert all(lines)


def test_vocabulary_covers_all_texts(toy):
    tokens = (toy / "bert" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    ids = {token: i for i, token in enumerate(tokens)}
    assert len(ids) == len(tokens) == VOCAB_SIZE
    assert [ids[t] for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 100, 101, 102, 103]
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    texts = [line for file in (toy / "en_corpus").iterdir() for line in file.read_text().splitlines()]
    for record in read_lines(toy / "vcr" / "train.jsonl"):
        texts += map(words, [record["question"], *record["answer_choices"], *record["rationale_choices"]])
        texts += record["objects"]
    texts += [question["question"] for question, _ in load_vqa(toy, "train2014")]
    for ref in pickle.loads((toy / "coco" / "refcoco+" / "refs(unc).p").read_bytes()):
        texts += [sentence["raw"] for sentence in ref["sentences"]]
    texts += ["Casey Riley Jessie Jackie Avery Jaime Peyton Kerry Jody Kendall Frankie Pat Quinn"]
    pieces = {piece for text in set(texts) for piece in tokenizer.encode(text).tokens}
    assert "[UNK]" not in pieces
    assert {piece for piece in pieces if piece.startswith("##")} == {"##brella", "##ball", "##ing", "##ure"}
    assert "[UNK]" not in tokenizer.encode("zyxw qvuts 0123456789, (anything)!").tokens


# The output folder


def test_make_toy_data_is_reproducible_and_tasks_are_independent(tmp_path):
    worlds = {
        "a": SMALL,
        "b": SMALL,
        "two tasks": ToyWorld(("vcr", "vqa"), 9, 5, 3),
        "other seed": ToyWorld(("vcr",), 9, 5, 3, seed=1),
    }
    for name, world in worlds.items():
        make_toy_data.make_toy_data(tmp_path / name, world)
    a, two_tasks = digests(tmp_path / "a"), digests(tmp_path / "two tasks")
    assert a == digests(tmp_path / "b")
    differing = {name for name in a.keys() & two_tasks.keys() if a[name] != two_tasks[name]}
    assert differing == {MANIFEST, "coco/annotations/instances_train2014.json"}  # lists images of RefCOCO+
    assert digests(tmp_path / "other seed")["vcr/train.jsonl"] != a["vcr/train.jsonl"]


def test_make_toy_data_writes_only_if_arguments_changed(tmp_path, monkeypatch, caplog):
    out = tmp_path / "deep" / "toy"
    assert make_toy_data.make_toy_data(out, VCR_ONLY)
    path = out / "vcr" / "train.jsonl"
    path.write_text("edited")
    before = digests(out)
    with caplog.at_level("INFO"):
        assert not make_toy_data.make_toy_data(out, VCR_ONLY)
    assert "nothing to do" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(make_toy_data, "write_vcr", lambda *_: Path("/nowhere/file").write_text(""))
        assert main(["--out", str(out), "--train", "5"]) == 1
    assert digests(out) == before
    assert make_toy_data.make_toy_data(out, ToyWorld(("vcr",), 5, 4, 4))
    assert len(read_lines(path)) == 5
    assert [path.name for path in out.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "."], "did not write"),
        (["--out", "thesis.txt"], "is a file"),
        (["--out", "new", "--val", "0"], "--val 0: must be at least 1"),
    ],
)
def test_make_toy_data_rejects_bad_arguments_and_keeps_other_files(
    tmp_path, monkeypatch, caplog, flags, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(flags) == 2
    assert message in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_command_line_writes_archives_from_any_directory(tmp_path):
    sizes = ["--train", "4", "--val", "2", "--test", "2"]
    command = [sys.executable, make_toy_data.__file__, "--out", "toy", *sizes, "--zip"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "wrote the toy world" in done.stderr
    regions = f"coco/vgbua_res101_precomputed/{vqa.BOX_SETS['val2014'][1]}"
    with_folder = ("vcr/vcr1images", "coco/train2014", regions)
    for name in (*with_folder, "conceptual-captions/val_image", "conceptual-captions/train_frcnn"):
        folder = tmp_path / "toy" / name
        parent = folder.parent if name in with_folder else folder
        with zipfile.ZipFile(f"{folder}.zip") as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert members == {path.relative_to(parent).as_posix(): path.read_bytes() for path in files}
