"""Measures how much code a reader has to follow: `python scripts/measure_code.py` prints a table.

Three paths are traced on a toy world in a temporary folder: VCR training from the yaml file to the first loss, one
`predict` call of a VQA model, and one VCR sample. Functions of this repository count, with lambdas and comprehensions;
since Python 3.12 a list comprehension is no function, so compare numbers of one version. The other rows are counted in
the source files.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from inspect import CO_NEWLOCALS
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

if __package__ in (None, ""):  # run as a file: the parent folder holds the packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import vl_bert
from common.cli.train import train_main
from common.config.schema import load_config
from common.data.samplers import ItemKey
from common.training.checkpoint import model_state
from scripts import architecture
from scripts.make_toy_data import ToyWorld, make_toy_data
from vcr.config import VCRConfig
from vcr.task import VCRTask
from vqa.config import VQAConfig
from vqa.task import VQATask

ROOT = Path(__file__).resolve().parents[1]
REGIONS = "coco/vgbua_res101_precomputed/test2015_resnet101_faster_rcnn_genome"

# Citations of documents that are not in the repository.
ABSENT_DOCUMENTS = re.compile(
    r"(data|model|train_eval) spec|[Ss]pec:? (data|model|train_eval)|spec sections?|\([Ss]pec[: ]|[Ss]pec \d"
)


@dataclass
class Trace:
    """Functions of this repository that ran.

    Attributes:
        functions: file and qualified name of each.
        file_changes: how many calls led into another file than the call before.
    """

    functions: set[tuple[str, str]] = field(default_factory=set)
    file_changes: int = 0

    @property
    def num_files(self) -> int:
        return len({file for file, _ in self.functions})


@contextlib.contextmanager
def tracing() -> Iterator[Trace]:
    """Traces the calls of this thread."""
    trace = Trace()
    last_file = ""
    ours: dict[CodeType, bool] = {}

    def on_event(frame: FrameType, event: str, _: Any) -> None:
        nonlocal last_file
        code = frame.f_code
        if event != "call":
            return
        if code not in ours:
            ours[code] = is_ours(code)
        if not ours[code]:
            return
        # Python 3.10 has no qualified name here.
        name = getattr(code, "co_qualname", f"{code.co_name}:{code.co_firstlineno}")
        trace.functions.add((code.co_filename, name))
        trace.file_changes += code.co_filename != last_file
        last_file = code.co_filename

    sys.setprofile(on_event)
    try:
        yield trace
    finally:
        sys.setprofile(None)


def is_ours(code: CodeType) -> bool:
    """Returns whether code is a function of this repository; bodies of modules and classes are not functions."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT) or path == Path(__file__).resolve():
        return False
    return path.relative_to(ROOT).parts[0] in architecture.PRODUCT and bool(code.co_flags & CO_NEWLOCALS)


class FirstLoss(BaseException):
    """Ends training after the first loss. Not an `Exception`: the entry points would report one."""


def quietly(function: Callable[[], object]) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function()


def trace_training(arguments: list[str]) -> Trace:
    losses = VCRTask.losses

    def first_loss(*args: Any) -> None:
        losses(*args)
        sys.setprofile(None)  # what runs while the exception unwinds does not count
        raise FirstLoss

    with (
        mock.patch.object(VCRTask, "losses", first_loss),
        mock.patch.object(sys, "argv", arguments),
        tracing() as trace,
        contextlib.suppress(FirstLoss),
    ):
        quietly(lambda: train_main(VCRTask))
    return trace


def trace_sample(cfg: Path, overrides: list[str]) -> Trace:
    dataset = VCRTask(load_config(VCRConfig, cfg, overrides)).build_datasets("train")[0]
    with tracing() as trace:
        dataset[ItemKey(0, 0, 0)]
    return trace


