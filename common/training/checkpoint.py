"""Files of a run: its folders, its checkpoints, and which checkpoint it resumes from."""

from __future__ import annotations

import logging
import platform
import random
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.config.sections import TrainConfig
from common.distributed import process_group as distributed
from common.errors import CheckpointError
from common.files import ensure_writable_dir, link_file, replace_file
from common.models.official_names import WRAPPER, OfficialNames
from common.models.pretrained import read_weights

logger = logging.getLogger(__name__)


def run_folder(config: ExperimentConfig, cfg: str | Path, split: Split) -> Path:
    """Returns `{OUTPUT_PATH}/{cfg stem}/{image set}_{split}`."""
    return Path(config.OUTPUT_PATH) / Path(cfg).stem / f"{config.datasets[0].image_set(split)}_{split}"


def output_folder(config: ExperimentConfig, cfg: str | Path, split: Split) -> Path:
    """Creates the `run_folder` and returns it.

    Raises:
        ConfigError: the folder is not writable.
    """
    hint = "; choose another or use --model-dir"
    return ensure_writable_dir(run_folder(config, cfg, split), "OUTPUT_PATH", hint)


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


def epoch_file(folder: Path, prefix: str, epoch: int) -> Path:
    """Returns the path of the checkpoint after epoch `epoch` (from 0)."""
    return folder / f"{prefix}-{epoch:04d}.model"


def best_file(folder: Path, prefix: str) -> Path:
    return folder / f"{prefix}-best.model"


def latest_file(folder: Path, prefix: str) -> Path:
    """Returns the path of the newest state of a run, which may be inside an epoch (`CHECKPOINT_STEPS`, signals)."""
    return folder / f"{prefix}-latest.model"


def previous_file(folder: Path, prefix: str) -> Path:
    """Returns the path of the latest state before the newest."""
    return folder / f"{prefix}-previous.model"


def write(state: Mapping[str, Any], path: Path) -> None:
    """Saves a checkpoint atomically: a kill at any moment leaves the old file or the new one.

    The zip container has a checksum of each member, which `read` verifies.

    Raises:
        CheckpointError: the file cannot be written.
    """

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)

    try:
        replace_file(path, fill)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error}") from error


