"""Flags and set-up of the `val.py` and `test.py` commands."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TypeVar

import torch

from common.cli.run import parser
from common.config.fields import Split
from common.config.schema import load_config
from common.config.yaml_tree import load_yaml
from common.distributed import process_group as distributed
from common.evaluation.checkpoints import Evaluation
from common.files import ensure_writable_dir
from common.models.pretrained import read_weights
from common.training import checkpoint
from common.training.checkpoint import output_folder, run_folder, with_output_root, with_seed
from common.training.precision import Precision
from common.training.task import AnyTask

TaskT = TypeVar("TaskT", bound=AnyTask)


def evaluation_parser(description: str, result_path: str | None = None) -> argparse.ArgumentParser:
    """Returns a parser with the flags of every `val.py` and `test.py`."""
    result = parser(description)
    result.add_argument("--gpus", type=int, nargs="+", metavar="N", help="GPUs to use; -1 for the CPU")
    result.add_argument("--fp16", action="store_true", help="compute in half precision")
    result.add_argument("--result-path", default=result_path, help="folder of the result files")
    result.add_argument("--result-name", help="first part of their names (default: MODEL_PREFIX)")
    return result


def checkpoint_parser(description: str, split_help: str) -> argparse.ArgumentParser:
    """Returns a parser with the flags of a command that evaluates one checkpoint (`load_evaluation`).

    Args:
        description: what the command does.
        split_help: the values of `--split`.
    """
    result = evaluation_parser(description)
    result.add_argument("--cfg", required=True, help="yaml file of the experiment")
    result.add_argument("--ckpt", help="checkpoint (default: the best one of the training run)")
    result.add_argument("--bs", type=int, help="batch size")
    result.add_argument("--model-dir", help="root folder of OUTPUT_PATH")
    result.add_argument("--split", help=split_help)
    return result


def load_evaluation(
    args: argparse.Namespace, task_class: type[TaskT], split: Split, use_config_gpus: bool = True
) -> Evaluation[TaskT]:
    """Sets up the evaluation that the flags of `checkpoint_parser` describe.

    Args:
        args: the flags. `--split` overrides the image set of `split`; of several datasets, that of the first.
        task_class: the task.
        split: section of the configuration to use, "val" or "test".
        use_config_gpus: whether `GPUS` of the yaml file applies without `--gpus`.

    Raises:
        ConfigError: see `load_config`; or the output folder is not writable.
        CheckpointError: see `read_weights`.
    """
    section = split.upper()
    overrides = [*args.set, f"{section}.SHUFFLE=false"]
    tree = load_yaml(Path(args.cfg))
    datasets = tree.values.get("DATASET")
    count = len(datasets) if isinstance(datasets, list) else 0
    if args.split is not None:
        first = "DATASET.0" if count else "DATASET"
        overrides.append(f"{first}.{section}_IMAGE_SET={json.dumps(args.split)}")
    if args.bs is not None:
        overrides.append(f"{section}.BATCH_IMAGES={[args.bs] * count if count else args.bs}")
    config = load_config(task_class.config_class, args.cfg, overrides, tree)
    config = with_output_root(config, args.model_dir)

    if args.result_path:
        output_dir = ensure_writable_dir(args.result_path, "--result-path")
    else:
        output_dir = output_folder(config, args.cfg, split)
    # May restart the command with one process per GPU, so it comes before anything slow.
    device, precision = setup_eval(args, config.GPUS if use_config_gpus else None)
    path = checkpoint.best_file(run_folder(config, args.cfg, "train"), config.MODEL_PREFIX)
    if args.ckpt is not None:
        path = Path(args.ckpt)
    content = None
    if config.RNG_SEED < 0:
        # Use the seed of the training run, so that random choices are those of its own validation.
        content = read_weights(path)
        config = with_seed(config, checkpoint.config_of(content), config.RNG_SEED)
    return Evaluation(task_class(config), path, output_dir, device, precision, content)


def setup_eval(args: argparse.Namespace, gpus_listed: str | None = None) -> tuple[torch.device, Precision]:
    """Returns the device and precision that the flags of `evaluation_parser` select.

    Args:
        args: the flags.
        gpus_listed: GPUs to use without `--gpus`, spelled as in `GPUS` of a yaml file; the first GPU if None.
    """
    if gpus_listed is None:
        gpus_listed = "0" if torch.cuda.is_available() else "cpu"
    device = distributed.setup_device(
        dist_flag=False, slurm=False, gpus_flag=args.gpus, gpus_listed=gpus_listed
    )
    torch.backends.cudnn.enabled = not args.cudnn_off
    if not distributed.is_main():
        logging.getLogger().setLevel(logging.WARNING)
    return device, Precision(device, "fp16" if args.fp16 else "fp32")
