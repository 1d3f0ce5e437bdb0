"""Choices for questions about pictures of one's own."""

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


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    for part in CFGS:
        assert world.train(WIDE_INIT, cfg=CFGS[part]) == 0
    return world


def load(world: World, part: str) -> VCRPredictor:
    return vl_bert.load(CFGS[part], world.checkpoint(part), "cpu", overrides=world.overrides())


def spelt(words: list) -> str:
    return " ".join(word if isinstance(word, str) else json.dumps(word) for word in words)


def query(world: World, part: str, line: int, name: int = 0) -> VCRQuery:
    record = world.record("val", line)
    boxes, polygons = read_metadata(world.metadata("val", line))
    right = record["answer_choices"][record["answer_label"]]
    return VCRQuery(
        world.image("val", line),
        spelt(record["question"]),
        boxes,
        choices=[
            spelt(words) for words in record["answer_choices" if part == "Q2A" else "rationale_choices"]
        ],
        answer=spelt(right) if part == "QA2R" else None,
        polygons=polygons,
        first_name=name,
    )


@pytest.mark.parametrize("part", CFGS)
def test_choices_are_those_of_the_network(trained, part):
    model = load(trained, part)
    assert type(model) is VCRPredictor
    names = VCRDataset(model.task.config, "val", model.task.tokenizer).name_offsets
    found = model.predict_batch(query(trained, part, line, int(name)) for line, name in enumerate(names))
    expected = torch.cat(
        [outputs.logits for _, outputs in trained.scored(CFGS[part], trained.checkpoint(part), "val")]
    ).softmax(dim=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found) > 0.01


def test_one_question_and_boxes_alone(trained):
    model = load(trained, "Q2A")
    given = query(trained, "Q2A", 0)
    shares = model.predict(given.image, given.text, given.choices, given.boxes)
    assert abs(sum(shares) - 1) < 1e-5
    # Without outlines, boxes stand in: nearly the same picture.
    np.testing.assert_allclose(shares, model.predict_batch([given])[0], atol=0.2)


def test_references():
    assert words_of("Why is [0, 2] near [1]?") == ["Why", "is", [0, 2], "near", [1], "?"]
    assert words_of("[a] [ 3 ]") == ["[a]", [3]]


def test_states(trained):
    model = load(trained, "QA2R")
    given = query(trained, "QA2R", 0)
    encoding = model.encode(given.image, "what is [1] ?", given.boxes, attention=True)
    assert encoding.places.tokens[0] == "[CLS]"
    assert encoding.places.tokens[-2:] == ("[SEP]", "[SEP]")
    assert encoding.maps().maps.shape[2] == len(encoding.places.names)
    kinds = [CLASS_NAMES[number] for number in given.boxes.class_ids.tolist()]
    assert encoding.places.labels == ("image", *(f"{number} {kind}" for number, kind in enumerate(kinds)))
    pooler = model.model.vlbert.pooler.dense
    first = pooler(encoding.text[0]).tanh()
    torch.testing.assert_close(encoding.pooled, first.detach())


def test_regions_that_no_text_speaks_of_are_left_out(trained):
    changes = trained.overrides("DATASET.ONLY_USE_RELEVANT_DETS=true")
    model = vl_bert.load(CFGS["Q2A"], trained.checkpoint(), "cpu", overrides=changes)
    given = query(trained, "Q2A", 0)
    places = model.encode(given.image, "what is [1] ?", given.boxes).places
    kind = CLASS_NAMES[int(given.boxes.class_ids[1])]
    assert places.labels == ("image", f"1 {kind}")
    np.testing.assert_allclose(places.boxes[1], given.boxes.boxes[1], atol=0.5)


def test_names_of_persons(trained):
    model = load(trained, "Q2A")
    given = query(trained, "Q2A", 0)
    persons = given.boxes._replace(class_ids=torch.ones_like(given.boxes.class_ids))
    given = dataclasses.replace(given, text="who is [0] ?", choices=["a", "b"], boxes=persons)
    first, second = (
        model.task.tokenizer.tokens(model.sample(0, *seen).texts[0].ids.tolist())
        for seen in ((model.see([one])[0], one) for one in (given, dataclasses.replace(given, first_name=1)))
    )
    assert "casey" in first
    assert "riley" in second


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("QA2R", {"answer": None}, "give the answer to find one for"),
        ("Q2A", {"answer": "yes"}, "it takes none"),
        ("QA2R", {"choices": ["it is [99]", "no"]}, "refers to object 99, but there are "),
        ("Q2A", {"choices": "yes"}, "give a list of at least two texts"),
        ("Q2A", {"choices": ["yes"]}, "give a list of at least two texts"),
        ("Q2A", {"choices": ["yes", " "]}, r"\.jpg: choice 2 is empty"),
        ("Q2A", {"text": " "}, r"\.jpg: its question is empty"),
        ("QA2R", {"answer": ""}, r"\.jpg: its answer is empty"),
        ("Q2A", {"text": None}, r"\.jpg: its question is of type NoneType; expected str"),
        ("Q2A", {"choices": ["yes", 1]}, r"\.jpg: choice 2 is of type int; expected str"),
        ("Q2A", {"choices": 3}, "give a list of at least two texts"),
        (
            "Q2A",
            {"polygons": []},
            r"\.jpg: polygons: of 0 objects; expected a list with those of each of the ",
        ),
        ("Q2A", {"polygons": 3}, r"\.jpg: polygons: int; expected a list"),
    ],
)
def test_mistakes(trained, part, changes, message):
    given = dataclasses.replace(query(trained, part, 0), **changes)
    with pytest.raises(DataError, match=message):
        load(trained, part).predict_batch([given])


