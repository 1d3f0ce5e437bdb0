"""Finding golden cases in a folder, comparing, and reporting the error of each.

A case is a JSON document (or an entry of one) with its arrays beside it. Runners say which documents they understand
by the document's own shape and by the folder it lies in; nothing here or there knows the name of a case.
"""

from __future__ import annotations

import json
import logging
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """One golden case: its document and where it lies.

    Attributes:
        root: folder that holds `data`, `eval`, `model`, `train`.
        path: the JSON file.
        document: the JSON of this case alone.
        shared: the JSON of the whole file.
        name: what the report calls it.
    """

    root: Path
    path: Path
    document: Any
    name: str
    shared: Any = None

    @property
    def folder(self) -> tuple[str, ...]:
        return self.path.parent.relative_to(self.root).parts

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the `.npz` beside the file."""
        return read_arrays(self.path.with_suffix(".npz"))


def unwrapped(name: str) -> str:
    """A name without the prefixes of data-parallel wrappers."""
    return re.sub(r"^(module\.)+", "", name)


def fixture(case: Case) -> Path:
    """The folder of the data that cases of several areas read."""
    folder = case.root / "data" / "fixture"
    assert folder.is_dir(), f"{case.name} reads {folder}, which is missing: put the data fixture there"
    return folder


def in_fixture(case: Case, value: Any) -> Any:
    """Replaces `<fixture>` in a text, or in those of a mapping."""
    if isinstance(value, Mapping):
        return {key: in_fixture(case, inner) for key, inner in value.items()}
    there = isinstance(value, str) and "<fixture>" in value
    return value.replace("<fixture>", str(fixture(case))) if there else value


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


class Skipped(NamedTuple):
    """A comparison left out, and the decision that says why."""

    what: str
    rule: str


@dataclass
class Report:
    """Collects the comparisons of one case."""

    name: str
    comparisons: int = 0
    worst: float = 0.0
    worst_ratio: float = -1.0
    worst_of: str = ""
    failures: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def close(self, what: str, actual: Any, expected: Any, tolerance: float) -> None:
        """The largest absolute difference is at most `tolerance`; equal infinities and NaN agree."""
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        self.comparisons += 1
        if actual.shape != expected.shape:
            self.failures.append(f"{what}: shape {actual.shape}, expected {expected.shape}")
            return
        same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(actual - expected))
        error = float(difference.max(initial=0.0))
        error = math.inf if math.isnan(error) else error
        ratio = error / tolerance if tolerance else (math.inf if error else 0.0)
        if ratio > self.worst_ratio:
            self.worst_ratio, self.worst, self.worst_of = ratio, error, what
        if error > tolerance:
            self.failures.append(f"{what}: error {error:.3g}, tolerance {tolerance:.3g}")

    def equal(self, what: str, actual: Any, expected: Any) -> None:
        """Both are the same value."""
        self.comparisons += 1
        if isinstance(actual, np.ndarray) or isinstance(expected, np.ndarray):
            same = np.array_equal(np.asarray(actual), np.asarray(expected))
        else:
            same = actual == expected
        if self.worst_ratio < 0:
            self.worst_ratio, self.worst_of = 0.0, what
        if not same:
            self.failures.append(f"{what}: {_short(actual)}, expected {_short(expected)}")

    def skip(self, what: str, rule: str) -> None:
        """A comparison left out because we differ on purpose; `rule` says which decision."""
        self.skipped.append(Skipped(what, rule))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


class LogLines(logging.Handler):
    """Collects what one logger says at level INFO, in a `with` block."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.target = logging.getLogger(name)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            self.lines.append(record.getMessage())

    def __enter__(self) -> LogLines:
        self.before = self.target.level
        self.target.setLevel(logging.INFO)
        self.target.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.target.removeHandler(self)
        self.target.setLevel(self.before)


Runner = Callable[[Case, Report], None]
Match = Callable[[Case], bool]


def discover(root: Path) -> Iterator[Case]:
    """Every case below `root`: documents in the order of the files, then arrays of units without a document."""
    for path in sorted(root.rglob("*.json")):
        parts = path.relative_to(root).parts
        if len(parts) < 2 or "fixture" in parts or parts[0] not in ("data", "eval", "model", "train"):
            continue
        if parts[0] == "eval" and _is_result(path):
            continue
        document = json.loads(path.read_text(encoding="utf-8"))
        label = "/".join(path.relative_to(root).with_suffix("").parts)
        entries = document.get("cases") if isinstance(document, dict) else None
        if path.name == "cases.json" and entries is not None:
            for entry in entries:
                yield Case(root, path, entry, f"{'/'.join(parts[:-1])}/{entry['name']}", document)
        elif not _is_table(document):
            yield Case(root, path, document, label, document)
    for path in sorted((root / "data").rglob("*.npz")):
        family = path.with_name("cases.json").exists() or "fixture" in path.relative_to(root).parts
        if not family and not path.with_suffix(".json").exists():
            yield Case(root, path, {}, "/".join(path.relative_to(root).with_suffix("").parts), {})


def _is_result(path: Path) -> bool:
    """Files that the reference wrote are inputs of a comparison, not cases: they are lists of records."""
    return isinstance(json.loads(path.read_text(encoding="utf-8")), list)


def _is_table(document: Any) -> bool:
    """A table of state dicts belongs to other cases: every value is a model with its entries."""
    return isinstance(document, Mapping) and all(
        isinstance(value, Mapping) and "module" in value and "config" not in value
        for value in document.values()
    )


def weight(
    name: str,
    shape: tuple[int, ...],
    salt: str,
    norm_weights: frozenset[str],
    biases: frozenset[str] = frozenset(),
) -> np.ndarray:
    """The rule that gives every entry of a state dict its value (model README, section 1).

    `biases` names those that are not called so.
    """
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if len(shape) == 0:
        return np.array(0.3, np.float32)
    x = _generator(salt + name).standard_normal(shape)
    if name.endswith("running_var"):
        x = 0.5 + np.abs(x)
    elif name.endswith("running_mean"):
        x = 0.1 * x
    elif name in norm_weights:
        x = 1 + 0.1 * x
    elif name.endswith("bias") or name in biases:
        x = 0.02 * x
    elif len(shape) == 4:
        x = x * math.sqrt(2.0 / (shape[1] * shape[2] * shape[3])) * 0.5
    else:
        x = 0.05 * x
    return np.asarray(x, np.float32)


def statistics(name: str, values: np.ndarray, salt: str) -> tuple[float, float, float]:
    """Norm, mean and probe of an array; the probe tells a permutation_entries array from the right one."""
    values = np.asarray(values, np.float64)
    probe = _generator(salt + "probe:" + name).standard_normal(values.shape)
    return float(np.linalg.norm(values.ravel())), float(values.mean()), float((values * probe).sum())


def _generator(key: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(key.encode()) % 2**32)


@contextmanager
def layer_states(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the (S, H) states of every layer of an `Encoder` while it runs."""
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
        for layer in encoder.layer
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
