"""What every `val.py` and `test.py` shares: device, number format, result folder and result files."""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.engine import checkpoint, distributed
from common.engine.build import AnyPredictingTask, predict_split
from common.engine.precision import Precision
from common.errors import ConfigError, UsageError
from common.files import replace_file

logger = logging.getLogger(__name__)


def prepare_device(
    args: argparse.Namespace, gpus_listed: str | None = None
) -> tuple[torch.device, Precision]:
    """Device and number format that the flags of `evaluation_parser` ask for.

    Args:
        args: the flags.
        gpus_listed: what to use without `--gpus`, as `GPUS` of a yaml file; by default the first GPU, if any.
    """
    if gpus_listed is None:
        gpus_listed = "0" if torch.cuda.is_available() else "cpu"
    device = distributed.prepare(dist_flag=False, slurm=False, gpus_flag=args.gpus, gpus_listed=gpus_listed)
    torch.backends.cudnn.enabled = not args.cudnn_off
    if not distributed.is_main():
        logging.getLogger().setLevel(logging.WARNING)
    return device, Precision(device, "fp16" if args.fp16 else "fp32")


def result_folder(path: str | Path, flag: str = "--result-path") -> Path:
    """Makes the folder that a flag names.

    Raises:
        ConfigError: nothing can be written there.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{flag}: {folder}: cannot write there: {error.strerror}") from error
    return folder


def check_result_file(path: Path, flag: str, sources: Iterable[str | Path | None]) -> None:
    """Checks the file that a flag names, before anything is read.

    Args:
        path: the file; its folder must be there.
        flag: for messages.
        sources: what the result is made from; empty ones are none.

    Raises:
        UsageError: nothing can be written there, or it is one of the sources.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{flag}: {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{flag}: {path}: is a folder; name a file")
    if path.resolve() in [Path(source).resolve() for source in sources if source]:
        raise UsageError(f"{flag}: {path}: would overwrite what it is made from; name another file")
    result_folder(path.parent, flag)


def write_result(path: Path, fill: Callable[[Path], object]) -> None:
    """Lets one process fill a result file, which appears whole or not at all.

    Raises:
        ConfigError: the folder or disk does not take it.
    """
    if not distributed.is_main():
        return
    try:
        replace_file(path, fill)
    except OSError as error:
        raise ConfigError(f"--result-path: {path}: cannot write there: {error.strerror}") from error


def write_json(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records as a json list (`write_result`), in the spelling of the reference: blanks, and ASCII only.

    A number that is not finite, such as a metric of nothing, becomes null.
    """
    known = [
        {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        for record in records
    ]
    write_result(path, lambda temporary: temporary.write_text(json.dumps(known), encoding="ascii"))
    logger.info("result json saved to %s.", path)


def write_test_result(
    task: AnyPredictingTask,
    path: Path,
    folder: Path,
    device: torch.device,
    precision: Precision,
    name: str = "",
) -> Path:
    """Tests a checkpoint, keeps it beside its results, and returns the result file.

    Args:
        task: its network and test split.
        path: the checkpoint.
        folder: of the results.
        device: of the network.
        precision: number format.
        name: first part of the result file's name; `MODEL_PREFIX` by default.
    """
    records = predict_split(task, path, "test", device, precision)
    config = task.config
    result = task.result_file(folder, name or config.MODEL_PREFIX)
    task.write_predictions(records, result)
    copy = folder / f"{config.MODEL_PREFIX}_test_ckpt_{config.datasets[0].TASK}.model"
    if distributed.is_main() and not (copy.exists() and copy.samefile(path)):
        checkpoint.link(path, copy)
    distributed.barrier()  # what follows may read the files
    return result
