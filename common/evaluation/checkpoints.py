"""Evaluation of a checkpoint: loads the model of a task, predicts a split, writes the test result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import torch
from torch import nn

from common.config.fields import Split
from common.distributed import process_group as distributed
from common.errors import CheckpointError
from common.evaluation.evaluator import evaluate, predict
from common.models.pretrained import load_state, read_weights, weights_of
from common.training import checkpoint
from common.training.precision import Precision
from common.training.task import AnyPredictingTask, AnyTask, build_dataloader

TaskT_co = TypeVar("TaskT_co", bound=AnyTask, covariant=True)


@dataclass(frozen=True)
class Evaluation(Generic[TaskT_co]):
    """A checkpoint and everything that it is evaluated with.

    Attributes:
        task: the task, under the configuration of the evaluation.
        path: the checkpoint.
        output_dir: folder of the results.
        device: device of the model.
        precision: precision of the forward pass.
        content: content of the checkpoint, if it has been read already.
    """

    task: TaskT_co
    path: Path
    output_dir: Path
    device: torch.device
    precision: Precision
    content: Mapping[str, Any] | None = None

    def load_model(self) -> nn.Module:
        """Builds the model and loads the checkpoint; see `load_model`."""
        return load_model(self.task, self.path, self.device, self.content)

    def evaluate(self, split: Split) -> dict[str, float]:
        """Returns the metrics of a split. Collective."""
        loader = build_dataloader(self.task, split)
        return evaluate(self.task, self.load_model(), loader, self.device, split, self.precision)

    def predict(self: Evaluation[AnyPredictingTask], split: Split) -> list[dict[str, Any]]:
        """Returns the predictions of a split in dataset order, on every rank. Collective."""
        # Data first: errors in it show before the weights are loaded.
        loader = build_dataloader(self.task, split)
        return predict(self.task, self.load_model(), loader, self.device, self.precision)

    def write_test_result(self: Evaluation[AnyPredictingTask], name: str = "") -> Path:
        """Predicts the test split, writes the result file with a link to the checkpoint beside it. Collective.

        Args:
            name: first part of the file name; `MODEL_PREFIX` by default.

        Returns:
            The result file.
        """
        config = self.task.config
        records = self.predict("test")
        result = self.task.result_file(self.output_dir, name or config.MODEL_PREFIX)
        self.task.write_predictions(records, result)
        link = self.output_dir / f"{config.MODEL_PREFIX}_test_ckpt_{config.datasets[0].TASK}.model"
        if distributed.is_main() and not (link.exists() and link.samefile(self.path)):
            checkpoint.link(self.path, link)
        distributed.barrier()  # whatever comes next may read the files that rank 0 has written
        return result


def load_model(
    task: AnyTask, path: str | Path, device: torch.device, content: Mapping[str, Any] | None = None
) -> nn.Module:
    """Builds the model of a task in evaluation mode and loads a checkpoint; reads no pretrained weights.

    Args:
        task: the task.
        path: the checkpoint.
        device: device of the model.
        content: content of the checkpoint, if it has been read before.

    Raises:
        CheckpointError: the file cannot be read or belongs to another model or task.
    """
    content = read_weights(path) if content is None else content
    weights = weights_of(content, str(path))
    _check_task(task, checkpoint.config_of(content), str(path))
    model = task.build_model()
    load_state(model, weights, task.state_dict_names, str(path))
    return model.to(device).eval()


def _check_task(task: AnyTask, saved: Mapping[str, Any], source: str) -> None:
    """Checks the configuration in a checkpoint against the task. Models of two tasks may have the same parameters."""
    saved_data = saved.get("DATASET")
    if isinstance(saved_data, list) and saved_data:
        saved_data = saved_data[0]
    if not isinstance(saved_data, dict):
        return  # a file of the reference, without a configuration
    data = task.config.datasets[0]
    allowed = {key: (getattr(data, key),) for key in task.checkpoint_identity_keys}
    # A model of one dataset may be evaluated on any other dataset of the same task.
    allowed["DATASET"] = get_args(type(data).model_fields["DATASET"].annotation)
    for key, values in allowed.items():
        if values and key in saved_data and saved_data[key] not in values:
            raise CheckpointError(
                f"{source}: was trained with DATASET.{key}: {saved_data[key]}, which is another task; expected "
                f"{' or '.join(filter(None, values))}"
            )
