"""The RefCOCO task: losses, metrics, predictions and the accuracy of a test."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.evaluation.outputs import write_json
from common.models.geometry import pairwise_iou
from common.models.packing import argmax_per_row
from common.training.metrics import Ratio, cls_accuracy, cls_pos_accuracy, cls_pos_fraction, region_accuracy
from common.training.task import PredictingTask
from refcoco.config import RefCOCOConfig
from refcoco.dataset import POSITIVE_IOU, UNKNOWN_REGION, RefCOCOBatch, RefCOCODataset
from refcoco.model import RefCOCOOutputs, ResNetVLBERT
from refcoco.refer import DEFAULT_TEST_SPLITS, TEST_SPLITS

logger = logging.getLogger(__name__)

RESULT_KEYS = ("ref_id", "sent_id", "box")


class RefCOCOTask(PredictingTask[RefCOCOConfig, RefCOCOBatch, RefCOCOOutputs]):
    name = "refcoco"
    config_class: ClassVar[type[ExperimentConfig]] = RefCOCOConfig
    best_metric = "RefAcc"

    def build_dataset(self, split: Split) -> RefCOCODataset:
        return RefCOCODataset(self.config, split, self.tokenizer)

    def build_model(self) -> ResNetVLBERT:
        return ResNetVLBERT.from_config(self.config)

    def losses(self, outputs: RefCOCOOutputs, batch: RefCOCOBatch) -> dict[str, Tensor]:
        """Returns the binary cross entropy, averaged over all boxes of the batch."""
        assert batch.label is not None
        return {"cls_loss": F.binary_cross_entropy_with_logits(outputs.logits.float(), batch.label)}

    def label_counts(self, batch: RefCOCOBatch) -> dict[str, Tensor | int]:
        return {"cls_loss": batch.num_boxes.total}

    def metrics(self, outputs: RefCOCOOutputs, batch: RefCOCOBatch, split: Split) -> dict[str, Ratio]:
        """Returns the accuracy of the best box; in training also binary metrics of all boxes."""
        assert batch.label is not None
        found = {"RefAcc": region_accuracy(outputs.logits, batch.label, batch.num_boxes)}
        if split == "train":
            found["ClsAcc"] = cls_accuracy(outputs.logits, batch.label)
            found["ClsPosAcc"] = cls_pos_accuracy(outputs.logits, batch.label)
            found["ClsPosFrac"] = cls_pos_fraction(batch.label)
        return found

    def predictions(self, outputs: RefCOCOOutputs, batch: RefCOCOBatch) -> list[dict[str, Any]]:
        """Returns the best box of every expression in original pixels, and whether it is right.

        `hit` compares boxes by IoU. `same_region` tells whether it is the annotated box itself; None if that is not a
        candidate.
        """
        best = argmax_per_row(outputs.logits.float(), batch.num_boxes)
        boxes = (batch.boxes[best] / batch.im_info[:, 2:4].repeat(1, 2)).cpu()
        # Float64 as in the reference: it decides when the IoU is exactly at the threshold.
        overlap = pairwise_iou(boxes.double(), batch.target.cpu().double()).diagonal()
        regions = (best - batch.num_boxes.starts).tolist()
        return [
            {
                "ref_id": ref_id,
                "sent_id": sent_id,
                "box": box,
                "hit": iou >= POSITIVE_IOU,
                "same_region": None if target == UNKNOWN_REGION else region == target,
            }
            for ref_id, sent_id, box, iou, region, target in zip(
                batch.ref_id.tolist(),
                batch.sent_id.tolist(),
                boxes.tolist(),
                overlap.tolist(),
                regions,
                batch.target_region.tolist(),
                strict=True,
            )
        ]

    def test_tasks(self) -> list[RefCOCOTask]:
        """Returns this task on each test split of the dataset."""
        data = self.config.DATASET
        names = TEST_SPLITS.get((data.DATASET, data.SPLIT_BY), DEFAULT_TEST_SPLITS)
        return [
            RefCOCOTask(
                self.config.model_copy(update={"DATASET": data.model_copy(update={"TEST_IMAGE_SET": name})})
            )
            for name in names
        ]

    def result_file(self, folder: Path, name: str) -> Path:
        data = self.config.DATASET
        return folder / f"{name}_{data.DATASET}_{data.TEST_IMAGE_SET}.json"

    def write_predictions(self, records: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Writes the box of every expression as json and logs the accuracy in percent."""
        write_json(path, [{key: record[key] for key in RESULT_KEYS} for record in records])
        logger.info("Evaluate on split: %s...", self.config.DATASET.TEST_IMAGE_SET)
        logger.info("Accuracy: %s.", percent([record["hit"] for record in records]))
        same = [record["same_region"] for record in records if record["same_region"] is not None]
        if same:
            logger.info("Accuracy by region identity: %s.", percent(same))


def percent(hits: Sequence[bool]) -> float:
    return 100.0 * (sum(hits) / len(hits))
