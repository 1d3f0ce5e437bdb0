"""What every `val.py` and `test.py` shares: device, number format, result folder and result files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from common.config.fields import Split
from common.distributed import process_group as distributed
from common.errors import CheckpointError
from common.evaluation.evaluator import predict
from common.models.pretrained import load_state, read_weights, weights_of
from common.training import checkpoint
from common.training.precision import Precision
from common.training.task import AnyPredictingTask, AnyTask, build_dataloader


def run_test(
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


def load_model(task: AnyTask, path: str | Path, device: torch.device) -> nn.Module:
    """Builds the network and fills it from a checkpoint; no pretrained file is read.

    Raises:
        CheckpointError: the file cannot be read or belongs to another network or task.
    """
    content = read_weights(path)
    weights = weights_of(content, str(path))
    _check_task(task, checkpoint.config_of(content), str(path))
    model = task.build_model()
    load_state(model, weights, task.state_dict_names, str(path))
    return model.to(device).eval()


def _check_task(task: AnyTask, written: Mapping[str, Any], source: str) -> None:
    """Compares the task of a checkpoint with the configured one, as far as the file tells its own."""
    data = written.get("DATASET")
    theirs = data[0] if isinstance(data, list) and data else data
    if not isinstance(theirs, dict):
        return
    ours = task.config.datasets[0]
    allowed = {key: (getattr(ours, key),) for key in task.checkpoint_identity_keys}
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
    loader = build_dataloader(task, split)
    return predict(task, load_model(task, path, device), loader, device, precision)
