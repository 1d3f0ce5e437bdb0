import re
from pathlib import Path

import pytest

from scripts import architecture
from tests.world import ROOT


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
        ("common/data/images.py", "from common.data.storage.store import Store", True),
        ("vcr/task.py", "from vqa.answers import normalize", False),
        ("common/data/images.py", "def f():\n    import common.models.bert", False),
        ("common/data/storage/store.py", "from common.data.images import open_image", False),
        ("common/models/bert.py", "from common import data", False),
        ("common/models/bert.py", "from ..training import optim", False),
        ("common/errors.py", "import common.data", False),
        ("common/cli/train.py", "from vcr import task", False),
    ],
)
def test_upward_imports_follow_the_layers(write, file, statement, allowed):
    assert (architecture.upward_imports([write(file, statement + "\n")]) == []) == allowed


def test_repeated_windows_ignore_imports_comments_and_indentation(write):
    body = [f"x{i} = {i}" for i in range(9)]
    first = write("a.py", "\n".join(['"""One."""', "import os", *body]))
    second = write("b.py", "\n".join(["def f():", *(f"    {line}  # other\n" for line in body[:8])]))
    assert architecture.repeated_windows([first, second]) == [(("a.py", 3), ("b.py", 2))]
    assert architecture.repeated_windows([first, write("c.py", "\n".join(body[2:]))]) == []


def test_repeated_windows_ignore_parameters(write):
    parameters = "".join(f"    parameter_{i},\n" for i in range(9))
    paths = [write(f"{name}.py", f"def {name}(\n{parameters}):\n    return {name}\n") for name in "ab"]
    assert architecture.repeated_windows(paths) == []


def test_main_reports_problems_by_exit_status(write, capsys):
    write("vcr/task.py", "import torch\n")
    assert architecture.main() == 0
    write("vcr/task.py", "import vqa.task\n")
    assert architecture.main() == 1
    assert "vcr/task.py:1" in capsys.readouterr().out


def test_pyproject_packages_every_product_folder():
    include = re.search(
        r"packages.find\]\n(?:#.*\n)?include = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S
    )
    packages = {name.strip("* ") for name in re.findall(r'"(.*?)"', include[1])}
    assert packages >= set(architecture.PRODUCT)
