"""Checks the structure of the code: `python scripts/architecture.py`; part of the lint step of scripts/test.sh.

Imports go down the layers, tasks do not import each other, and no 8 lines of code occur in two files.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeGuard

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("pretrain", "vcr", "vqa", "refcoco")

# Packages by layer, lowest first. A module may import from its own package and from lower layers only.
# "common" means the files directly in it.
LAYERS = (
    ("common",),
    ("common.config",),
    ("common.data.storage",),
    ("common.data", "common.models"),
    ("common.data.regions",),
    ("common.distributed",),
    ("common.training",),
    ("common.evaluation",),
    ("common.extraction",),
    ("common.inference",),
    ("common.cli",),
    TASKS,
    ("vl_bert",),
    ("data", "scripts", "viz"),
    ("benchmarks", "figs"),
)
PRODUCT = ("common", *TASKS, "vl_bert", "data", "scripts", "viz", "figs", "benchmarks")
WINDOW = 8


class Location(NamedTuple):
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def python_files(*folders: str) -> list[Path]:
    """Returns all Python files below `folders` of the repository, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def layer_of(module: str) -> tuple[int, str] | None:
    """Returns layer and package of a dotted module name; None for modules of other projects."""
    # The longest match: "common.data.storage" is a package of its own, below "common.data".
    matches = [
        (level, package)
        for level, packages in enumerate(LAYERS)
        for package in packages
        if f"{module}.".startswith(f"{package}.")
    ]
    return max(matches, key=lambda match: len(match[1]), default=None)


def imported_modules(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and absolute name of every import of a file, also inside functions."""
    package = relative(path.parent).split("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def upward_imports(paths: Sequence[Path]) -> list[str]:
    """Returns the imports that lead to a higher layer, or to another package of the same layer."""
    wrong = []
    for path in paths:
        module = relative(path.with_suffix("")).replace("/", ".")
        importer = layer_of(module)
        for line, name in imported_modules(path, ast.parse(path.read_text(encoding="utf-8"))):
            imported = layer_of(name)
            if importer and imported and imported != importer and imported[0] >= importer[0]:
                wrong.append(f"{relative(path)}:{line}: {module} must not import {name}")
    return wrong


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Returns number and text of every line of code, without indentation.

    Imports, comments, docstrings and blank lines do not count. Parameters on lines of their own are replaced by their
    location, which no other file contains: a function that forwards to another has equal parameters.
    """
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) or is_docstring(node):
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[number - 1] = ""
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for number in range(node.lineno + 1, node.body[0].lineno):
                lines[number - 1] = f"{path}:{number}"
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def is_docstring(node: ast.AST) -> TypeGuard[ast.Expr]:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def repeated_windows(paths: Sequence[Path], size: int = WINDOW) -> list[tuple[Location, Location]]:
    """Returns where `size` equal lines of code occur in two files; of overlapping windows, the first."""
    windows: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    code = [code_lines(path) for path in paths]
    for file, lines in enumerate(code):
        for start in range(len(lines) - size + 1):
            windows[tuple(text for _, text in lines[start : start + size])].append((file, start))
    pairs = {
        (first, second)
        for starts in windows.values()
        for first in starts
        for second in starts
        if first[0] < second[0]
    }

    def location(window: tuple[int, int]) -> Location:
        file, start = window
        return Location(relative(paths[file]), code[file][start][0])

    return sorted(
        (location(first), location(second))
        for first, second in pairs
        if ((first[0], first[1] - 1), (second[0], second[1] - 1)) not in pairs
    )


def main() -> int:
    """Prints what is wrong; returns the exit status."""
    paths = python_files(*PRODUCT)
    problems = upward_imports(paths)
    problems += [
        f"{first}: {WINDOW} lines are repeated at {second}" for first, second in repeated_windows(paths)
    ]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
