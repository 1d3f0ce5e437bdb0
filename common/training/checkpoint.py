"""Checkpoint files: written whole or not at all, found again, put back. Source: train_eval spec, 3.6, 3.7."""

from __future__ import annotations

import logging
import math
import platform
import random
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from common.config.sections import TrainConfig
from common.distributed import process_group as distributed
from common.errors import CheckpointError
from common.files import link_file, replace_file
from common.models.official_names import WRAPPER, OfficialNames
from common.models.pretrained import read_weights

logger = logging.getLogger(__name__)


def epoch_file(folder: Path, prefix: str, epoch: int) -> Path:
    """Path of the checkpoint after epoch number `epoch` (from 0)."""
    return folder / f"{prefix}-{epoch:04d}.model"


def best_file(folder: Path, prefix: str) -> Path:
    """Path of the checkpoint with the best validation result."""
    return folder / f"{prefix}-best.model"


def latest_file(folder: Path, prefix: str) -> Path:
    """Path of the newest state of a run, also inside an epoch (`CHECKPOINT_STEPS`, or saved on a signal)."""
    return folder / f"{prefix}-latest.model"


def previous_file(folder: Path, prefix: str) -> Path:
    """Path of what was the latest state before."""
    return folder / f"{prefix}-previous.model"


def write(state: Mapping[str, Any], path: Path) -> None:
    """Saves `state`; a kill at any moment leaves the old file or the new one.

    The file carries a checksum of each of its parts, by which `read` knows a damaged one.

    Raises:
        CheckpointError: the folder or disk does not take it.
    """

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save(dict(state), file)

    try:
        replace_file(path, fill)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"{path}: cannot write the checkpoint: {error}") from error


def link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source` (`link_file`).

    Raises:
        CheckpointError: the folder or disk does not take it.
    """
    try:
        link_file(source, target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot write the checkpoint: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint as `read_weights` does, after comparing the checksums of its parts.

    Files of the reference implementation in PyTorch's old format have none.

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
            raise CheckpointError(f"{path}: damaged: the checksum of its part {part} is wrong")
    return read_weights(path)


def config_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration that a checkpoint carries; empty for files of the reference implementation."""
    text = content.get("config")
    try:
        found = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}


def model_state(model: nn.Module, names: OfficialNames) -> dict[str, Tensor]:
    """Weights in float32 under the names on disk, with `module.` in front when several processes train."""
    state = names.to_official(distributed.unwrap(model).state_dict())
    half = (torch.float16, torch.bfloat16)
    return {_wrapped(name): value.float() if value.dtype in half else value for name, value in state.items()}


def named_parameters(model: nn.Module, names: OfficialNames) -> dict[str, nn.Parameter]:
    """Parameters by the names that they have on disk."""
    parameters = distributed.unwrap(model).named_parameters()
    return {_wrapped(names.official(name)): parameter for name, parameter in parameters}


def _wrapped(name: str) -> str:
    return WRAPPER + name if distributed.world_size() > 1 else name


def rng_state() -> dict[str, Any]:
    """States of the global generators of this process, as plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def load_rng_state(state: Mapping[str, Any]) -> None:
    """Restores `rng_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def versions() -> dict[str, str]:
    """Versions of what takes part in a run."""
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
    """Restores moments and counters; rates and other options stay as the configuration says.

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
    """Epochs whose checkpoints a run may continue from, newest first (spec section 3.7).

    Args:
        train: RESUME, AUTO_RESUME, BEGIN_EPOCH and END_EPOCH.
        exists: tells whether the checkpoint after an epoch exists.
    """
    if train.RESUME:
        return [train.BEGIN_EPOCH - 1]
    if not train.AUTO_RESUME:
        return []
    return [epoch for epoch in range(train.END_EPOCH - 1, train.BEGIN_EPOCH - 1, -1) if exists(epoch)]


def find(folder: Path, prefix: str, train: TrainConfig) -> tuple[Path, int] | None:
    """Returns the checkpoint that a run continues from and the epoch it ended, None for a fresh start.

    With AUTO_RESUME that is the one furthest in training, of the epochs' files and the latest state; with RESUME the
    epoch's file that it names, or the latest state of a run that began there and has not ended. One that cannot be
    read is passed over with a warning, for the one before it.

    Raises:
        CheckpointError: RESUME names a file that cannot be read, or AUTO_RESUME finds only such files; or the
            latest state is not one of a training run.
    """
    epochs = resume_epochs(train, lambda epoch: epoch_file(folder, prefix, epoch).exists())
    places = [((epoch + 1.0, 0.0), epoch_file(folder, prefix, epoch)) for epoch in epochs]
    if train.AUTO_RESUME or train.RESUME:
        states = [
            path for path in (latest_file(folder, prefix), previous_file(folder, prefix)) if path.exists()
        ]
        places += [
            (place, path)
            for place, path in ((_place(path, train), path) for path in states)
            if train.BEGIN_EPOCH <= place[0] <= train.END_EPOCH or place == _UNKNOWN
        ]
    # The order is stable: of equally far files the first listed, an epoch's, is taken.
    for place, path in sorted(places, key=lambda entry: entry[0], reverse=True):
        try:
            read(path)
        except CheckpointError as error:
            if train.RESUME and place == (train.BEGIN_EPOCH, 0):
                raise
            logger.warning("%s; trying the checkpoint before it", error)
            continue
        if place == _UNKNOWN:
            raise CheckpointError(f"{path}: not a state of a training run, it has no position; remove it")
        return path, int(place[0]) - 1
    if places:
        raise CheckpointError(
            f"{folder}: none of the {len(places)} checkpoints {prefix}-*.model can be read; "
            "remove them to start anew"
        )
    return None


_UNKNOWN = (math.inf, math.inf)


_ELSEWHERE = (-1.0, 0.0)


def _place(path: Path, train: TrainConfig) -> tuple[float, float]:
    """Epoch and batch of a saved state, as far as can be told without comparing checksums."""
    try:
        state = read_weights(path)
        ended = state["epoch"] >= train.END_EPOCH
        if train.RESUME and (ended or state.get("resumed") != train.BEGIN_EPOCH):
            return _ELSEWHERE  # RESUME asks for this epoch anew
        return float(state["epoch"]), float(state["batch"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return _UNKNOWN


def prune(folder: Path, prefix: str, keep: int, epoch: int) -> None:
    """Removes the files of all epochs up to `epoch` but the newest `keep` (`CHECKPOINT_KEEP`; 0 = all stay)."""
    pattern = re.compile(re.escape(prefix) + r"-(\d{4,})\.model")
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    for _, path in sorted(entry for entry in found if entry[0] <= epoch)[:-keep]:  # none where keep is 0
        path.unlink(missing_ok=True)
