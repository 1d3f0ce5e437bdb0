"""What all entry points share: arguments, configuration, output folder, log, seeds, building and training.

Sources: train_eval spec, sections 2 and 3.1.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.distributed import process_group as distributed
from common.errors import ConfigError
from common.models.pretrained import read_weights
from common.training import checkpoint

logger = logging.getLogger(__name__)


def run_folder(config: ExperimentConfig, cfg: str | Path, split: Split) -> Path:
    """Returns `{OUTPUT_PATH}/{cfg stem}/{image set}_{split}`."""
    return Path(config.OUTPUT_PATH) / Path(cfg).stem / f"{config.datasets[0].image_set(split)}_{split}"


def output_folder(config: ExperimentConfig, cfg: str | Path, split: Split) -> Path:
    """Makes the `run_folder` and returns it.

    Raises:
        ConfigError: nothing can be written there.
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
    """Puts the folder of `--model-dir` in front of OUTPUT_PATH."""
    return config.model_copy(update={"OUTPUT_PATH": str(Path(folder or "") / config.OUTPUT_PATH)})


def with_seed(config: ExperimentConfig, written: Path | None, new: int) -> ExperimentConfig:
    """Decides the seed that RNG_SEED -1 leaves open, the same for all ranks.

    Args:
        config: the experiment.
        written: checkpoint whose run had the seed, if any.
        new: the seed without one.
    """
    if config.RNG_SEED >= 0:
        return config
    run = checkpoint.config_of(read_weights(written)) if written else {}
    seed = distributed.gather_objects(run.get("RNG_SEED", new))[0]
    logger.info("RNG_SEED -1: this run uses %d", seed)
    return config.model_copy(update={"RNG_SEED": seed})
