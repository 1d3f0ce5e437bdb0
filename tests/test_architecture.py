from pathlib import Path

import pytest

from scripts import architecture

PRODUCT = architecture.python_files(
    "common", *architecture.TASKS, "vl_bert", "data", "scripts", "viz", "figs", "benchmarks"
)


def test_imports_only_go_down_a_floor():
    assert architecture.upward_imports(PRODUCT) == []


def test_no_eight_lines_stand_in_two_files():
    assert architecture.repeated_windows(PRODUCT) == []


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
        ("vcr/task.py", "from common.training.task import Task", True),
        ("vcr/task.py", "import vcr.model", True),
        ("vcr/task.py", "import torch", True),
        ("common/cli/train.py", "from common import config", True),
        ("common/batch.py", "from common.errors import UserError", True),
        ("vcr/task.py", "from vqa.answers import normalise", False),
        ("common/data/store.py", "def f():\n    import common.models.bert", False),
        ("common/models/bert.py", "from common import data", False),
        ("common/models/bert.py", "from ..training import optim", False),
        ("common/errors.py", "import common.data", False),
        ("common/cli/train.py", "from vcr import task", False),
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
