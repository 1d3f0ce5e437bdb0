"""Answers to questions about the user's own images."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import vl_bert
from common.errors import CheckpointError, DataError, UsageError
from common.inference.queries import Query
from tests.vqa.world import World
from tests.world import WIDE_INIT
from vqa.predict import VQAPredictor

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train(WIDE_INIT) == 0
    return world


@pytest.fixture(scope="module")
def model(trained):
    return trained.loaded()


@pytest.fixture(scope="module")
def queries(trained):
    regions = trained.regions().parent
    return [
        Query(
            trained.data / f"val2014/COCO_val2014_{record['image_id']:012d}.jpg",
            record["question"],
            regions / f"{record['image_id']}.json",
        )
        for record in trained.records(trained.questions("val2014"))
    ]


@pytest.fixture
def predict(trained, queries):
    """Runs the command on the first image, with boxes unless told otherwise."""

    def predict(*flags: str, boxes: bool = True) -> int:
        query = queries[0]
        fixed = (*trained.model(), "--image", str(query.image), "--question", "what ?", "--device", "cpu")
        regions = ("--boxes", str(query.boxes)) if boxes else ()
        return trained.command("predict", *fixed, *regions, *flags)

    return predict


def test_predict_batch_matches_test_py(trained, model, queries):
    assert type(model) is VQAPredictor
    flags = (*trained.model(), "--split", "val2014", "--result-name", "x")
    assert trained.evaluate("test", *flags) == 0
    expected = json.loads((trained.out / "results/x_vqa2_val2014.json").read_text())
    predictions = model.predict_batch(queries)
    assert [answers[0].text for answers in predictions] == [record["answer"] for record in expected]
    assert len({record["answer"] for record in expected}) > 1


def test_predict_batch_matches_network(trained, model, queries):
    (_, outputs), *_ = trained.scored(trained.cfg, trained.checkpoint(), "val")
    vocabulary = model.task.vocabulary.answers
    for answers, logits in zip(model.predict_batch(queries[:2]), outputs.logits, strict=False):
        probabilities = [answer.probability for answer in answers]
        assert probabilities == sorted(probabilities, reverse=True)
        indices = [vocabulary.index(answer.text) for answer in answers]
        torch.testing.assert_close(torch.tensor(probabilities), logits.sigmoid()[indices])
        assert "<unk>" not in {answer.text for answer in answers}


def test_predict_returns_top_answers(model, queries):
    query = queries[0]
    best = model.predict(str(query.image), query.text, query.boxes, top=2)
    assert best == model.predict_batch([query])[0][:2]
    with Image.open(query.image) as image:
        assert model.predict(image, query.text, str(query.boxes), top=2) == best


@pytest.mark.parametrize("top", [0, -1, 1.5])
def test_predict_bad_top_raises(model, queries, top):
    with pytest.raises(UsageError, match=f"top: {top}: must be an integer of at least 1"):
        model.predict(queries[0].image, "what ?", queries[0].boxes, top=top)


def test_encode_states_and_maps(model, queries):
    encodings = model.encode_batch(queries[:3], attention=True)
    for query, encoding in zip(queries, encodings, strict=False):
        sequence = encoding.sequence
        assert sequence.tokens[0] == "[CLS]"
        assert sequence.tokens[-3:] == ("[SEP]", "[MASK]", "[SEP]")
        num_boxes = json.loads(query.boxes.read_text())["num_boxes"]
        assert sequence.labels == ("image", *(str(number) for number in range(1, num_boxes + 1)))
        assert encoding.text.shape == (len(sequence.tokens), 16)
        assert encoding.regions.shape == (num_boxes + 1, 16)
        maps = encoding.maps().maps
        length = len(sequence.names)
        assert maps.shape == (1, 4, length, length)
        assert abs(maps.sum(axis=3) - 1).max() < 1e-5
    alone = model.encode(queries[1].image, queries[1].text, queries[1].boxes)
    torch.testing.assert_close(alone.text, encodings[1].text)
    torch.testing.assert_close(alone.pooled, encodings[1].text[0])
    with pytest.raises(ValueError, match="attention=True"):
        alone.maps()


def test_command_prints_and_draws(predict, queries, tmp_path, capsys):
    path = tmp_path / "answer.png"
    assert predict("--top", "2", "--json", "--save", str(path)) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["question"] == "what ?"
    assert len(record["answers"]) == 2
    with Image.open(path) as saved, Image.open(queries[0].image) as image:
        assert saved.width >= image.width
        assert saved.height > image.height
    assert predict("--top", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("%")[1].strip() for line in lines] == [item["text"] for item in record["answers"]]


def test_command_logs_to_stderr(predict, capsys):
    """Warnings must not break the json on stdout."""
    assert predict("--json", "--fp16") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["question"] == "what ?"
    assert "bf16" in captured.err


@pytest.mark.parametrize("name", ["x.webp", "x.JPEG"])
def test_command_saves_in_format_of_suffix(predict, name, tmp_path):
    assert predict("--save", str(tmp_path / name)) == 0
    with Image.open(tmp_path / name) as saved:
        assert saved.format == name.partition(".")[2].upper()


def test_command_drawing_too_large_for_webp(predict, tmp_path, capsys):
    # A long word is a single token, but its many lines exceed the 16,383 pixels of WebP.
    assert predict("--question", "x" * 100_000, "--save", str(tmp_path / "x.webp")) == 1
    assert "x.webp: cannot be written (" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--image", "nowhere.jpg"), 1, "nowhere.jpg: "),
        (("--question", " "), 1, "its text is empty"),
        (("--question", "\u200b"), 1, "its text is empty"),
        (("--question", "red " * 5000), 1, "5004 tokens; the model takes "),
        (("--boxes", "nowhere.json"), 1, "nowhere.json: "),
        (("--ckpt", "nowhere.model"), 1, "nowhere.model: "),
        (("--cfg", "nowhere.yaml"), 2, "nowhere.yaml: cannot be read"),
        (("--device", "toaster"), 2, '--device: "toaster"'),
        (("--device", "mps"), 2, "--device: mps: use cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), 2, "--device: cuda:99: this machine has "),
        (("--save", "answer.psd"), 2, "--save: answer.psd: must end in .png, .jpg, .jpeg, .webp"),
        (("--save", "answer.gif", "--image", "nowhere.jpg"), 2, "--save: answer.gif: must end in .png"),
        (("--save", "nowhere/answer.png"), 2, "--save: nowhere/answer.png: "),
        (("--features", "nowhere.model"), 1, "nowhere.model: "),
        (("--detector", "fasterrcnn_resnet50_fpn_v2"), 2, "--detector"),
        (("--top", "0"), 2, "--top: 0: must be at least 1"),
    ],
)
def test_command_bad_flags(predict, flags, status, message, capsys):
    assert predict(*flags) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--image", "--boxes", "--ckpt", "--features", "--cfg"])
def test_command_does_not_overwrite_its_input(predict, queries, flag, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "x.jpg"
    target.write_bytes(queries[0].image.read_bytes())
    assert predict(flag, str(target), "--save", str(tmp_path / "folder/../x.jpg")) == 2
    assert "x.jpg: would overwrite" in capsys.readouterr().err
    assert target.read_bytes() == queries[0].image.read_bytes()


def test_command_needs_features(predict, tmp_path, capsys):
    (tmp_path / "none.json").write_text("[]")
    for flags in ((), ("--boxes", str(tmp_path / "none.json"))):
        assert predict(*flags, boxes=False) == 1
        captured = capsys.readouterr()
        assert "reads region features" in captured.err
        assert "a grid of" not in captured.out + captured.err
        assert "no regions" not in captured.out + captured.err


def test_command_checkpoint_of_other_model(predict, tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.model")
    assert predict("--ckpt", str(tmp_path / "other.model")) == 1
    assert "does not belong to the configured model" in capsys.readouterr().err


class FakeExtractor:
    """Returns constant features."""

    feature_dim = 2048

    def __init__(self, image_feature: float = 1.0) -> None:
        self.image_feature = image_feature

    def __call__(self, images, boxes):
        return [(torch.ones(len(own), 2048), torch.full((2048,), self.image_feature)) for own in boxes]


def with_extractor(model: VQAPredictor, extractor: FakeExtractor) -> VQAPredictor:
    return VQAPredictor(
        model.task, model.model, device=model.device, precision=model.precision, extractor=extractor
    )


def test_extractor_computes_missing_features(model, queries):
    first, second = (
        with_extractor(model, FakeExtractor(value)).encode(
            queries[0].image, queries[0].text, [[1, 1, 20, 20]]
        )
        for value in (1.0, -3.0)
    )
    assert first.sequence == second.sequence
    # Every text token carries the feature of the whole image.
    assert not torch.allclose(first.text, second.text)


def test_extractor_of_wrong_width_raises(model):
    extractor = FakeExtractor()
    extractor.feature_dim = 512
    with pytest.raises(CheckpointError, match="computes 512 features per region; the model reads 2048"):
        with_extractor(model, extractor)


def test_images_in_memory_are_numbered(model, queries):
    with Image.open(queries[0].image) as opened:
        image = opened.copy()
    many = [Query(image, queries[0].text, queries[0].boxes)] * 18
    encodings = model.encode_batch(many)
    assert [item.sequence.image_id for item in encodings] == [f"image {number}" for number in range(1, 19)]
    assert {item.sequence.image for item in encodings} == {""}
    with pytest.raises(DataError, match=r"^image 17: its text is empty"):
        model.encode_batch([*many[:16], Query(image, " ", queries[0].boxes)])


def test_name_selects_region_file(model, queries, tmp_path):
    query = queries[0]
    (tmp_path / f"{query.image.stem}.json").write_bytes(query.boxes.read_bytes())
    with Image.open(query.image) as opened:
        encodings = model.encode_batch(
            [
                Query(opened, query.text, tmp_path),
                Query(np.asarray(opened.convert("RGB")), query.text, tmp_path, query.image.name),
            ]
        )
    assert [item.sequence.image for item in encodings] == [str(query.image), ""]
    assert [item.sequence.image_id for item in encodings] == [query.image.stem, f"{query.image.stem}-2"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, r"\.jpg: its text is of type NoneType; expected str"),
        ({"text": 3}, r"\.jpg: its text is of type int; expected str"),
        ({"boxes": 3}, r"the boxes of .*\.jpg: holds a int; expected a list of boxes"),
        ({"image": b"\xff\xd8"}, "of type bytes; expected a path"),
        ({"image": torch.zeros(3, 4, 4)}, "of type Tensor; expected a path"),
        ({"image": "a\0b"}, "'a.x00b': no path can hold a NUL character"),
    ],
)
def test_bad_query_raises(model, queries, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        model.predict_batch([dataclasses.replace(queries[0], **changes)])
    assert "damaged" not in str(caught.value)


def test_load_resolved_config_needs_no_overrides(trained, model, queries):
    other = vl_bert.load(trained.checkpoint().with_name("resolved.yaml"), trained.checkpoint(), "cpu")
    assert other.predict_batch(queries[:1]) == model.predict_batch(queries[:1])
