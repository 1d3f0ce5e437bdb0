"""Q->A, QA->R and Q->AR from one model or two: what `vcr/val.py` and `vcr/test.py` do (train_eval spec, 7.2, 7.3)."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.cli.evaluate import evaluation_parser, setup_eval
from common.config.fields import Split
from common.config.schema import load_config
from common.distributed import process_group as distributed
from common.errors import DataError, UsageError
from common.evaluation.checkpoints import predict_split, run_test
from common.evaluation.outputs import write_result
from common.files import ensure_writable_dir, save_array
from vcr.config import VCRConfig
from vcr.dataset import NUM_CHOICES
from vcr.leaderboard import common_name, merge_result
from vcr.task import VCRTask

logger = logging.getLogger(__name__)

Part = Literal["Q2A", "QA2R"]


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

    def labels(self) -> NDArray[np.int64]:
        """Right choices of the validation split, in order."""
        name = "answer_label" if self.part == "Q2A" else "rationale_label"
        return np.array([getattr(record, name) for record in self.task.build_dataset("val").records])


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
    folder = ensure_writable_dir(args.result_path, "--result-path")
    device, precision = setup_eval(args)
    right: dict[Part, NDArray[np.bool_]] = {}
    for run in evaluated:
        path = folder / f"{args.result_name}_{'a' if run.part == 'Q2A' else 'r'}_pred.npy"
        if _use_cache(args, path):
            logits, labels = _cached(path), run.labels()
            if logits.shape != (len(labels), NUM_CHOICES):
                raise DataError(
                    f"{path}: {logits.shape} logits for {len(labels)} questions; leave out --use-cache"
                )
        else:
            records = predict_split(run.task, run.checkpoint, "val", device, precision)
            logits = np.array([record["logits"] for record in records], dtype=np.float64)
            labels = np.array([record["label"] for record in records])
            write_result(path, partial(save_array, values=logits))
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
    folder = ensure_writable_dir(args.result_path, "--result-path")
    device, precision = setup_eval(args)
    written = []
    for run in evaluated:
        path = run.task.result_file(folder, args.result_name or run.task.config.MODEL_PREFIX)
        written.append(path)
        if _use_cache(args, path):
            logger.info("Cache found in %s, skip test!", path)
            continue
        run_test(run.task, run.checkpoint, folder, device, precision, args.result_name or "")
    if len(written) == 2:
        name = args.result_name or common_name([run.task.config.MODEL_PREFIX for run in evaluated])
        merged = folder / f"{name}_test_result_Q2AR.csv"
        if distributed.is_main():
            merge_result(written[0], written[1], merged)
        written.append(merged)
    return written


def _use_cache(args: argparse.Namespace, path: Path) -> bool:
    """Whether `--use-cache` finds a result; one process decides, since it may write the file meanwhile."""
    return args.use_cache and distributed.gather_objects(path.is_file())[0]


def _cached(path: Path) -> NDArray[np.float64]:
    try:
        values: NDArray[np.float64] = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a result of vcr/val.py; leave out --use-cache") from error
    return values
