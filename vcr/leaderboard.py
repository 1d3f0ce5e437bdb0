"""Q->A, QA->R and Q->AR from two models: accuracies on val, leaderboard files on test (train_eval spec, 7.2, 7.3)."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from common.config import load_config
from common.engine.evaluator import predict
from common.engine.main import build_split, evaluation_parser, load_model
from common.engine.precision import Precision
from common.engine.results import keep_checkpoint, prepare_device, result_folder, write_result
from common.engine.task import Split
from common.errors import DataError, UsageError
from vcr.config import VCRConfig
from vcr.dataset import NUM_CHOICES, VCRDataset
from vcr.task import VCRTask

logger = logging.getLogger(__name__)

Part = Literal["Q2A", "QA2R"]
COLUMNS: dict[Part, list[str]] = {
    "Q2A": [f"answer_{choice}" for choice in range(NUM_CHOICES)],
    "QA2R": [
        f"rationale_conditioned_on_a{answer}_{choice}"
        for answer in range(NUM_CHOICES)
        for choice in range(NUM_CHOICES)
    ],
}


@dataclass(frozen=True)
class Run:
    """One of the two models of an evaluation.

    Attributes:
        part: what it answers.
        task: under its configuration.
        checkpoint: its weights.
    """

    part: Part
    task: VCRTask
    checkpoint: Path

    def records(self, split: Split, device: torch.device, precision: Precision) -> list[dict[str, Any]]:
        """Predictions of the whole split in dataset order."""
        loader = build_split(self.task, split)
        model = load_model(self.task, self.checkpoint, device)
        return predict(self.task, model, loader, device, precision)


def labels_of(dataset: VCRDataset, part: Part) -> NDArray[np.int64]:
    """Right choices of all questions, in order."""
    name = "answer_label" if part == "Q2A" else "rationale_label"
    return np.array([getattr(record, name) for record in dataset.records])


def parser(description: str, result_path: str) -> argparse.ArgumentParser:
    """Flags that `vcr/val.py` and `vcr/test.py` share; `a` is the answer model, `r` the rationale model."""
    result = evaluation_parser(description, result_path)
    for letter, name in (("a", "Q->A"), ("r", "QA->R")):
        result.add_argument(f"--{letter}-cfg", help=f"yaml file of the {name} model")
        result.add_argument(f"--{letter}-ckpt", help=f"checkpoint of the {name} model")
        result.add_argument(f"--{letter}-bs", type=int, help=f"batch size of the {name} model")
    result.add_argument("--use-cache", action="store_true", help="use result files that exist already")
    return result


def runs(args: argparse.Namespace, split: Split, annotations: str | None) -> list[Run]:
    """The models that the command line names.

    Args:
        args: of `parser`.
        split: val or test.
        annotations: annotation file in place of the configured one.

    Raises:
        UsageError: neither model is given, or only one half of one.
    """
    found = []
    for letter, part in (("a", "Q2A"), ("r", "QA2R")):
        cfg, checkpoint = getattr(args, f"{letter}_cfg"), getattr(args, f"{letter}_ckpt")
        if cfg is None and checkpoint is None:
            continue
        if cfg is None or checkpoint is None:
            lacking = "cfg" if cfg is None else "ckpt"
            raise UsageError(
                f"--{letter}-{lacking}: missing; a model needs --{letter}-cfg and --{letter}-ckpt"
            )
        section = split.upper()
        overrides = [*args.set, f"DATASET.TASK={part}", f"{section}.SHUFFLE=false"]
        if (size := getattr(args, f"{letter}_bs")) is not None:
            overrides.append(f"{section}.BATCH_IMAGES={size}")
        if annotations is not None:
            # A path from here, or as in the reference a name below DATASET_PATH.
            path = os.path.abspath(annotations) if os.path.exists(annotations) else annotations
            overrides.append(f"DATASET.{section}_ANNOTATION_FILE={json.dumps(path)}")
        config = load_config(VCRConfig, cfg, overrides)
        found.append(Run("Q2A" if letter == "a" else "QA2R", VCRTask(config), Path(checkpoint)))
    if not found:
        raise UsageError("no model: give --a-cfg with --a-ckpt, --r-cfg with --r-ckpt, or all four")
    return found


def validate(args: argparse.Namespace) -> dict[str, float]:
    """Runs `vcr/val.py`: saves the logits of every model and returns the accuracies in percent."""
    evaluated = runs(args, "val", args.annot)
    folder = result_folder(args.result_path)
    device, precision = prepare_device(args)
    right: dict[Part, NDArray[np.bool_]] = {}
    for run in evaluated:
        path = folder / f"{args.result_name}_{'a' if run.part == 'Q2A' else 'r'}_pred.npy"
        if args.use_cache and path.is_file():
            logits, labels = _cached(path), labels_of(run.task.build_dataset("val"), run.part)
            if logits.shape != (len(labels), NUM_CHOICES):
                raise DataError(
                    f"{path}: {logits.shape} logits for {len(labels)} questions; leave out --use-cache"
                )
        else:
            records = run.records("val", device, precision)
            logits = np.array([record["logits"] for record in records], dtype=np.float64)
            labels = np.array([record["label"] for record in records])
            write_result(path, _save(logits))
        right[run.part] = logits.argmax(axis=1) == labels
    return accuracies(right)


def accuracies(right: Mapping[Part, NDArray[np.bool_]]) -> dict[str, float]:
    """Percent of right answers, right rationales and, with both, of questions where both are right."""
    result = {}
    for part, name in (("Q2A", "Q->A"), ("QA2R", "QA->R")):
        if part in right:
            result[name] = 100 * float(right[part].mean())  # type: ignore[index]
    if len(right) == 2:
        both = right["Q2A"], right["QA2R"]
        if len(both[0]) != len(both[1]):
            raise DataError(f"{len(both[0])} answers and {len(both[1])} rationales: not the same questions")
        result["Q->AR"] = 100 * float((both[0] & both[1]).mean())
    return result


def write_test_files(args: argparse.Namespace) -> list[Path]:
    """Runs `vcr/test.py`: writes probabilities of every model, and the leaderboard file with both."""
    evaluated = runs(args, "test", args.test_file)
    folder = result_folder(args.result_path)
    device, precision = prepare_device(args)
    written = []
    for run in evaluated:
        prefix = run.task.config.MODEL_PREFIX
        path = folder / f"{args.result_name or prefix}_test_result_{run.part}.csv"
        written.append(path)
        if args.use_cache and path.is_file():
            logger.info("Cache found in %s, skip test!", path)
            continue
        test_part(run, path, device, precision)
    if len(written) == 2:
        name = args.result_name or common_name([run.task.config.MODEL_PREFIX for run in evaluated])
        merged = folder / f"{name}_test_result_Q2AR.csv"
        merge_result(written[0], written[1], merged)
        written.append(merged)
    return written


def test_best(task: VCRTask, checkpoint: Path, folder: Path, device: torch.device) -> None:
    """Tests a model that was just trained (`--do-test`)."""
    run = Run("Q2A" if task.config.DATASET.TASK == "Q2A" else "QA2R", task, checkpoint)
    path = folder / f"{task.config.MODEL_PREFIX}_test_result_{run.part}.csv"
    test_part(run, path, device, Precision(device, task.config.TRAIN.FP16))


def test_part(run: Run, csv: Path, device: torch.device, precision: Precision) -> None:
    """Writes the test result of one model, and keeps its checkpoint beside it."""
    records = run.records("test", device, precision)
    name = f"{run.task.config.MODEL_PREFIX}_test_ckpt_{run.part}.model"
    keep_checkpoint(run.checkpoint, csv.with_name(name))
    write_part(records, run.part, csv)


def write_part(records: Sequence[Mapping[str, Any]], part: Part, csv: Path) -> None:
    """Writes the probabilities of one model as `.npy` and as `.csv`, one row per question in dataset order."""
    values = np.array([record["probabilities"] for record in records], dtype=np.float32)
    npy = csv.with_suffix(".npy")
    write_result(npy, _save(values))
    logger.info("result npy saved to %s.", npy)
    table = pd.DataFrame(values, columns=COLUMNS[part])
    table.insert(0, "annot_id", [record["annot_id"] for record in records])
    write_result(csv, lambda temporary: table.to_csv(temporary, index=False))
    logger.info("result csv saved to %s.", csv)


def merge_result(q2a: Path, qa2r: Path, merged: Path) -> None:
    """Joins both files on `annot_id`, in the order of the answers.

    Raises:
        DataError: the files do not hold the same questions.
    """
    tables = []
    for path in (q2a, qa2r):
        try:
            tables.append(pd.read_csv(path))
        except (ValueError, pd.errors.ParserError) as error:
            raise DataError(f"{path}: not a result file: {error}") from error
    if set(tables[0]["annot_id"]) != set(tables[1]["annot_id"]):
        raise DataError(f"{q2a} and {qa2r} do not hold the same questions; test both on one file")
    joined = tables[0].merge(tables[1], on="annot_id", how="inner")
    write_result(merged, lambda temporary: joined.to_csv(temporary, index=False))
    logger.info("merged result csv saved to %s.", merged)


def common_name(prefixes: Sequence[str]) -> str:
    """What both model prefixes begin with, as a name: `x_a_res101` and `x_r_res101` give `x`."""
    return os.path.commonprefix(list(prefixes)).rstrip("_-.") or "vcr"  # noqa: RUF071 - of letters, not folders


def _cached(path: Path) -> NDArray[np.float64]:
    try:
        values: NDArray[np.float64] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a result of vcr/val.py; leave out --use-cache") from error
    return values


def _save(values: NDArray[Any]) -> Callable[[Path], None]:
    def fill(path: Path) -> None:
        with path.open("wb") as file:  # given a name, NumPy would append its suffix
            np.save(file, values)

    return fill
