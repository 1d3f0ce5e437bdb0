"""What every `val.py` and `test.py` shares: device, number format, result folder and result files."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch

from common.engine import distributed
from common.engine.precision import Precision
from common.errors import ConfigError
from common.files import link_file, replace_file

logger = logging.getLogger(__name__)


def prepare_device(args: argparse.Namespace) -> tuple[torch.device, Precision]:
    """Device and number format that the flags of `evaluation_parser` ask for."""
    listed = "0" if torch.cuda.is_available() else "cpu"
    device = distributed.prepare(dist_flag=False, slurm=False, gpus_flag=args.gpus, gpus_listed=listed)
    torch.backends.cudnn.enabled = not args.cudnn_off
    return device, Precision(device, args.fp16)


def result_folder(path: str | Path) -> Path:
    """Makes the folder of `--result-path`.

    Raises:
        ConfigError: nothing can be written there.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--result-path: {folder}: cannot write there: {error.strerror}") from error
    return folder


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
    """Writes records as a json list (`write_result`)."""
    write_result(path, lambda temporary: temporary.write_bytes(orjson.dumps(list(records))))
    logger.info("result json saved to %s.", path)


def keep_checkpoint(source: Path, copy: Path) -> None:
    """Keeps the tested checkpoint beside its results, without a second copy where the file system can."""
    if distributed.is_main() and not (copy.exists() and copy.samefile(source)):
        link_file(source, copy)
