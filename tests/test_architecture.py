from pathlib import Path

import pytest

from scripts import architecture

PRODUCT = architecture.python_files(
    "common", *architecture.TASKS, "vl_bert", "data", "scripts", "viz", "figs", "benchmarks"
)


def test_imports_only_go_down_a_floor():
    assert architecture.upward_imports(PRODUCT) == []


def test_functions_are_short():
    limit = {"forward": 40}
    too_long = [f for f in architecture.functions(PRODUCT) if f.lines > limit.get(f.name, 60)]
    assert too_long == []


def test_no_eight_lines_stand_in_two_files():
    assert architecture.repeated_windows(PRODUCT) == []


@pytest.mark.parametrize("task", architecture.TASKS)
def test_a_task_holds_only_what_differs(task):
    # Lines of code: nobody shall save on documentation. What uses a trained model is counted apart.
    lines = {path.name: len(architecture.code_lines(path)) for path in architecture.python_files(task)}
    assert lines.pop("predict.py") <= 150
    assert sum(lines.values()) <= 700


def test_the_trainer_is_small():
    assert architecture.num_lines(architecture.ROOT / "common/engine/trainer.py") <= 280


# The measuring itself.


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(architecture, "ROOT", tmp_path)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("file", "statement", "allowed"),
    [
        ("vcr/task.py", "from common.engine.task import Task", True),
        ("vcr/task.py", "import vcr.model", True),
        ("vcr/task.py", "import torch", True),
        ("common/engine/main.py", "from common import config", True),
        ("common/batch.py", "from common.errors import UserError", True),
        ("vcr/task.py", "from vqa.answers import normalise", False),
        ("common/data/store.py", "def f():\n    import common.modeling.bert", False),
        ("common/modeling/bert.py", "from common import data", False),
        ("common/modeling/bert.py", "from ..engine import optim", False),
        ("common/errors.py", "import common.data", False),
        ("common/engine/main.py", "from vcr import task", False),
    ],
)
def test_floors(write, file, statement, allowed):
    assert (architecture.upward_imports([write(file, statement + "\n")]) == []) == allowed


def test_equal_code_is_found_whatever_surrounds_it(write):
    body = [f"x{i} = {i}" for i in range(9)]
    first = write("a.py", "\n".join(['"""One."""', "import os", *body]))
    second = write("b.py", "\n".join(["def f():", *(f"    {line}  # other\n" for line in body[:8])]))
    assert architecture.repeated_windows([first, second]) == [(("a.py", 3), ("b.py", 2))]
    assert architecture.repeated_windows([first, write("c.py", "\n".join(body[2:]))]) == []


def test_length_of_a_function(write):
    path = write("a.py", "@cache\ndef f(\n    x,\n):\n    return x\n")
    assert architecture.functions([path]) == [("a.py:2", "f", 4)]
