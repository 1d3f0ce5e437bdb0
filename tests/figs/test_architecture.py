"""The architecture figure agrees with the model."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("matplotlib")

from common.cli.run import run
from figs import architecture
from figs.architecture import COLUMNS, MASKED_REGION, REGIONS, SCENE, SENTENCE, TASK_HEADS, WHOLE
from tests.world import run_command


def test_sequence_layout_matches_model():
    assert [column.token for column in COLUMNS] == [
        "[CLS]", "red", "[MASK]", "left", "of", "blue", "person", "[SEP]", *["[IMG]"] * 4, "[END]"
    ]  # fmt: skip
    # docs/model.md: all regions share the position after the text; [END] has the next one and no visual feature.
    assert [column.position for column in COLUMNS] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 9]
    assert "".join(column.segment for column in COLUMNS) == "AAAAAAAACCCCC"
    assert [column.visual for column in COLUMNS[:9]] == [WHOLE] * 9
    assert COLUMNS[-1].visual is None


def test_heads_read_matching_columns():
    inputs = {head.name: [COLUMNS[index].token for index in head.inputs] for head in TASK_HEADS}
    assert inputs == {
        "VCR": ["[CLS]"],
        "VQA": ["[MASK]"],
        "masked words": ["[MASK]"],
        "masked regions": ["[IMG]"],
        "RefCOCO+": ["[IMG]"] * 4,
    }
    masked = next(item for item in SCENE.objects if item.box == COLUMNS[REGIONS[MASKED_REGION]].visual)
    texts = {head.name: head.description for head in TASK_HEADS}
    assert texts["masked regions"].endswith(masked.category.noun)
    assert texts["masked words"] == "[MASK] is “ball”"


def test_sentence_describes_scene():
    ball, person = (
        next(item for item in SCENE.objects if item.category.noun == noun) for noun in ("ball", "person")
    )
    assert f"{ball.color} ball {ball.relation(person)} {person.color} person" == SENTENCE
    for item in SCENE.objects:
        x1, y1, x2, y2 = item.box
        assert 0 < x1 < x2 < SCENE.width
        assert 0 < y1 < y2 < SCENE.height


@pytest.mark.integration
def test_command_draws_svg(tmp_path, monkeypatch):
    out = tmp_path / "model.svg"
    monkeypatch.setattr(sys, "argv", ["architecture", "--out", str(out)])
    assert run(architecture.main) == 0
    assert 'width="675pt"' in out.read_text()
    assert out.stat().st_size < 150_000


@pytest.mark.integration
def test_figure_imports_neither_torch_nor_training_code():
    code = "import sys, figs.architecture; print({'torch', 'common.training'} & set(sys.modules))"
    assert run_command(sys.executable, "-c", code).strip() == "set()"
