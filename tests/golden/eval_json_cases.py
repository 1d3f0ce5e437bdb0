"""Golden evaluation of VQA and RefCOCO: their json files through the real commands, and validation metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import refcoco.test
import vqa.test
from common.config.schema import ExperimentConfig
from common.evaluation.evaluator import evaluate
from common.training.task import build_dataloader
from tests.golden.adapters import ADAPTERS
from tests.golden.data_place import data_config
from tests.golden.eval_place import CHECKPOINT, CPU, Stub, command, entered, name_before
from tests.golden.harness import Case, Report, read_arrays
from vqa.answers import UNKNOWN

RULE_PREFIX = "the result is called after MODEL_PREFIX, not after the configuration file"
RULE_UNKNOWN = "<unk> is never an answer"
RULE_SENTENCE = "a record also names its sentence, which tells records of one ref apart"

COPY = "_test_ckpt_Q2AR.model"
RESULT_PATH = "<result-path>"
BOXES = 1e-4


def config_of(case: Case, options: Mapping[str, Any], **more: Any) -> ExperimentConfig:
    """A configuration from the plain keys of a document; a batch size concerns every loop."""
    dotted = {f"DATASET.{key}": value for key, value in options.items() if key != "BATCH_IMAGES"}
    if "BATCH_IMAGES" in options:
        dotted |= {f"{loop}.BATCH_IMAGES": options["BATCH_IMAGES"] for loop in ("VAL", "TEST")}
    return data_config(case, ADAPTERS[case.folder[1]], {**dotted, **more})


def logits_of(case: Case, name: str = "logits.npz") -> dict[str, np.ndarray]:
    return read_arrays(case.path.with_name(name))


def compare_metrics(
    case: Case,
    report: Report,
    config: ExperimentConfig,
    logits: np.ndarray,
    expected: Sequence[Sequence[Any]],
) -> None:
    """Metrics through the validation loop; those that only training reports, through the same loop."""
    task = ADAPTERS[case.folder[1]].task_class(config)
    stub, loader = Stub(task, logits), build_dataloader(task, "val")
    found = evaluate(task, stub, loader, CPU, "train") | evaluate(task, stub, loader, CPU, "val")
    for name, value in zip(*expected, strict=True):
        report.close(f"validation {name}", found[name], value, 1e-6)


def run_vqa(case: Case, report: Report) -> None:
    document, logits = case.document, logits_of(case)
    files = sorted({name for run in document["runs"] for name in run["files"]})
    prefix = name_before(files, COPY)
    config = config_of(case, document["options"], MODEL_PREFIX=prefix)
    suffix = f"_vqa2_{config.DATASET.TEST_IMAGE_SET}.json"
    named = {run["result_name"] for run in document["runs"]}
    # Without --result-name the reference's file is called after the configuration.
    stems = {name.removesuffix(suffix) for name in files if name.endswith(suffix)} - named
    stem = next(iter(stems), "config")
    (stored,) = (path.read_bytes() for path in case.path.parent.glob(f"*{suffix}"))

    def ours(text: str) -> str:
        return text.replace(f"{stem}{suffix}", f"{prefix}{suffix}").replace(RESULT_PATH, "results")

    with entered({f"{stem}.yaml": config}, lambda task: logits["test"]) as folder:
        for number, run in enumerate(document["runs"]):
            name = run["result_name"]
            flags = [] if name is None else ["--result-name", name]
            arguments = ["--cfg", f"{stem}.yaml", "--ckpt", CHECKPOINT, "--result-path", "results", *flags]
            _, logged = command(vqa.test.main, arguments, "")
            found = sorted(path.name for path in (folder / "results").iterdir())
            report.equal(f"[{number}] files", found, sorted(map(ours, run["files"])))
            report.equal(f"[{number}] last line", logged[-1], ours(run["last_line"]))
            written = (folder / "results" / f"{name or prefix}{suffix}").read_bytes()
            compare_answers(report, f"[{number}]", written, stored, document["result"])
    report.skip(f"{stem}{suffix}", RULE_PREFIX)
    for expected in document["val_soft_accuracy"]:
        compare_metrics(case, report, config, logits["val"], expected)


def compare_answers(
    report: Report, what: str, written: bytes, stored: bytes, expected: Sequence[Mapping[str, Any]]
) -> None:
    """The file byte for byte, unless the reference said that it does not know."""
    unknown = [place for place, record in enumerate(expected) if record["answer"] == UNKNOWN]
    for place in unknown:
        report.skip(f"{what} record {place}", RULE_UNKNOWN)
    if not unknown:
        report.equal(f"{what} bytes", written, stored)
    found = json.loads(written)
    report.equal(f"{what} ids", [r["question_id"] for r in found], [r["question_id"] for r in expected])
    pairs = [pair for place, pair in enumerate(zip(found, expected, strict=True)) if place not in unknown]
    report.equal(f"{what} records", [ours for ours, _ in pairs], [theirs for _, theirs in pairs])


def run_refcoco(case: Case, report: Report) -> None:
    document, logits = case.document, logits_of(case)
    # The runs do not say which boxes they choose from: those of the validation.
    (boxes,) = {entry["options"]["VAL_BOXES"] for entry in document["val_metrics"]}
    for run in document["runs"]:
        prefix = name_before(run["files"], COPY)
        config = config_of(case, {"TEST_BOXES": boxes, **run.get("options", {})}, MODEL_PREFIX=prefix)
        name = name_before(run["files"], f"_{config.DATASET.DATASET}_{run['split']}.json")
        with entered({"config.yaml": config}, lambda task, run=run: logits[run["split"]]) as folder:
            arguments = ["--cfg", "config.yaml", "--ckpt", CHECKPOINT, "--split", run["split"]]
            arguments += ["--result-path", "results", *([] if name == prefix else ["--result-name", name])]
            printed, logged = command(refcoco.test.main, arguments, "")
            compare_run(case, report, run, folder / "results", printed + logged)
    for entry in document["val_metrics"]:
        config = config_of(case, entry["options"])
        stored = logits_of(case, "val_metric_logits.npz")["logits"]
        compare_metrics(case, report, config, stored, entry["metrics"])


def compare_run(
    case: Case, report: Report, run: Mapping[str, Any], results: Path, lines: Sequence[str]
) -> None:
    """The files of one split, its records and what the command says."""
    what = run["split"]
    report.equal(f"{what} files", sorted(path.name for path in results.iterdir()), sorted(run["files"]))
    for line in run["lines"]:
        report.equal(f"{what} says {line}", line.replace(RESULT_PATH, results.name) in lines, True)
    (file,) = (name for name in run["files"] if name.endswith(".json"))
    written = json.loads((results / file).read_text(encoding="utf-8"))
    stored = json.loads(case.path.with_name(file).read_text(encoding="utf-8"))
    for kind, records in (("document", run["result"]), ("file", stored)):
        expected = [record["ref_id"] for record in records]
        report.equal(f"{what} refs as in the {kind}", [record["ref_id"] for record in written], expected)
        boxes = [record["box"] for record in written]
        report.close(f"{what} boxes as in the {kind}", boxes, [record["box"] for record in records], BOXES)
    report.skip(f"{what} other keys: {sorted(set(written[0]) - set(stored[0]))}", RULE_SENTENCE)


def _in_eval(case: Case, folder: str, *keys: str) -> bool:
    return case.folder == ("eval", folder) and set(keys) <= set(case.document)


RUNNERS = [
    (lambda c: _in_eval(c, "vqa", "runs", "result"), run_vqa),
    (lambda c: _in_eval(c, "refcoco", "runs", "val_metrics"), run_refcoco),
]
