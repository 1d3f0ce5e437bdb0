"""Output folders of a run, and the settings that are decided when it starts."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.distributed import process_group as distributed
from common.errors import ConfigError

logger = logging.getLogger(__name__)


def run_folder(config: ExperimentConfig, cfg: str | Path, split: Split) -> Path:
    """Returns `{OUTPUT_PATH}/{cfg stem}/{image set}_{split}`."""
    return Path(config.OUTPUT_PATH) / Path(cfg).stem / f"{config.datasets[0].image_set(split)}_{split}"


def output_folder(config: ExperimentConfig, cfg: str | Path, split: Split) -> Path:
    """Creates the `run_folder` and returns it.

    Raises:
        ConfigError: the folder is not writable.
    """
    folder = run_folder(config, cfg, split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_PATH: {folder}: cannot write there: {error.strerror}; choose another or use --model-dir"
        ) from error
    return folder


def with_output_root(config: ExperimentConfig, folder: str | None) -> ExperimentConfig:
    """Prepends the folder of `--model-dir` to OUTPUT_PATH."""
    return config.model_copy(update={"OUTPUT_PATH": str(Path(folder or "") / config.OUTPUT_PATH)})


def with_seed(config: ExperimentConfig, saved: Mapping[str, Any], default: int) -> ExperimentConfig:
    """Replaces RNG_SEED -1 by a seed that all ranks share. Collective.

    Args:
        config: the experiment.
        saved: configuration in the checkpoint that is used; its seed is kept. Empty if there is none.
        default: seed without a saved one; that of rank 0 counts.
    """
    if config.RNG_SEED >= 0:
        return config
    seed = distributed.gather_objects(saved.get("RNG_SEED", default))[0]
    logger.info("RNG_SEED -1: this run uses %d", seed)
    return config.model_copy(update={"RNG_SEED": seed})
