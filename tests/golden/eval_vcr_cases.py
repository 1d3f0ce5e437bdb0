"""Golden evaluation of VCR: its result files through the real commands."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import vcr.test
import vcr.val
from common.evaluation.checkpoints import Evaluation
from common.evaluation.evaluator import evaluate
from common.training.checkpoint import output_folder
from common.training.metrics import joint_accuracy
from common.training.precision import Precision
from common.training.task import build_dataloader
from tests.golden.adapters import ADAPTERS
from tests.golden.data_place import data_config
from tests.golden.eval_place import CHECKPOINT, CPU, Stub, command, entered, name_before
from tests.golden.harness import Case, Report, fixture, in_fixture, read_arrays
from vcr.config import VCRConfig
from vcr.dataset import NUM_CHOICES
from vcr.evaluation import val_labels
from vcr.task import VCRTask

RULE_ONE_FORWARD = "one packed forward scores all conditions of a question"
RULE_RESULT_NAME = "the joint file is never called None_..."
RULE_CACHE = "--use-cache computes what is missing"

PARTS = {"a": "Q2A", "r": "QA2R"}
CHOICES = {"Q2A": NUM_CHOICES, "QA2R": NUM_CHOICES**2}


class Workplace:
    """Both configurations, and what their networks say.

    Args:
        case: its fixture holds the data.
        prefixes: MODEL_PREFIX by part.
        options: further keys of both configurations.
        logits: by part; zeros without.
    """

    def __init__(
        self,
        case: Case,
        prefixes: Mapping[str, str],
        options: Mapping[str, Any],
        logits: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.case, self.logits = case, logits or {}
        images = next(path.name for path in sorted((fixture(case) / "vcr").iterdir()) if path.is_dir())
        sets = {f"DATASET.{split}_IMAGE_SET": images for split in ("TRAIN", "VAL", "TEST")}
        self.configs: dict[str, VCRConfig] = {}
        for letter, part in PARTS.items():
            own = {"DATASET.TASK": part, "MODEL_PREFIX": prefixes.get(part, letter)}
            self.configs[letter] = data_config(case, ADAPTERS["vcr"], {**sets, **options, **own})

    def entered(self, names: Mapping[str, str]) -> AbstractContextManager[Path]:
        """Makes the folder, with configurations of these names, the current one."""
        configs = {name: self.configs[letter] for letter, name in names.items()}
        return entered(configs, lambda task: self.scores(task.config.DATASET.TASK))

    def scores(self, part: str) -> np.ndarray:
        """Stored logits, or zeros for more records than there are."""
        return self.logits[part] if part in self.logits else np.zeros((1000, CHOICES[part]), np.float32)


def stored_logits(case: Case) -> dict[str, np.ndarray]:
    """The arrays beside a document, which carry its name."""
    return read_arrays(case.path.with_name(f"{case.path.stem}_logits.npz"))


def by_part(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {part: arrays[part.lower()] for part in PARTS.values()}


def prefixes_in(names: Sequence[str]) -> dict[str, str]:
    """MODEL_PREFIX of every part, as the copies of the checkpoints tell it."""
    found = {part: name_before(names, f"_test_ckpt_{part}.model") for part in PARTS.values()}
    return {part: prefix for part, prefix in found.items() if prefix is not None}


def test_arguments(parts: str, *more: str) -> list[str]:
    given = [[f"--{x}-cfg", f"{x}.yaml", f"--{x}-ckpt", CHECKPOINT] for x in parts]
    return [*(word for words in given for word in words), *more]


CONFIGS = {letter: f"{letter}.yaml" for letter in PARTS}


# --- Test files ---------------------------------------------------------------------------------------------


def run_test_case(case: Case, report: Report) -> None:
    document, listing = case.document, case.document["result_dir_listing"]
    place = Workplace(case, prefixes_in(listing), document["options"], by_part(stored_logits(case)))
    name = name_before(listing, "_test_result_Q2AR.csv")
    with place.entered(CONFIGS) as folder:
        flags = ("--result-name", name, "--result-path", "results")
        command(vcr.test.main, test_arguments("ar", *flags))
        results = folder / "results"
        report.equal("files", sorted(path.name for path in results.iterdir()), sorted(listing))
        for path in sorted(results.iterdir()):
            expected = case.path.with_name(path.name)
            if expected.exists():
                compare_file(report, path, expected)
        for file, content in document["parsed_csv"].items():
            table = pd.read_csv(results / file)
            report.equal(f"{file} columns", list(table.columns), content["columns"])
            compare_numbers(report, file, table, pd.DataFrame(content["rows"], columns=content["columns"]))
    report.skip("shapes of the forward calls", RULE_ONE_FORWARD)


def compare_file(report: Report, path: Path, expected: Path) -> None:
    """Arrays and part tables exactly; the joint table, which passes through text, by its numbers."""
    if path.suffix == ".npy":
        values = np.load(expected)
        report.equal(f"{path.name} type", np.load(path).dtype, values.dtype)
        report.equal(path.name, np.load(path), values)
    elif path.stem.endswith("_Q2AR"):
        compare_numbers(report, path.name, pd.read_csv(path), pd.read_csv(expected))
    else:
        report.equal(f"{path.name} bytes", path.read_bytes(), expected.read_bytes())


def compare_numbers(report: Report, name: str, table: pd.DataFrame, expected: pd.DataFrame) -> None:
    report.equal(f"{name} records", list(table["annot_id"]), list(expected["annot_id"]))
    actual, wanted = (t.drop(columns="annot_id").to_numpy(np.float64) for t in (table, expected))
    # Relative: a probability may be tiny.
    scale = np.where(wanted == 0, 1.0, np.abs(wanted))
    report.close(f"{name} numbers", actual / scale, wanted / scale, 1e-12)


def run_names(case: Case, report: Report) -> None:
    document = case.document
    default = document["default_result_name"]
    options = {"DATASET.TEST_ANNOTATION_FILE": annotations(case, "test")}
    place = Workplace(case, prefixes_in(default), options)
    with place.entered(CONFIGS) as folder:
        command(vcr.test.main, test_arguments("ar"))
        found = {f"./{path.relative_to(folder)}" for path in folder.glob("*/*")}
        joint = {name for name in default if Path(name).name.startswith("None_")}
        ours = {name for name in found if name.endswith("_Q2AR.csv")}
        report.equal("default names", found - ours, set(default) - joint)
        report.equal("joint files", len(ours), len(joint))
        report.skip(f"{sorted(joint)}", RULE_RESULT_NAME)
    with place.entered(CONFIGS) as folder:
        compare_cached(report, document["use_cache_stdout"])
    with place.entered(CONFIGS) as folder:
        names = document["only_answer_ckpt"]
        result = name_before(names, "_test_result_Q2A.csv")
        command(vcr.test.main, test_arguments("a", "--result-name", result, "--result-path", "one"))
        report.equal("answers alone", sorted(os.listdir("one")), sorted(names))
        compare_after_training(report, place, folder, document["do_test_after_training"])


def compare_cached(report: Report, lines: Sequence[str]) -> None:
    """A second run with --use-cache says that it found the files, and joins them."""
    found = re.search(r"<result-path>/(\S+)_test_result_Q2A\.csv", lines[0])
    assert found
    flags = ("--result-name", found[1], "--result-path", "results")
    command(vcr.test.main, test_arguments("ar", *flags))
    _, logged = command(vcr.test.main, test_arguments("ar", *flags, "--use-cache"), "vcr")
    report.equal("cached", [line.replace("results/", "<result-path>/") for line in logged], list(lines))


def compare_after_training(report: Report, place: Workplace, folder: Path, names: Sequence[str]) -> None:
    """`--do-test` writes the test files of the best checkpoint beside the training folder."""
    (best,) = (name for name in names if name.endswith("-best.model"))
    (folder / best).parent.mkdir(parents=True)
    (folder / best).write_bytes(b"weights")
    config = place.configs["a"].model_copy(update={"OUTPUT_PATH": str(folder)})
    below = folder / Path(best).parts[0]
    results = output_folder(config, f"{below.name}.yaml", "test")
    Evaluation(VCRTask(config), folder / best, results, CPU, Precision(CPU)).write_test_result()
    found = {str(path.relative_to(folder)) for path in below.rglob("*") if path.is_file()}
    report.equal("test after training", found, set(names))


def annotations(case: Case, split: str) -> str:
    """The fixture's annotations for evaluations, else those of the data area."""
    name = f"eval_{split}.jsonl"
    return name if (fixture(case) / "vcr" / name).exists() else f"{split}.jsonl"


