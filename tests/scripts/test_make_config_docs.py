"""docs/config.md is up to date and complete."""

from pathlib import Path

from scripts.make_config_docs import render


def test_docs_are_what_the_generator_writes():
    found = (Path(__file__).parents[2] / "docs/config.md").read_text()
    assert found == render(), "run: python scripts/make_config_docs.py > docs/config.md"


def test_a_row_names_the_differences_between_tasks():
    rows = {line.split(" | ")[0]: line for line in render().splitlines() if line.startswith("| `")}
    # 152 keys of the reference and 13 new ones, of which SHUFFLE, FLIP_PROB and BATCH_IMAGES have three rows each
    assert len(rows) == 152 + 13 - 6
    assert "`7` (vcr); `-1` (vqa, refcoco, pretrain)" in rows["| `LABEL_INDEX_IN_BATCH`"]
    assert "No effect in vqa, refcoco, pretrain." in rows["| `NO_OBJ_ATTENTION`"]
    assert "| vqa, refcoco, pretrain | an integer >= 1 | `3129` |" in rows["| `ANSWER_VOCAB_SIZE`"]
    assert all(line.count(" | ") == 4 and " |  |" not in line for line in rows.values())
