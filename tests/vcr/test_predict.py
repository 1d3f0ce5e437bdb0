"""Answer and rationale choice on the user's own images."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import vl_bert
from common.data.coco import CLASS_NAMES
from common.errors import DataError
from common.inference.queries import Query
from tests.vcr.world import CFGS, World
from tests.world import WIDE_INIT
from vcr.dataset import VCRDataset
from vcr.predict import VCRPredictor, VCRQuery, read_metadata, words_of

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    for part in CFGS:
        assert world.train(WIDE_INIT, cfg=CFGS[part]) == 0
    return world


@pytest.fixture(scope="module")
def models(trained):
    return {
        part: vl_bert.load(cfg, trained.checkpoint(part), "cpu", overrides=trained.overrides())
        for part, cfg in CFGS.items()
    }


@pytest.fixture(scope="module")
def model(models):
    return models["Q2A"]


def query(world: World, part: str, line: int, name: int = 0) -> VCRQuery:
    def text(words: list) -> str:
        return " ".join(word if isinstance(word, str) else json.dumps(word) for word in words)

    record = world.record("val", line)
    boxes, polygons = read_metadata(world.metadata("val", line))
    right = record["answer_choices"][record["answer_label"]]
    return VCRQuery(
        world.image("val", line),
        text(record["question"]),
        boxes,
        choices=[text(words) for words in record["answer_choices" if part == "Q2A" else "rationale_choices"]],
        answer=text(right) if part == "QA2R" else None,
        polygons=polygons,
        first_name=name,
    )


@pytest.mark.parametrize("part", CFGS)
def test_predict_batch_matches_network(trained, models, part):
    model = models[part]
    assert type(model) is VCRPredictor
    names = VCRDataset(model.task.config, "val", model.task.tokenizer).name_offsets
    probabilities = model.predict_batch(
        query(trained, part, line, int(name)) for line, name in enumerate(names)
    )
    expected = torch.cat(
        [outputs.logits for _, outputs in trained.scored(CFGS[part], trained.checkpoint(part), "val")]
    ).softmax(dim=1)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert np.ptp(probabilities) > 0.01


def test_predict_without_polygons(trained, model):
    given = query(trained, "Q2A", 0)
    probabilities = model.predict(given.image, given.text, given.choices, given.boxes)
    assert abs(sum(probabilities) - 1) < 1e-5
    # Boxes replace the outlines.
    np.testing.assert_allclose(probabilities, model.predict_batch([given])[0], atol=0.2)


def test_words_of_splits_references():
    assert words_of("Why is [0, 2] near [1]?") == ["Why", "is", [0, 2], "near", [1], "?"]
    assert words_of("[a] [ 3 ]") == ["[a]", [3]]


def test_encode_question_alone(trained, models):
    model, given = models["QA2R"], query(trained, "QA2R", 0)
    encoding = model.encode(given.image, "what is [1] ?", given.boxes, attention=True)
    sequence = encoding.sequence
    assert sequence.tokens[0] == "[CLS]"
    assert sequence.tokens[-2:] == ("[SEP]", "[SEP]")
    assert encoding.maps().maps.shape[2] == len(sequence.names)
    names = [CLASS_NAMES[class_id] for class_id in given.boxes.class_ids.tolist()]
    assert sequence.labels == ("image", *(f"{index} {name}" for index, name in enumerate(names)))
    pooled = model.model.vlbert.pooler.dense(encoding.text[0]).tanh()
    torch.testing.assert_close(encoding.pooled, pooled.detach())


def test_only_relevant_detections_are_encoded(trained):
    changes = trained.overrides("DATASET.ONLY_USE_RELEVANT_DETS=true")
    model = vl_bert.load(CFGS["Q2A"], trained.checkpoint(), "cpu", overrides=changes)
    given = query(trained, "Q2A", 0)
    sequence = model.encode(given.image, "what is [1] ?", given.boxes).sequence
    assert sequence.labels == ("image", f"1 {CLASS_NAMES[int(given.boxes.class_ids[1])]}")
    np.testing.assert_allclose(sequence.boxes[1], given.boxes.boxes[1], atol=0.5)


def test_first_name_selects_person_names(trained, model):
    given = query(trained, "Q2A", 0)
    persons = given.boxes._replace(class_ids=torch.ones_like(given.boxes.class_ids))
    given = dataclasses.replace(given, text="who is [0] ?", choices=["a", "b"], boxes=persons)
    named = model.encode_batch([given, dataclasses.replace(given, first_name=1)])
    tokens = [encodings[0].sequence.tokens for encodings in named]
    assert "casey" in tokens[0]
    assert "riley" in tokens[1]


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("QA2R", {"answer": None}, "give the answer to explain"),
        ("Q2A", {"answer": "yes"}, "remove the answer"),
        ("QA2R", {"choices": ["it is [99]", "no"]}, "refers to object 99, but the image has "),
        ("Q2A", {"choices": "yes"}, "give a list of at least two texts"),
        ("Q2A", {"choices": ["yes"]}, "give a list of at least two texts"),
        ("Q2A", {"choices": 3}, "give a list of at least two texts"),
        ("Q2A", {"choices": ["yes", " "]}, r"\.jpg: choice 2 is empty"),
        ("Q2A", {"choices": ["yes", 1]}, r"\.jpg: choice 2 is of type int; expected str"),
        ("Q2A", {"text": " "}, r"\.jpg: its question is empty"),
        ("Q2A", {"text": None}, r"\.jpg: its question is of type NoneType; expected str"),
        ("QA2R", {"answer": ""}, r"\.jpg: its answer is empty"),
        ("Q2A", {"polygons": []}, r"\.jpg: polygons: "),
        ("Q2A", {"polygons": 3}, r"\.jpg: polygons: int; expected a list"),
    ],
)
def test_bad_query_raises(trained, models, part, changes, message):
    with pytest.raises(DataError, match=message):
        models[part].predict_batch([dataclasses.replace(query(trained, part, 0), **changes)])


def test_query_of_wrong_type_raises(model):
    with pytest.raises(DataError, match="query 1 is of type Query; this model takes VCRQuery"):
        model.predict_batch([Query("x.jpg", "what ?")])


def test_batch_with_different_numbers_of_choices(trained, model):
    four = query(trained, "Q2A", 0)
    two = dataclasses.replace(four, choices=["yes", "no"])
    first, second, third = model.predict_batch([four, two, four])
    assert (len(first), len(second), first) == (4, 2, third)
    np.testing.assert_allclose(second, model.predict_batch([two])[0], atol=1e-6)


@pytest.mark.parametrize("attention", [False, True])
def test_encode_batch_returns_encoding_per_choice(trained, model, attention):
    queries = [query(trained, "Q2A", line) for line in (0, 1)]
    batch = model.encode_batch(queries, attention=attention)
    assert [len(encodings) for encodings in batch] == [4, 4]
    for given, encodings in zip(queries, batch, strict=True):
        for choice, encoding in zip(given.choices, encodings, strict=True):
            single = dataclasses.replace(given, choices=[choice])
            ((alone,),) = model.encode_batch([single], attention=attention)
            assert encoding.sequence.tokens == alone.sequence.tokens
            assert encoding.sequence.boxes == alone.sequence.boxes
            torch.testing.assert_close((encoding.text, encoding.regions), (alone.text, alone.regions))
            if attention:
                np.testing.assert_allclose(encoding.maps().maps, alone.maps().maps, atol=1e-6)
    assert len({encoding.sequence.image_id for encodings in batch for encoding in encodings}) == 8


def test_image_orientations_do_not_depend_on_batch(trained):
    """The dataset pads images of different orientation to different sizes."""
    changes = trained.overrides("SCALES=[48, 64]")
    model = vl_bert.load(CFGS["Q2A"], trained.checkpoint(), "cpu", overrides=changes)
    texts = {"choices": ["yes", "no"], "boxes": [[1, 1, 20, 20]]}
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    queries = [VCRQuery(image, "is [0] red ?", **texts) for image in (pixels, pixels.transpose(1, 0, 2))]
    alone = [model.predict_batch([item])[0] for item in queries]
    np.testing.assert_allclose(model.predict_batch(queries), alone, atol=1e-6)


def test_truncated_texts_warn(trained, model, caplog):
    given = query(trained, "Q2A", 0)
    model.predict_batch([given])
    assert "truncated" not in caplog.text
    model.predict_batch([dataclasses.replace(given, choices=["red " * 70, "blue"])])
    assert "word pieces; the model reads 64, so both are truncated" in caplog.text


def test_command_prints_and_draws(trained, tmp_path, capsys):
    given = query(trained, "Q2A", 0)
    flags = (
        *("--cfg", str(CFGS["Q2A"]), "--ckpt", str(trained.checkpoint()), "--image", str(given.image)),
        *("--metadata", str(trained.metadata("val")), "--question", given.text, "--device", "cpu"),
        *(part for choice in given.choices for part in ("--choice", choice)),
    )
    assert trained.command("predict", *flags, "--json", "--save", str(tmp_path / "x.png")) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["choice"] == int(np.argmax(record["probabilities"]))
    with Image.open(tmp_path / "x.png") as saved:
        assert saved.format == "PNG"
    assert trained.command("predict", *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [index for index, line in enumerate(lines) if line.endswith("<-")] == [record["choice"]]
    for bad, message in (
        (flags[:-6], "--choice: give at least two"),
        ((*flags, "--boxes", "x.json"), "--metadata, --boxes and --detector: give one of them"),
    ):
        assert trained.command("predict", *bad) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: {"names": data["names"][1:]}, "boxes, segms and names must have the same length"),
        (lambda data: {"names": ["persn", *data["names"][1:]]}, "class 0 is 'persn'; did you mean person"),
        (lambda data: {"boxes": [[5, 5, 1, 9, 1], *data["boxes"][1:]]}, r"box 0, .* is empty"),
        (lambda data: {"boxes": [[900, 1, 950, 9, 1], *data["boxes"][1:]]}, "outside of the "),
        (lambda data: {"width": 7, "height": 9}, r"\(7, 9\)"),
    ],
)
def test_bad_metadata_raises(trained, model, tmp_path, change, message):
    data = json.loads(trained.metadata("val").read_text())
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**data, **change(data)}))

    def predict():
        return model.predict(trained.image("val"), "what ?", ["a", "b"], read_metadata(path)[0])

    with pytest.raises(DataError, match=rf"x\.json: .*{message}"):
        predict()
