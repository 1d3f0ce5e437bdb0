"""What all entry points share: arguments, configuration, output folder, log, seeds, building and training.

Sources: train_eval spec, sections 2 and 3.1.
"""

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
from common.files import ensure_writable_dir
from common.models.pretrained import read_weights
from common.training import checkpoint
from common.training.checkpoint import output_folder, run_folder, with_output_root, with_seed
from common.training.precision import Precision
from common.training.task import AnyTask

TaskT = TypeVar("TaskT", bound=AnyTask)


def evaluation_parser(description: str, result_path: str | None = None) -> argparse.ArgumentParser:
    """Returns the flags that every `val.py` and `test.py` has; tasks add theirs for configurations."""
    result = parser(description)
    result.add_argument("--gpus", type=int, nargs="+", metavar="N", help="GPUs to use; -1 for the CPU")
    result.add_argument("--fp16", action="store_true", help="compute in half precision")
    result.add_argument("--result-path", default=result_path, help="folder of the result files")
    result.add_argument("--result-name", help="first part of their names (default: MODEL_PREFIX)")
    return result


def checkpoint_parser(description: str, split_help: str) -> argparse.ArgumentParser:
    """Returns the flags of a `val.py` or `test.py` that runs one checkpoint (`load_evaluation`).

    Args:
        description: what the command does.
        split_help: what `--split` names.
    """
    result = evaluation_parser(description)
    result.add_argument("--cfg", required=True, help="yaml file of the experiment")
    result.add_argument("--ckpt", help="checkpoint (default: the best one of the training run)")
    result.add_argument("--bs", type=int, help="batch size")
    result.add_argument("--model-dir", help="folder in front of OUTPUT_PATH")
    result.add_argument("--split", help=split_help)
    return result


def load_evaluation(
    args: argparse.Namespace, task_class: type[TaskT], split: Split
) -> tuple[TaskT, Path, Path]:
    """Reads `--cfg` under the other flags of `checkpoint_parser`.

    Args:
        args: the flags. `--split` replaces the image set of `split`, of several datasets that of the first.
        task_class: of the model.
        split: section of the configuration, val or test, whose data are run.

    Returns:
        The task under the configuration that the flags describe, the checkpoint, and the folder of the results.

    Raises:
        ConfigError: see `load_config`; also for a result folder where nothing can be written.
    """
    section = split.upper()
    overrides = [*args.set, f"{section}.SHUFFLE=false"]
    datasets = load_yaml(Path(args.cfg)).values.get("DATASET")
    count = len(datasets) if isinstance(datasets, list) else 0
    if args.split is not None:
        first = "DATASET.0" if count else "DATASET"
        overrides.append(f"{first}.{section}_IMAGE_SET={json.dumps(args.split)}")
    if args.bs is not None:
        overrides.append(f"{section}.BATCH_IMAGES={[args.bs] * count if count else args.bs}")
    config = with_output_root(load_config(task_class.config_class, args.cfg, overrides), args.model_dir)
    trained = run_folder(config, args.cfg, "train")
    path = Path(args.ckpt) if args.ckpt is not None else checkpoint.best_file(trained, config.MODEL_PREFIX)
    folder = (
        ensure_writable_dir(args.result_path, "--result-path")
        if args.result_path
        else output_folder(config, args.cfg, split)
    )
    # Use the random decisions of the run's own validation.
    saved = checkpoint.config_of(read_weights(path)) if config.RNG_SEED < 0 else {}
    return task_class(with_seed(config, saved, config.RNG_SEED)), path, folder


def setup_eval(args: argparse.Namespace, gpus_listed: str | None = None) -> tuple[torch.device, Precision]:
    """Device and number format that the flags of `evaluation_parser` ask for.

    Args:
        args: the flags.
        gpus_listed: what to use without `--gpus`, as `GPUS` of a yaml file; by default the first GPU, if any.
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
