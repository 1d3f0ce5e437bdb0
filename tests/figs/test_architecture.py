"""The picture of the model says what the model does."""

from __future__ import annotations

import sys

from common.cli.run import run
from figs import architecture
from figs.architecture import HIDDEN, PLACES, REGIONS, SCENE, SENTENCE, TASK_HEADS, WHOLE


def test_the_sequence_is_packed_as_the_model_packs_it():
    assert [place.token for place in PLACES] == [
        "[CLS]", "red", "[MASK]", "left", "of", "blue", "person", "[SEP]", *["[IMG]"] * 4, "[END]"
    ]  # fmt: skip
    # Spec model.md 2.3: all regions stand at the place after the text, [END] one further; it has no visual feature.
    assert [place.position for place in PLACES] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 9]
    assert "".join(place.segment for place in PLACES) == "AAAAAAAACCCCC"
    assert [place.seen for place in PLACES[:9]] == [WHOLE] * 9
    assert PLACES[-1].seen is None


def test_heads_read_what_they_say():
    reads = {head.name: [PLACES[place].token for place in head.places] for head in TASK_HEADS}
    assert reads == {
        "VCR": ["[CLS]"],
        "VQA": ["[MASK]"],
        "masked words": ["[MASK]"],
        "masked regions": ["[IMG]"],
        "RefCOCO+": ["[IMG]"] * 4,
    }
    hidden = next(thing for thing in SCENE.objects if thing.box == PLACES[REGIONS[HIDDEN]].seen)
    texts = {head.name: head.reads for head in TASK_HEADS}
    assert texts["masked regions"].endswith(hidden.category.noun)
    assert texts["masked words"] == "[MASK] is “ball”"


def test_the_sentence_is_true():
    ball, person = (
        next(one for one in SCENE.objects if one.category.noun == noun) for noun in ("ball", "person")
    )
    assert f"{ball.color} ball {ball.relation(person)} {person.color} person" == SENTENCE
    for thing in SCENE.objects:
        x1, y1, x2, y2 = thing.box
        assert 0 < x1 < x2 < SCENE.width
        assert 0 < y1 < y2 < SCENE.height


def test_command(tmp_path, monkeypatch):
    out = tmp_path / "model.svg"
    monkeypatch.setattr(sys, "argv", ["architecture", "--out", str(out)])
    assert run(architecture.main) == 0
    assert 'width="675pt"' in out.read_text()
    assert out.stat().st_size < 150_000