def trace_prediction(cfg: Path, overrides: list[str], toy: Path) -> Trace:
    task = VQATask(load_config(VQAConfig, cfg, overrides))
    checkpoint = toy / "random.model"
    torch.save({"state_dict": model_state(task.build_model(), task.state_dict_names)}, checkpoint)
    model = vl_bert.load(cfg, checkpoint, "cpu", overrides=overrides)
    image = min((toy / "coco/test2015").glob("*.jpg"))
    regions = toy / REGIONS / f"{int(image.stem.split('_')[-1])}.json"
    with tracing() as trace:
        model.predict(image, "What colour is the umbrella?", regions)
    return trace


def trace_all(toy: Path) -> dict[str, Trace]:
    """Draws a toy world below `toy` and returns the three traces."""
    quietly(lambda: make_toy_data(toy, ToyWorld(("vcr", "vqa"), train=8, val=8, test=8)))
    shared = [
        f"NETWORK.BERT_MODEL_NAME={toy}/bert",
        "NUM_WORKERS_PER_GPU=0",  # worker processes cannot be traced
        "TRAIN.BATCH_IMAGES=4",
    ]
    vcr = [*shared, f"DATASET.DATASET_PATH={toy}/vcr", "NETWORK.PARTIAL_PRETRAIN="]
    vqa = [
        *shared,
        f"DATASET.DATASET_PATH={toy}/coco",
        f"DATASET.ANSWER_VOCAB_FILE={toy}/coco/vqa/answers_vqa.txt",
    ]
    vcr_cfg = ROOT / "cfgs/vcr/toy_q2a.yaml"
    train_flags = [part for value in vcr for part in ("--set", value)]
    train = ["train_end2end.py", "--cfg", str(vcr_cfg), "--model-dir", str(toy / "out"), *train_flags]
    return {
        "from the yaml to the first loss": trace_training(train),
        "one predict call": trace_prediction(ROOT / "cfgs/vqa/toy.yaml", vqa, toy),
        "one VCR sample": trace_sample(vcr_cfg, vcr),
    }


def absent_citations() -> list[str]:
    """Returns `file:line` of every line that cites a document that is not in the repository."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [
        f"{name}:{number}"
        for name in tracked.splitlines()
        if Path(name).suffix in {".py", ".md", ".sh", ".yaml", ".toml"}
        and not name.endswith("measure_code.py")
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), start=1)
        if ABSENT_DOCUMENTS.search(line)
    ]


def function_lengths(path: Path) -> list[int]:
    """Returns the length in lines of every function and method of a file, decorators excluded."""
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def num_code_lines(path: Path) -> int:
    """Returns the number of lines of code, imports included; blank lines, comments and docstrings are none."""
    source = path.read_text(encoding="utf-8")
    docstrings = {
        number
        for node in ast.walk(ast.parse(source))
        if architecture.is_docstring(node)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(map(str.strip, source.splitlines()), start=1)
    return sum(bool(line) and line[0] != "#" and number not in docstrings for number, line in lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, trace in trace_all(Path(folder).resolve() / "toy").items():
            functions = f"{len(trace.functions):>6} functions in {trace.num_files} files"
            print(f"{name:<36}{functions}, {trace.file_changes} changes of file")
    library = architecture.python_files("common", *architecture.TASKS, "vl_bert", "data", "viz")
    lengths = [length for path in library for length in function_lengths(path)]
    density = 1000 * len(lengths) / sum(map(num_code_lines, library))
    print(
        f"{'functions per 1,000 lines of code':<36}{density:>6.1f}, of {sum(lengths) / len(lengths):.1f} lines each"
    )
    for folder in ("common", "tests"):
        files = architecture.python_files(folder)
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
        print(f"{f'lines of {folder}/':<36}{lines:>6} in {len(files)} files")
    citations = absent_citations()
    print(f"{'citations of absent documents':<36}{len(citations):>6} {' '.join(citations[:3])}".rstrip())


if __name__ == "__main__":
    main()
