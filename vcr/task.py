"""The VCR task: losses, metrics and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.models.losses import choice_bce, mean_or_zero
from common.models.official_names import OfficialNames, strip_wrapper
from common.models.pretrained import Weights
from common.training.metrics import Ratio, accuracy
from common.training.task import PredictingTask
from vcr.config import VCRConfig
from vcr.dataset import VCRBatch, VCRDataset
from vcr.leaderboard import COLUMNS, write_probabilities
from vcr.model import ResNetVLBERT, VCROutputs

RELATIONSHIP = "vlbert.relationsip_head.caption_image_relationship"
SEGMENTS = "vlbert._module.token_type_embeddings.weight"


class VCRTask(PredictingTask[VCRConfig, VCRBatch, VCROutputs]):
    name = "vcr"
    config_class: ClassVar[type[ExperimentConfig]] = VCRConfig
    best_metric = "Acc"
    state_dict_names = OfficialNames((("vlbert.", "vlbert._module."),))
    checkpoint_identity_keys = ("TASK",)

    def build_dataset(self, split: Split) -> VCRDataset:
        return VCRDataset(self.config, split, self.tokenizer)

    def build_model(self) -> ResNetVLBERT:
        tokenizer = self.tokenizer
        return ResNetVLBERT.from_config(self.config, (tokenizer.cls_id, tokenizer.sep_id))

    def adapt_pretrained(self, weights: Weights, source: str) -> Weights:
        """Renames a pre-training checkpoint for VCR and derives the weights that pre-training lacks.

        The relationship head becomes the answer head, whose logit is "matches" minus "does not match". The second
        text segment, which pre-training never sees, starts from the first.
        """
        network = self.config.NETWORK
        renamed = super().adapt_pretrained(weights, source)
        adapted = {strip_wrapper(name): value for name, value in renamed.items()}
        head = {strip_wrapper(name): value for name, value in weights.items() if RELATIONSHIP in name}
        if network.LOAD_REL_HEAD and network.CLASSIFIER_TYPE == "1fc":
            for name, value in head.items():
                adapted[f"final_mlp.1.{name.rpartition('.')[2]}"] = value[1:2].float() - value[0:1].float()
        if network.PARTIAL_PRETRAIN_SEGMB_INIT and SEGMENTS in adapted:
            segments = adapted[SEGMENTS].float().clone()
            segments[1] = segments[0]
            adapted[SEGMENTS] = segments
        return adapted

    def losses(self, outputs: VCROutputs, batch: VCRBatch) -> dict[str, Tensor]:
        """Returns the answer loss, and the region classification loss if it is on."""
        network = self.config.NETWORK
        assert batch.label is not None
        logits = outputs.logits.float()
        if network.CLASSIFIER_SIGMOID:
            answer = choice_bce(logits, batch.label, network.CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT)
        else:
            answer = F.cross_entropy(logits, batch.label)
        losses = {"ans_loss": answer}
        if outputs.region_logits is not None:
            assert outputs.region_classes is not None
            per_region = F.cross_entropy(
                outputs.region_logits.float(), outputs.region_classes, reduction="none"
            )
            losses["cnn_regularization_loss"] = mean_or_zero(per_region)
        return losses

    def label_counts(self, batch: VCRBatch) -> dict[str, Tensor | int]:
        """Questions, and boxes, since every choice sees all of them."""
        return {"ans_loss": batch.num_samples, "cnn_regularization_loss": batch.num_boxes.total}

    @property
    def loss_weights(self) -> Mapping[str, float]:
        network = self.config.NETWORK
        return {"ans_loss": network.ANS_LOSS_WEIGHT, "cnn_regularization_loss": network.CNN_LOSS_WEIGHT}

    def metrics(self, outputs: VCROutputs, batch: VCRBatch, split: Split) -> dict[str, Ratio]:
        assert batch.label is not None
        return {"Acc": accuracy(outputs.logits, batch.label)}

    def predictions(self, outputs: VCROutputs, batch: VCRBatch) -> list[dict[str, Any]]:
        """Returns logits, and probabilities over each group of four choices, of every sample."""
        logits = outputs.logits.float()
        grouped = logits.view(len(logits), batch.num_conditions, -1)
        probabilities = torch.softmax(grouped, dim=2).flatten(1)
        labels = [None] * len(logits) if batch.label is None else batch.label.tolist()
        return [
            {"annot_id": annot_id, "logits": row, "probabilities": shares, "label": label}
            for annot_id, row, shares, label in zip(
                batch.record_ids, logits.tolist(), probabilities.tolist(), labels, strict=True
            )
        ]

    def result_file(self, folder: Path, name: str) -> Path:
        return folder / f"{name}_test_result_{self.config.DATASET.TASK}.csv"

    def write_predictions(self, records: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Writes the probabilities as csv and npy."""
        write_probabilities(records, COLUMNS[self.config.DATASET.TASK], path)