# --- Validation ---------------------------------------------------------------------------------------------


def run_val(case: Case, report: Report) -> None:
    document, arrays = case.document, stored_logits(case)
    options = {"DATASET.VAL_ANNOTATION_FILE": annotations(case, "val")}
    place = Workplace(case, {}, options, by_part(arrays))
    names = {}
    for words in (run["argv"] for run in document["runs"]):
        given = dict(itertools.pairwise(words))
        names |= {x: given[f"--{x}-cfg"] for x in PARTS if f"--{x}-cfg" in given}
    with place.entered(names) as folder:
        for number, run in enumerate(document["runs"]):
            compare_val(case, report, f"run {number}", run, folder / "results")
        for letter in PARTS:
            (path,) = (folder / "results").glob(f"*_{letter}_pred.npy")
            report.equal(path.name, np.load(path), arrays[f"{letter}_pred"])
            report.equal(f"{path.name} type", np.load(path).dtype, arrays[f"{letter}_pred"].dtype)
    compare_accuracies(report, place, document["metrics"])


def compare_val(case: Case, report: Report, what: str, run: Mapping[str, Any], results: Path) -> None:
    """Runs `vcr/val.py` and compares what it prints and writes."""
    places = {"<ckpt>": CHECKPOINT, "<dir>": str(results)}
    words = [in_fixture(case, places.get(word, word)) for word in run["argv"]]
    if "--use-cache" in words and not run["accuracy_lines"]:
        report.skip(what, RULE_CACHE)
        return
    lines, _ = command(vcr.val.main, words)
    report.equal(f"{what} lines", [line for line in lines if "->" in line], run["accuracy_lines"])
    report.equal(f"{what} files", sorted(path.name for path in results.iterdir()), sorted(run["files"]))


