"""Loaders and models of a task, and what a checkpoint predicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from common.config_sections import TrainConfig
from common.config_types import Split
from common.data.loader import BatchLoader, build_loader
from common.data.parts import NO_LIMITS, Limits
from common.data.sampling import EpochBatches, JointBatches
from common.engine import checkpoint, distributed
from common.engine.evaluator import predict
from common.engine.precision import Precision
from common.engine.task import PredictingTask, Task
from common.errors import CheckpointError
from common.modeling.pretrained import load_state, read_weights, weights_of

AnyTask = Task[Any, Any, Any]
AnyPredictingTask = PredictingTask[Any, Any, Any]


def build_split(task: AnyTask, split: Split) -> BatchLoader[Any]:
    """Opens a split and builds this process's loader; only training repeats samples to deal out evenly.

    Of further datasets, an evaluation takes as many batches as of the first.
    """
    config = task.config
    loop = config.loop(split)
    training = split == "train"
    datasets = task.build_datasets(split)
    steps = -(-len(datasets[0]) // loop.batch_sizes[0])
    parts = [
        EpochBatches(
            len(dataset) if training else min(len(dataset), steps * size),
            size,
            shuffle=loop.SHUFFLE,
            seed=config.RNG_SEED,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            groups=dataset.groups() if training and config.TRAIN.ASPECT_GROUPING else None,
            pad=training,
            source=source,
        )
        for source, (dataset, size) in enumerate(zip(datasets, loop.batch_sizes, strict=True))
    ]
    return build_loader(
        datasets,
        JointBatches(parts) if len(parts) > 1 else parts[0],
        batch_type=datasets[0].batch_type,
        num_workers=config.NUM_WORKERS_PER_GPU,
        pin_memory=True,
        limits=limits_of(config.TRAIN) if training else NO_LIMITS,
    )


def limits_of(train: TrainConfig) -> Limits:
    """The limits of `TRAIN.MAX_TOKENS` and `TRAIN.MAX_REGIONS`."""
    return Limits(train.MAX_TOKENS, train.MAX_REGIONS)


def load_model(task: AnyTask, path: str | Path, device: torch.device) -> nn.Module:
    """Builds the network and fills it from a checkpoint; no pretrained file is read.

    Raises:
        CheckpointError: the file cannot be read or belongs to another network or task.
    """
    content = read_weights(path)
    weights = weights_of(content, str(path))
    _check_task(task, checkpoint.config_of(content), str(path))
    model = task.build_model()
    load_state(model, weights, task.names, str(path))
    return model.to(device).eval()


def _check_task(task: AnyTask, written: Mapping[str, Any], source: str) -> None:
    """Compares the task of a checkpoint with the configured one, as far as the file tells its own."""
    data = written.get("DATASET")
    theirs = data[0] if isinstance(data, list) and data else data
    if not isinstance(theirs, dict):
        return
    ours = task.config.datasets[0]
    allowed = {key: (getattr(ours, key),) for key in task.telling_keys}
    # Of one task are all data sets that its configuration may name.
    allowed["DATASET"] = get_args(type(ours).model_fields["DATASET"].annotation)
    for key, values in allowed.items():
        if values and key in theirs and theirs[key] not in values:
            raise CheckpointError(
                f"{source}: was trained with DATASET.{key}: {theirs[key]}, which is another task; expected "
                f"{' or '.join(filter(None, values))}"
            )


def predict_split(
    task: AnyPredictingTask, path: Path, split: Split, device: torch.device, precision: Precision
) -> list[dict[str, Any]]:
    """Predictions of a checkpoint for a whole split, in dataset order."""
    loader = build_split(task, split)
    return predict(task, load_model(task, path, device), loader, device, precision)