def link(source: Path, target: Path) -> None:
    """Makes `target` a hard link to `source`, or a copy (`link_file`).

    Raises:
        CheckpointError: the file cannot be written.
    """
    try:
        link_file(source, target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot write the checkpoint: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """Verifies the checksums of a checkpoint and reads it.

    Files in PyTorch's format before 1.6, which the reference writes, have no checksums.

    Raises:
        CheckpointError: the file is missing, truncated, damaged or foreign.
    """
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                part = archive.testzip()
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
            raise CheckpointError(f"{path}: damaged: {error}") from None
        if part is not None:
            raise CheckpointError(f"{path}: damaged: the checksum of its member {part} is wrong")
    return read_weights(path)


def config_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration stored in a checkpoint; empty for files of the reference."""
    text = content.get("config")
    try:
        config = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        config = None
    return config if isinstance(config, dict) else {}


def model_state(model: nn.Module, names: OfficialNames) -> dict[str, Tensor]:
    """Returns float32 weights by their names on disk, which start with `module.` if several processes train."""
    state = names.to_official(distributed.unwrap(model).state_dict())
    half = (torch.float16, torch.bfloat16)
    return {_wrapped(name): value.float() if value.dtype in half else value for name, value in state.items()}


def named_parameters(model: nn.Module, names: OfficialNames) -> dict[str, nn.Parameter]:
    """Returns parameters by their names on disk."""
    parameters = distributed.unwrap(model).named_parameters()
    return {_wrapped(names.official(name)): parameter for name, parameter in parameters}


def _wrapped(name: str) -> str:
    return WRAPPER + name if distributed.world_size() > 1 else name


def rng_state() -> dict[str, Any]:
    """Returns the states of this process's global random generators, as values that `weights_only` loading accepts."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def load_rng_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and the libraries that determine results."""
    try:
        own = metadata.version("vl-bert")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "vl-bert": own,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], source: str) -> None:
    """Restores moments and step counters. Learning rates and other options stay as configured.

    Raises:
        CheckpointError: the state belongs to other parameters or parameter groups.
    """
    options = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved_sizes = [len(group["params"]) for group in state["param_groups"]]
    if sizes != saved_sizes:
        raise CheckpointError(
            f"{source}: its optimizer has parameter groups of {saved_sizes} tensors, this configuration "
            f"of {sizes}; resume with the configuration that wrote it (TRAIN.LR_MULT, NETWORK)"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {"exp_avg", "exp_avg_sq"} if "betas" in optimizer.defaults else {"momentum_buffer"}
    for index, entry in state["state"].items():
        if other := set(entry) - own - {"step"}:
            raise CheckpointError(
                f"{source}: its optimizer keeps {', '.join(sorted(other))}, {type(optimizer).__name__} does not; "
                "resume with the TRAIN.OPTIMIZER that wrote it"
            )
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[index].shape:
                raise CheckpointError(
                    f"{source}: optimizer state {key} of parameter {index} has shape {tuple(value.shape)}, "
                    f"the parameter {tuple(parameters[index].shape)}"
                )
    optimizer.load_state_dict(dict(state))
    for group, configured in zip(optimizer.param_groups, options, strict=True):
        group.update(configured)


def resume_epochs(train: TrainConfig, exists: Callable[[int], bool]) -> list[int]:
    """Returns the epochs whose checkpoints a run may resume from, newest first.

    Args:
        train: RESUME, AUTO_RESUME, BEGIN_EPOCH and END_EPOCH.
        exists: whether the checkpoint after an epoch exists.
    """
    if train.RESUME:
        return [train.BEGIN_EPOCH - 1]
    if not train.AUTO_RESUME:
        return []
    return [epoch for epoch in range(train.END_EPOCH - 1, train.BEGIN_EPOCH - 1, -1) if exists(epoch)]


class ResumePoint(NamedTuple):
    """The checkpoint that a run resumes from.

    Attributes:
        path: the file.
        epoch: epoch to resume with.
        batch: batches of it that are done.
        state: content of the file.
    """

    path: Path
    epoch: int
    batch: int
    state: dict[str, Any]


def find_resume_point(folder: Path, prefix: str, train: TrainConfig) -> ResumePoint | None:
    """Returns the checkpoint that a run resumes from; None if it starts from scratch.

    With AUTO_RESUME this is the one furthest in training, of the epochs' files and the latest state. With RESUME it is
    the file of the epoch before BEGIN_EPOCH, or the latest state of a run that started with the same RESUME and has not
    ended. A file that cannot be read is skipped with a warning.

    Raises:
        CheckpointError: RESUME needs a file that cannot be read, or AUTO_RESUME finds only such files; or the
            latest state has no position.
    """
    num_unreadable = 0
    latest: ResumePoint | None = None
    states = (latest_file(folder, prefix), previous_file(folder, prefix))
    for path in states if train.AUTO_RESUME or train.RESUME else ():
        if not path.exists():
            continue
        try:
            state = read(path)
        except CheckpointError as error:
            logger.warning("%s; trying the checkpoint before it", error)
            num_unreadable += 1
            continue
        if not all(isinstance(state.get(key), int) for key in ("epoch", "batch")):
            raise CheckpointError(f"{path}: not the state of a training run: it has no position; remove it")
        # RESUME names an epoch to train again, so the state of another run does not count, nor that of an ended one.
        is_other_run = state["epoch"] >= train.END_EPOCH or state.get("resumed") != train.BEGIN_EPOCH
        if train.BEGIN_EPOCH <= state["epoch"] <= train.END_EPOCH and not (train.RESUME and is_other_run):
            latest = ResumePoint(path, state["epoch"], state["batch"], state)
            break
    for epoch in resume_epochs(train, lambda epoch: epoch_file(folder, prefix, epoch).exists()):
        if latest is not None and (latest.epoch, latest.batch) > (epoch + 1, 0):
            break
        path = epoch_file(folder, prefix, epoch)
        try:
            return ResumePoint(path, epoch + 1, 0, read(path))
        except CheckpointError as error:
            if train.RESUME:
                raise
            logger.warning("%s; trying the checkpoint before it", error)
            num_unreadable += 1
    if latest is None and num_unreadable:
        raise CheckpointError(
            f"{folder}: none of the {num_unreadable} checkpoints {prefix}-*.model can be read; remove them to start "
            "from scratch"
        )
    return latest


def prune(folder: Path, prefix: str, keep: int, epoch: int) -> None:
    """Removes epoch checkpoints up to `epoch`, except for the newest `keep` (`CHECKPOINT_KEEP`; 0 keeps all)."""
    pattern = re.compile(re.escape(prefix) + r"-(\d{4,})\.model")
    epochs = [(int(match[1]), path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    for _, path in sorted(entry for entry in epochs if entry[0] <= epoch)[:-keep]:  # empty if keep is 0
        path.unlink(missing_ok=True)