def compare_accuracies(report: Report, place: Workplace, expected: Sequence[Mapping[str, Any]]) -> None:
    """The metrics of the validation loop."""
    found, labels = {}, {}
    for letter, part in PARTS.items():
        task = VCRTask(place.configs[letter])
        loader = build_dataloader(task, "val")
        found[part] = evaluate(task, Stub(task, place.scores(part)), loader, CPU)
        labels[part] = torch.from_numpy(val_labels(task))
    pairs: list[Tensor] = []
    for part in PARTS.values():
        pairs += [torch.from_numpy(place.logits[part]), labels[part]]
    joint = joint_accuracy(*pairs)
    found["joint"] = {"JointAcc": (joint.total / joint.count).item()}
    for entry in expected:
        for part, (names, values) in entry.items():
            for name, value in zip(names, values, strict=True):
                report.close(f"{part} {name}", found[part][name], value, 1e-6)


def _in_eval(case: Case, folder: str, *keys: str) -> bool:
    return case.folder == ("eval", folder) and set(keys) <= set(case.document)


RUNNERS = [
    (lambda c: _in_eval(c, "vcr", "parsed_csv"), run_test_case),
    (lambda c: _in_eval(c, "vcr", "default_result_name"), run_names),
    (lambda c: _in_eval(c, "vcr", "runs", "metrics"), run_val),
]
