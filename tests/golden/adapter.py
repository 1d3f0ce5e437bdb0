"""What the runner must know of a task: how the reference's padded arguments and outputs become ours, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batch import Batch, Lengths, Sample, Text, TextSequence
from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.data.dataset import VisualLinguisticDataset
from common.data.loader import BatchLoader
from common.models.packing import Padding
from common.training.task import Task, build_dataloader
from tests.golden.harness import Report

AnyTask = Task[Any, Any, Any]
Arrays = Mapping[str, np.ndarray]
Datasets = Sequence[VisualLinguisticDataset[Any]]


def joined(sequences: Sequence[Sequence[TextSequence]]) -> Text:
    """The text sequences of each image as a batch holds them."""
    flat = [sequence for of_image in sequences for sequence in of_image]
    return Text(
        per_image=Lengths.of([len(of_image) for of_image in sequences]),
        lengths=Lengths.of([len(sequence) for sequence in flat]),
        ids=torch.from_numpy(np.concatenate([sequence.ids for sequence in flat])),
        types=torch.from_numpy(np.concatenate([sequence.types for sequence in flat])),
        tags=torch.from_numpy(np.concatenate([sequence.tags for sequence in flat])),
    )


def padded(values: Tensor, lengths: Lengths, fill: float) -> np.ndarray:
    """(sum n_i, ...) to (B, longest, ...) with `fill` behind the rows."""
    rows = Padding.of(lengths)
    real = rows.mask()
    out = rows.pad(values.float())
    if real is not None:
        out[~real] = fill
    return out.numpy()


def placed(values: Tensor, real: np.ndarray) -> np.ma.MaskedArray:
    """(K, ...) values of what is real, in their slots (B, N, ...); the other slots are masked, we have none."""
    out = np.ma.masked_all((*real.shape, *values.shape[1:]), np.float32)
    out[real] = values.detach().float().numpy()
    return out


def region_features(arrays: Arrays, real: np.ndarray) -> Tensor | None:
    """Precomputed features, which stand behind the coordinates of the boxes."""
    features = arrays["boxes"][real][:, 4:]
    return torch.from_numpy(features) if features.shape[1] else None


class Adapter(ABC):
    """One task in the terms of the reference.

    Attributes:
        task_class: the task.
        batch_class: its batches.
        data_folder: folder of the fixture that holds its data.
        dataset: `DATASET.DATASET` where a case names none.
        text: name of the argument that holds the text.
        box_padding: value of padded box rows.
        rule_masked: why we have nothing in some slots of an output.
        rule_changed: why a network is built otherwise than its case says (`network_changes`).
        losses: losses that the reference gives as 0 where they are off.
    """

    task_class: ClassVar[type[AnyTask]]
    batch_class: ClassVar[type[Batch]]
    data_folder: ClassVar[str]
    dataset: ClassVar[str]
    text: ClassVar[str]
    box_padding: ClassVar[float] = -2.0
    rule_masked: ClassVar[str] = ""
    rule_changed: ClassVar[str] = ""
    losses: ClassVar[tuple[str, ...]] = ()

    # --- Models ---------------------------------------------------------------------------------------------

    def network_changes(self, config: ExperimentConfig) -> dict[str, Any]:
        """Keys of `NETWORK` whose value has no effect in the reference, with the value that it behaves like."""
        return {}

    def real(self, boxes: np.ndarray) -> np.ndarray:
        """(B, N) bool: which of padded boxes (B, N, ...) are boxes."""
        return boxes[:, :, 0] > -1.5

    @abstractmethod
    def sequences(self, task: AnyTask, arrays: Arrays) -> list[list[TextSequence]]:
        """The sequences of each image from padded texts; of texts without an image behind them."""

    @abstractmethod
    def fields(self, arrays: Arrays, real: np.ndarray) -> dict[str, Any]:
        """What the task's batch has beside the common fields."""

    def batch(self, task: AnyTask, arrays: Arrays) -> Any:
        """Our batch from the reference's padded arguments."""
        boxes = arrays["boxes"]
        real = self.real(boxes)
        images = arrays.get("image")
        sequences = self.sequences(task, arrays)
        alone = len(sequences) - len(boxes)
        return self.batch_class(
            record_ids=tuple(str(index) for index in range(len(sequences))),
            index=torch.arange(len(sequences)),
            images=None if images is None else torch.from_numpy(images),
            num_boxes=Lengths.of([*real.sum(1).tolist(), *[0] * alone]),
            text=joined(sequences),
            im_info=F.pad(torch.from_numpy(arrays["im_info"][:, :4]), (0, 0, 0, alone)),
            boxes=torch.from_numpy(boxes[real][:, :4]),
            **self.fields(arrays, real),
        )

    def everywhere(self, model: nn.Module, batch: Any, outputs: Any) -> Any:
        """The outputs with those that the model only gives on request; `outputs` are what it gave for the losses."""
        return outputs

    @abstractmethod
    def results(self, outputs: Any, batch: Any, arrays: Arrays) -> dict[str, np.ndarray]:
        """Outputs and labels under the reference's names and in its shape; masked where we have none."""

    def predictions(
        self, task: AnyTask, outputs: Any, batch: Any, logits: np.ndarray, arrays: Arrays
    ) -> dict[str, np.ndarray]:
        """What the model gives beside logits in evaluation; `logits` are the reference's."""
        return {}

    def differs(self, metric: str, batches: Sequence[Arrays]) -> bool:
        """Whether a training metric differs on purpose (`rule_masked`) with these padded arguments."""
        return False

    def outputs(self, batch: Any, rows: Tensor) -> Any:
        """Our outputs from stored logits of the records of a batch, longer than needed where boxes differ."""
        raise AssertionError(f"{self.data_folder}: nothing is predicted of single records")

    # --- Data -----------------------------------------------------------------------------------------------

    def defaults(self, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options that a data case needs beside those that it names; `folder` is the fixture."""
        return {}

    def options(self, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options (dotted keys) of a data case that differ between tasks."""
        place = {"DATASET.DATASET": self.dataset, "DATASET.DATASET_PATH": str(folder / self.data_folder)}
        return {**place, **self.defaults(folder, options), **options}

    def datasets(self, task: AnyTask, split: Split) -> Datasets:
        """The datasets of a split; the case compares the last one."""
        return task.build_datasets(split)

    def loader(self, task: AnyTask, split: Split, datasets: Datasets) -> BatchLoader[Any]:
        """The batches of the last of these datasets."""
        task.build_datasets = lambda split: datasets
        return build_dataloader(task, split)

    def amended(self, task: AnyTask, report: Report, what: str, actual: Arrays, expected: Arrays) -> Arrays:
        """What the reference's arrays of a sample or batch are under our decisions; empty: nothing to compare."""
        return expected

    def label(self, batch: Any) -> dict[str, np.ndarray]:
        """The labels of a batch under the reference's names."""
        return {} if batch.label is None else {"label": batch.label.numpy()}

    def batch_arrays(self, task: AnyTask, batch: Any) -> dict[str, np.ndarray]:
        """Boxes, features and labels of a batch under the reference's names; pictures and texts apart."""
        arrays = {
            "boxes": padded(batch.boxes, batch.num_boxes, self.box_padding),
            "im_info": batch.im_info.numpy(),
            **self.label(batch),
        }
        if batch.box_features is not None:
            features = padded(batch.box_features, batch.num_boxes, self.box_padding)
            arrays["box_features"] = features
            arrays["box_features_head"] = features[..., :16]
            arrays["box_features_sum"] = features.sum(-1, dtype=np.float64)
            arrays["box_features_sqsum"] = (features.astype(np.float64) ** 2).sum(-1)
        return arrays

    def sample_texts(
        self, task: AnyTask, dataset: Any, sample: Sample, start: int
    ) -> tuple[dict[str, np.ndarray], list[TextSequence]]:
        """Texts of a sample under the reference's names, and the sequences that the model makes of them."""
        (sequence,) = sample.texts
        empty = self.sequences(task, {self.text: np.zeros((1, 0), np.int64)})[0][0]
        pieces = sequence.ids[1 : len(sequence) - len(empty) + 1]
        return {self.text: pieces}, self.sequences(task, {self.text: pieces[None]})[0]
