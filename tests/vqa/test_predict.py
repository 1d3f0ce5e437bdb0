"""Answers to questions about pictures of one's own."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import vl_bert
from common.cli import predict as predict_main
from common.errors import CheckpointError, DataError, UsageError
from common.inference.queries import Query
from tests.vqa.world import World
from tests.world import WIDE_INIT
from vqa.predict import VQAPredictor


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


def test_answers_are_those_of_test_py(trained, model, queries):
    flags = (*trained.model(), "--split", "val2014", "--result-name", "x")
    assert trained.evaluate("test", *flags) == 0
    expected = json.loads((trained.out / "results/x_vqa2_val2014.json").read_text())
    found = model.predict_batch(queries)
    assert [answers[0].text for answers in found] == [record["answer"] for record in expected]
    assert len({record["answer"] for record in expected}) > 1


def test_probabilities_are_those_of_the_network(trained, model, queries):
    (_, outputs), *_ = trained.scored(trained.cfg, trained.checkpoint(), "val")
    answers = model.predict_batch(queries[:2])
    vocabulary = model.task.vocabulary.answers
    for row, found in enumerate(answers):
        shares = outputs.logits[row].sigmoid()
        assert [answer.probability for answer in found] == sorted(
            (answer.probability for answer in found), reverse=True
        )
        for answer in found:
            torch.testing.assert_close(answer.probability, float(shares[vocabulary.index(answer.text)]))
    assert "<unk>" not in {answer.text for answer in answers[0]}


def test_one_answer(model, queries):
    query = queries[0]
    best = model.predict(str(query.image), query.text, query.boxes, top=2)
    assert best == model.predict_batch([query])[0][:2]
    with Image.open(query.image) as picture:
        assert model.predict(picture, query.text, str(query.boxes), top=2) == best


def test_states_and_maps(model, queries):
    found = model.encode_batch(queries[:3], attention=True)
    for query, encoding in zip(queries, found, strict=False):
        places = encoding.places
        assert places.tokens[0] == "[CLS]"
        assert places.tokens[-3:] == ("[SEP]", "[MASK]", "[SEP]")
        assert places.labels[0] == "image"
        count = json.loads(query.boxes.read_text())["num_boxes"]
        assert places.labels[1:] == tuple(str(number) for number in range(1, count + 1))
        assert encoding.text.shape == (len(places.tokens), 16)
        assert encoding.regions.shape == (count + 1, 16)
        maps = encoding.maps().maps
        side = len(places.names)
        assert maps.shape == (1, 4, side, side)
        assert abs(maps.sum(axis=3) - 1).max() < 1e-5
    # What stands beside it in a batch does not matter.
    alone = model.encode(queries[1].image, queries[1].text, queries[1].boxes)
    torch.testing.assert_close(alone.text, found[1].text)
    torch.testing.assert_close(alone.pooled, found[1].text[0])
    with pytest.raises(ValueError, match="attention=True"):
        alone.maps()


def test_the_command(trained, queries, tmp_path, capsys):
    query = queries[0]
    flags = (
        *(
            *trained.model(),
            "--image",
            str(query.image),
            "--question",
            query.text,
            "--boxes",
            str(query.boxes),
        ),
        *("--device", "cpu", "--top", "2"),
    )
    assert trained.command("predict", *flags, "--json", "--save", str(tmp_path / "answer.png")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["question"] == query.text
    assert len(shown["answers"]) == 2
    with Image.open(tmp_path / "answer.png") as saved, Image.open(query.image) as picture:
        assert saved.width >= picture.width
        assert saved.height > picture.height
    assert trained.command("predict", *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("%")[1].strip() for line in lines] == [one["text"] for one in shown["answers"]]


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--image", "nowhere.jpg"), 1, "nowhere.jpg: "),
        (("--question", " "), 1, "its text is empty"),
        (("--question", "red " * 5000), 1, "5004 tokens; the model takes "),
        (("--boxes", "nowhere.json"), 1, "nowhere.json: "),
        (("--ckpt", "nowhere.model"), 1, "nowhere.model: "),
        (("--cfg", "nowhere.yaml"), 2, "nowhere.yaml: cannot be read"),
        (("--device", "toaster"), 2, '--device: "toaster"'),
        (("--device", "mps"), 2, "--device: mps: use cpu, cuda or cuda:N"),
        (("--question", "\u200b"), 1, "its text is empty"),
        (("--save", "answer.psd"), 2, "--save: answer.psd: must end in .png, .jpg, .jpeg, .webp"),
        (("--device", "cuda:99"), 2, "--device: cuda:99: this machine has "),
        (("--save", "answer.gif", "--image", "nowhere.jpg"), 2, "--save: answer.gif: must end in .png"),
        (("--save", "nowhere/answer.png"), 2, "no such directory: nowhere"),
        (("--features", "nowhere.model"), 1, "nowhere.model: "),
        (("--detector", "fasterrcnn_resnet50_fpn_v2"), 2, "--detector"),
        (("--top", "0"), 2, "--top: 0: must be at least 1"),
    ],
)
def test_mistakes(trained, queries, flags, status, message, capsys):
    query = queries[0]
    given = (*trained.model(), "--image", str(query.image), "--question", "what ?", "--device", "cpu")
    assert trained.command("predict", *given, "--boxes", str(query.boxes), *flags) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--image", "--boxes", "--ckpt", "--features", "--cfg"])
def test_what_the_answer_is_made_from_is_not_overwritten(trained, queries, flag, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "x.jpg"
    target.write_bytes(queries[0].image.read_bytes())
    given = (*trained.model(), "--image", str(queries[0].image), "--question", "what ?", flag, str(target))
    assert trained.command("predict", *given, "--save", str(tmp_path / "folder/../x.jpg")) == 2
    assert "x.jpg: would overwrite an input; name another file" in capsys.readouterr().err
    assert target.read_bytes() == queries[0].image.read_bytes()


@pytest.mark.parametrize("name", ["x.webp", "x.JPEG"])
def test_a_picture_is_written_in_the_format_of_its_name(trained, queries, name, tmp_path):
    query = queries[0]
    given = (
        *trained.model(),
        "--image",
        str(query.image),
        "--question",
        "what ?",
        "--boxes",
        str(query.boxes),
    )
    assert trained.command("predict", *given, "--device", "cpu", "--save", str(tmp_path / name)) == 0
    with Image.open(tmp_path / name) as saved:
        assert saved.format == name.partition(".")[2].upper()
    (tmp_path / "folder.png").mkdir()
    assert trained.command("predict", *given, "--save", str(tmp_path / "folder.png")) == 2


def test_a_format_that_is_too_small_for_the_picture(tmp_path):
    with pytest.raises(DataError, match=r"x\.webp: cannot be written \(.*limit"):
        predict_main._save(Image.new("RGB", (20_000, 2)), tmp_path / "x.webp")
    assert not list(tmp_path.iterdir())


def test_features_are_needed(trained, queries, tmp_path, capsys):
    query = queries[0]
    given = (*trained.model(), "--image", str(query.image), "--question", "what ?", "--device", "cpu")
    assert trained.command("predict", *given) == 1
    captured = capsys.readouterr()
    assert "reads region features" in captured.err
    assert "a grid of" not in captured.out + captured.err
    (tmp_path / "none.json").write_text("[]")
    assert trained.command("predict", *given, "--boxes", str(tmp_path / "none.json")) == 1
    captured = capsys.readouterr()
    assert "reads region features" in captured.err
    assert "has no regions" not in captured.out + captured.err


def test_a_checkpoint_of_another_model(trained, queries, tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.model")
    given = ("--image", str(queries[0].image), "--question", "what ?", "--device", "cpu")
    assert trained.command("predict", *trained.model(tmp_path / "other.model"), *given) == 1
    assert "does not belong to the configured model" in capsys.readouterr().err


class FakeExtractor:
    """Features that a test knows."""

    feature_dim = 2048

    def __init__(self, whole: float) -> None:
        self.whole = whole

    def __call__(self, images, boxes):
        return [(torch.ones(len(own), 2048), torch.full((2048,), self.whole)) for own in boxes]


def test_computed_features_are_used(trained, model, queries):
    query = Query(queries[0].image, queries[0].text, [[1, 1, 20, 20]])
    found = []
    for whole in (1.0, -3.0):
        model.extractor = FakeExtractor(whole)
        found.append(model.encode(query.image, query.text, query.boxes))
    model.extractor = None
    assert found[0].places == found[1].places
    assert not torch.allclose(
        found[0].text, found[1].text
    )  # every word carries the feature of the whole image


def test_features_of_another_width(trained, model):
    extractor = FakeExtractor(1.0)
    extractor.feature_dim = 512
    with pytest.raises(CheckpointError, match="computes 512 numbers for a region; the model reads 2048"):
        VQAPredictor(
            model.task, model.model, device=model.device, precision=model.precision, extractor=extractor
        )


def test_pictures_in_memory_have_numbers_as_names(model, queries):
    with Image.open(queries[0].image) as opened:
        picture = opened.copy()
    many = [Query(picture, queries[0].text, queries[0].boxes)] * 18
    found = model.encode_batch(many)
    assert [one.places.image_id for one in found] == [f"picture {number}" for number in range(1, 19)]
    assert {one.places.image for one in found} == {""}
    with pytest.raises(DataError, match=r"^picture 17: its text is empty"):
        model.encode_batch([*many[:16], Query(picture, " ", queries[0].boxes)])


def test_names_of_pictures_in_memory(model, queries, tmp_path):
    query = queries[0]
    with Image.open(query.image) as opened:
        given = [
            Query(opened, query.text, tmp_path),
            Query(np.asarray(opened.convert("RGB")), query.text, tmp_path, query.image.name),
        ]
        # A folder of region files, by the name of the picture.
        (tmp_path / f"{query.image.stem}.json").write_bytes(query.boxes.read_bytes())
        found = model.encode_batch(given)
    assert [one.places.image for one in found] == [str(query.image), ""]
    assert [one.places.image_id for one in found] == [query.image.stem, f"{query.image.stem}-2"]


def test_two_texts_on_one_picture_have_files_of_their_own(model, queries, tmp_path):
    query = queries[0]
    for found in model.encode_batch([query, dataclasses.replace(query, text="what ?")], attention=True):
        found.maps().save(tmp_path)
    names = [query.image.stem, f"{query.image.stem}-2"]
    assert sorted(path.stem for path in tmp_path.glob("*.npy")) == names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, r"\.jpg: its text is of type NoneType; expected str"),
        ({"text": 3}, r"\.jpg: its text is of type int; expected str"),
        ({"boxes": 3}, r"the boxes of .*\.jpg: holds a int; expected a list of boxes"),
        ({"image": b"\xff\xd8"}, "an image of type bytes; expected a path, a Pillow picture"),
        ({"image": torch.zeros(3, 4, 4)}, "an image of type Tensor; expected a path"),
        ({"image": "a\0b"}, "'a.x00b': no path can hold a NUL character"),
    ],
)
def test_wrong_types(model, queries, changes, message):
    with pytest.raises(DataError, match=message) as caught:
        model.predict_batch([dataclasses.replace(queries[0], **changes)])
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("top", [0, -1, 1.5])
def test_no_number_of_answers(model, queries, top):
    with pytest.raises(UsageError, match=f"top: {top}: must be a whole number of at least 1"):
        model.predict(queries[0].image, "what ?", queries[0].boxes, top=top)


def test_the_log_does_not_stand_in_the_answer(trained, queries, capsys):
    """A detector's or grid's warning must not spoil json that a program reads."""
    query = queries[0]
    given = (
        "--image",
        str(query.image),
        "--question",
        query.text,
        "--boxes",
        str(query.boxes),
        "--device",
        "cpu",
    )
    assert trained.command("predict", *trained.model(), *given, "--json", "--fp16") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["question"] == query.text
    assert "bf16" in captured.err


def test_the_resolved_configuration_needs_no_settings(trained, model, queries):
    other = vl_bert.load(trained.checkpoint().with_name("resolved.yaml"), trained.checkpoint(), "cpu")
    assert other.predict_batch(queries[:1]) == model.predict_batch(queries[:1])


def test_load_finds_the_task(trained, model):
    assert type(model) is VQAPredictor
    assert vl_bert.read_config(trained.cfg, trained.overrides()).DATASET.DATASET == "vqa"