def test_choices_of_different_numbers(trained):
    given, model = query(trained, "Q2A", 0), load(trained, "Q2A")
    fewer = dataclasses.replace(given, choices=["yes", "no"])
    first, second, third = model.predict_batch([given, fewer, given])
    assert (len(first), len(second), first) == (4, 2, third)
    np.testing.assert_allclose(second, model.predict_batch([fewer])[0], atol=1e-6)


@pytest.mark.parametrize("attention", [False, True])
def test_an_encoding_of_each_choice(trained, attention):
    model, queries = load(trained, "Q2A"), [query(trained, "Q2A", line) for line in (0, 1)]
    found = model.encode_batch(queries, attention=attention)
    assert [len(encodings) for encodings in found] == [4, 4]
    for given, encodings in zip(queries, found, strict=True):
        for choice, one in zip(given.choices, encodings, strict=True):
            ((alone,),) = model.encode_batch(
                [dataclasses.replace(given, choices=[choice])], attention=attention
            )
            assert one.places.tokens == alone.places.tokens
            assert one.places.boxes == alone.places.boxes
            torch.testing.assert_close((one.text, one.regions), (alone.text, alone.regions))
            if attention:
                np.testing.assert_allclose(one.maps().maps, alone.maps().maps, atol=1e-6)
    names = [one.places.image_id for encodings in found for one in encodings]
    assert len(set(names)) == 8


def test_pictures_of_both_orientations(trained):
    """They have other padded_sizes in a batch of VCR."""
    changes = trained.overrides("SCALES=[48, 64]")
    model = vl_bert.load(CFGS["Q2A"], trained.checkpoint(), "cpu", overrides=changes)
    texts = {"choices": ["yes", "no"], "boxes": [[1, 1, 20, 20]]}
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    queries = [VCRQuery(one, "is [0] red ?", **texts) for one in (pixels, pixels.transpose(1, 0, 2))]
    together = model.predict_batch(queries)
    np.testing.assert_allclose(together, [model.predict_batch([one])[0] for one in queries], atol=1e-6)


def test_a_query_of_another_kind(trained):
    with pytest.raises(DataError, match="query 1 is of type Query; this model takes VCRQuery"):
        load(trained, "Q2A").predict_batch([Query("x.jpg", "what ?")])


def test_long_texts_are_cut_with_a_word(trained, caplog):
    given = dataclasses.replace(query(trained, "Q2A", 0), choices=["red " * 70, "blue"])
    model = load(trained, "Q2A")
    model.predict_batch([query(trained, "Q2A", 0)])
    assert "are cut" not in caplog.text
    model.predict_batch([given])
    assert "word pieces; the model reads 64, and the ends of both are cut" in caplog.text


def test_the_command(trained, tmp_path, capsys):
    given = query(trained, "Q2A", 0)
    flags = (
        *("--cfg", str(CFGS["Q2A"]), "--ckpt", str(trained.checkpoint()), "--image", str(given.image)),
        *("--metadata", str(trained.metadata("val")), "--question", given.text, "--device", "cpu"),
        *(part for choice in given.choices for part in ("--choice", choice)),
    )
    assert trained.command("predict", *flags, "--json", "--save", str(tmp_path / "x.png")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["choice"] == int(np.argmax(shown["probabilities"]))
    with Image.open(tmp_path / "x.png") as saved:
        assert saved.format == "PNG"
    assert trained.command("predict", *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [number for number, line in enumerate(lines) if line.endswith("<-")] == [shown["choice"]]
    assert trained.command("predict", *flags[:-6]) == 2
    assert "--choice: give at least two" in capsys.readouterr().err
    assert trained.command("predict", *flags, "--boxes", "x.json") == 2
    assert "--metadata, --boxes and --detector: give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: {"names": found["names"][1:]}, "boxes, segms and names must be equally many"),
        (
            lambda found: {"names": ["persn", *found["names"][1:]]},
            "class 0 is 'persn'; did you mean person",
        ),
        (lambda found: {"boxes": [[5, 5, 1, 9, 1], *found["boxes"][1:]]}, r"box 0, .* is empty"),
        (lambda found: {"boxes": [[900, 1, 950, 9, 1], *found["boxes"][1:]]}, "is outside of the image"),
        (lambda found: {"width": 7, "height": 9}, r"for an image of \(7, 9\) pixels"),
    ],
)
def test_damaged_metadata(trained, tmp_path, change, message):
    found = json.loads(trained.metadata("val").read_text())
    (tmp_path / "x.json").write_text(json.dumps({**found, **change(found)}))
    with pytest.raises(DataError, match=rf"x\.json: .*{message}"):
        load(trained, "Q2A").predict_batch(
            [
                VCRQuery(
                    trained.image("val"), "what ?", read_metadata(tmp_path / "x.json")[0], choices=["a", "b"]
                )
            ]
        )
