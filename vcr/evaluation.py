"""Evaluation of Q->A, QA->R and Q->AR with one or two models, as `vcr/val.py` and `vcr/test.py` run it."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Mapping
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
from common.evaluation.checkpoints import Evaluation
from common.evaluation.outputs import write_result
from common.files import ensure_writable_dir, save_array
from vcr.config import VCRConfig
from vcr.dataset import NUM_CHOICES
from vcr.leaderboard import common_name, merge_result
from vcr.task import VCRTask

logger = logging.getLogger(__name__)

Subtask = Literal["Q2A", "QA2R"]

FLAG_LETTERS: dict[Subtask, str] = {"Q2A": "a", "QA2R": "r"}
DISPLAY_NAMES: dict[Subtask, str] = {"Q2A": "Q->A", "QA2R": "QA->R"}


def parser(description: str, result_path: str) -> argparse.ArgumentParser:
    """Returns the parser of `vcr/val.py` and `vcr/test.py`; `a` is the answer model, `r` the rationale model."""
    result = evaluation_parser(description, result_path)
    for subtask, letter in FLAG_LETTERS.items():
        name = DISPLAY_NAMES[subtask]
        result.add_argument(f"--{letter}-cfg", help=f"yaml file of the {name} model")
        result.add_argument(f"--{letter}-ckpt", help=f"checkpoint of the {name} model")
        result.add_argument(f"--{letter}-bs", type=int, help=f"batch size of the {name} model")
    result.add_argument("--use-cache", action="store_true", help="use result files that exist already")
    return result


def load_evaluations(
    args: argparse.Namespace, split: Split, annotations: str | None
) -> dict[Subtask, Evaluation[VCRTask]]:
    """Sets up the evaluation of each model that the command line names.

    Args:
        args: flags of `parser`.
        split: "val" or "test".
        annotations: annotation file that replaces the one of the configuration.

    Raises:
        UsageError: no model, or a model without configuration or checkpoint.
        ConfigError: see `load_config`; or the output folder is not writable.
    """
    section = split.upper()
    configs: dict[Subtask, VCRConfig] = {}
    for subtask, letter in FLAG_LETTERS.items():
        cfg, checkpoint, batch_size = (getattr(args, f"{letter}_{flag}") for flag in ("cfg", "ckpt", "bs"))
        if cfg is None and checkpoint is None:
            continue
        if cfg is None or checkpoint is None:
            missing = "cfg" if cfg is None else "ckpt"
            raise UsageError(
                f"--{letter}-{missing}: missing; a model needs --{letter}-cfg and --{letter}-ckpt"
            )
        overrides = [*args.set, f"DATASET.TASK={subtask}", f"{section}.SHUFFLE=false"]
        if batch_size is not None:
            overrides.append(f"{section}.BATCH_IMAGES={batch_size}")
        if annotations is not None:
            # A path relative to the current directory; else, as in the reference, a name below DATASET_PATH.
            path = os.path.abspath(annotations) if os.path.exists(annotations) else annotations
            overrides.append(f"DATASET.{section}_ANNOTATION_FILE={json.dumps(path)}")
        configs[subtask] = load_config(VCRConfig, cfg, overrides)
    if not configs:
        raise UsageError("no model: give --a-cfg with --a-ckpt, --r-cfg with --r-ckpt, or all four")
    output_dir = ensure_writable_dir(args.result_path, "--result-path")
    device, precision = setup_eval(args)
    return {
        subtask: Evaluation(
            VCRTask(config),
            Path(getattr(args, f"{FLAG_LETTERS[subtask]}_ckpt")),
            output_dir,
            device,
            precision,
        )
        for subtask, config in configs.items()
    }


def validate(args: argparse.Namespace) -> dict[str, float]:
    """Runs `vcr/val.py`: writes the logits of every model and returns the accuracies in percent."""
    correct: dict[Subtask, NDArray[np.bool_]] = {}
    for subtask, evaluation in load_evaluations(args, "val", args.annot).items():
        path = evaluation.output_dir / f"{args.result_name}_{FLAG_LETTERS[subtask]}_pred.npy"
        if _use_cache(args, path):
            labels = val_labels(evaluation.task)
            try:
                logits = np.load(path, allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise DataError(f"{path}: not a result of vcr/val.py; leave out --use-cache") from error
            if logits.shape != (len(labels), NUM_CHOICES):
                raise DataError(
                    f"{path}: {logits.shape} logits for {len(labels)} questions; leave out --use-cache"
                )
        else:
            records = evaluation.predict("val")
            logits = np.array([record["logits"] for record in records], dtype=np.float64)
            labels = np.array([record["label"] for record in records])
            write_result(path, partial(save_array, values=logits))
        correct[subtask] = logits.argmax(axis=1) == labels
    return accuracies(correct)


def val_labels(task: VCRTask) -> NDArray[np.int64]:
    """Returns the correct choices of the validation split, in dataset order."""
    label = "answer_label" if task.config.DATASET.TASK == "Q2A" else "rationale_label"
    return np.array([getattr(record, label) for record in task.build_dataset("val").records])


def accuracies(correct: Mapping[Subtask, NDArray[np.bool_]]) -> dict[str, float]:
    """Returns percentages of correct answers and rationales and, given both, of questions with both correct."""
    result = {
        name: 100 * float(correct[subtask].mean())
        for subtask, name in DISPLAY_NAMES.items()
        if subtask in correct
    }
    if len(correct) == 2:
        answers, rationales = correct["Q2A"], correct["QA2R"]
        if len(answers) != len(rationales):
            raise DataError(
                f"{len(answers)} answers but {len(rationales)} rationales: not the same questions"
            )
        result["Q->AR"] = 100 * float((answers & rationales).mean())
    return result


def write_test_files(args: argparse.Namespace) -> list[Path]:
    """Runs `vcr/test.py`: writes the probabilities of every model and, given both, the leaderboard file."""
    evaluations = load_evaluations(args, "test", args.test_file).values()
    prefixes = [evaluation.task.config.MODEL_PREFIX for evaluation in evaluations]
    written = []
    for evaluation, prefix in zip(evaluations, prefixes, strict=True):
        path = evaluation.task.result_file(evaluation.output_dir, args.result_name or prefix)
        if _use_cache(args, path):
            logger.info("Cache found in %s, skip test!", path)
        else:
            evaluation.write_test_result(args.result_name or "")
        written.append(path)
    if len(written) == 2:
        answers, rationales = written
        merged = answers.parent / f"{args.result_name or common_name(prefixes)}_test_result_Q2AR.csv"
        if distributed.is_main():
            merge_result(answers, rationales, merged)
        written.append(merged)
    return written


def _use_cache(args: argparse.Namespace, path: Path) -> bool:
    """Whether `--use-cache` applies. Collective: rank 0 decides, since it may write the file in the meantime."""
    return args.use_cache and distributed.gather_objects(path.is_file())[0]
