"""Measures the shape of the code; `python scripts/architecture.py` prints it, and a test sets limits."""

from __future__ import annotations

import ast
import io
import subprocess
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("pretrain", "vcr", "vqa", "refcoco")

# Rooms floor by floor, lowest first. A module may import from its own room and from lower floors only.
# "common" are the files directly in it.
FLOORS = (
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
PACKAGES = (
    "common/data",
    "common/models",
    "common/config",
    "common/distributed",
    "common/training",
    "common/evaluation",
    "common/extraction",
    "common/inference",
    "common/cli",
    "common",
    *TASKS,
    "vl_bert",
    "data",
    "scripts",
    "viz",
    "figs",
    "benchmarks",
    "tests",
)


class Function(NamedTuple):
    """A function and its length in lines, decorators excluded."""

    place: str
    name: str
    lines: int


class Place(NamedTuple):
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def python_files(*folders: str) -> list[Path]:
    """All Python files below `folders` of the repository, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    """`path` as seen from the repository root."""
    return path.relative_to(ROOT).as_posix()


def num_lines(path: Path) -> int:
    """Lines of a file, all kinds."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(paths: Sequence[Path]) -> list[Function]:
    """All functions and methods of `paths`, longest first."""
    found = [
        Function(
            f"{relative(path)}:{node.lineno}", node.name, (node.end_lineno or node.lineno) - node.lineno + 1
        )
        for path in paths
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(found, key=lambda function: -function.lines)


def room(module: str) -> tuple[int, str] | None:
    """Floor and room of a dotted module name; None for modules that are not ours."""
    for floor in reversed(range(len(FLOORS))):
        for name in FLOORS[floor]:
            if f"{module}.".startswith(f"{name}."):
                return floor, name
    return None


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a file imports, anywhere in it."""
    package = relative(path.parent).split("/")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def upward_imports(paths: Sequence[Path]) -> list[str]:
    """Imports that do not go down a floor: up, or into a neighbouring room."""
    wrong = []
    for path in paths:
        module = relative(path.with_suffix("")).replace("/", ".")
        here = room(module)
        for line, name in imported_modules(path):
            there = room(name)
            if here and there and there != here and there[0] >= here[0]:
                wrong.append(f"{relative(path)}:{line}: {module} imports {name}")
    return wrong


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Line number and text of every line of code: no imports, comments, docstrings, blanks or indentation."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[number - 1] = ""
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def repeated_windows(paths: Sequence[Path], size: int = 8) -> list[tuple[Place, Place]]:
    """Where `size` equal lines of code stand in two files; of overlapping windows, only the first."""
    seen: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    code = [code_lines(path) for path in paths]
    for number, lines in enumerate(code):
        for start in range(len(lines) - size + 1):
            seen[tuple(text for _, text in lines[start : start + size])].append((number, start))
    pairs = {
        (first, second)
        for places in seen.values()
        for first in places
        for second in places
        if first[0] < second[0]
    }
    starts = [(a, b) for a, b in pairs if ((a[0], a[1] - 1), (b[0], b[1] - 1)) not in pairs]

    def place(at: tuple[int, int]) -> Place:
        return Place(relative(paths[at[0]]), code[at[0]][at[1]][0])

    return sorted((place(first), place(second)) for first, second in starts)


def count(paths: Sequence[Path]) -> str:
    """Says how large files are: all lines, and lines of code without imports and documentation."""
    code = sum(len(code_lines(path)) for path in paths)
    return f"{sum(map(num_lines, paths)):>7} lines, {code:>5} of code, in {len(paths)} files"


def main() -> None:
    """Prints files, lines, longest functions and repeated windows."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    print(f"{'tracked files':<18}{len(tracked.splitlines()):>7}")
    counted: set[Path] = set()
    for package in PACKAGES:
        paths = [path for path in python_files(package) if path not in counted]
        counted.update(paths)
        print(f"{package:<18}{count(paths)}")
    product = sorted(path for path in counted if not relative(path).startswith("tests/"))
    print(f"{'all but tests':<18}{count(product)}")
    for function in functions(product)[:3]:
        print(f"{'longest function':<18}{function.lines:>7} lines {function.name} ({function.place})")
    for what, paths in (("outside tests", product), ("with tests", sorted(counted))):
        windows = repeated_windows(paths)
        print(f"{'repeated windows':<18}{len(windows):>7} {what}")
        for first, second in windows:
            print(f"    {first} = {second}")


if __name__ == "__main__":
    main()
