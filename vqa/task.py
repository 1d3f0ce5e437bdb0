"""The VQA task: losses, metrics, predictions, and the initial answer head."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.evaluation.outputs import write_json
from common.models.official_names import OfficialNames
from common.models.pretrained import (
    LoadReport,
    language_file,
    language_name,
    load_state,
    read_weights,
    weights_of,
)
from common.training.metrics import Ratio, soft_accuracy
from common.training.task import PredictingTask
from vqa.answers import AnswerVocabulary
from vqa.config import VQAConfig
from vqa.dataset import VQABatch, VQADataset
from vqa.model import ResNetVLBERT, VQAOutputs
from vqa.questions import shared_parts

logger = logging.getLogger(__name__)

TRANSFORM = "mlm_head.predictions.transform."


class VQATask(PredictingTask[VQAConfig, VQABatch, VQAOutputs]):
    name = "vqa"
    config_class: ClassVar[type[ExperimentConfig]] = VQAConfig
    best_metric = "SoftAcc"

    @cached_property
    def vocabulary(self) -> AnswerVocabulary:
        vocabulary = AnswerVocabulary.from_config(self.config.DATASET)
        if vocabulary.duplicates:
            logger.warning(
                "DATASET.ANSWER_VOCAB_FILE: %d answers are duplicates, and only the first of each can be "
                "right: %s",
                len(vocabulary.duplicates),
                ", ".join(map(repr, vocabulary.duplicates)),
            )
        return vocabulary

    def build_dataset(self, split: Split) -> VQADataset:
        data = self.config.DATASET
        shared = shared_parts(data.TRAIN_IMAGE_SET, data.VAL_IMAGE_SET)
        if split == "val" and shared:
            logger.warning(
                "DATASET.VAL_IMAGE_SET: %s: the model trains on %s too, so this accuracy is no measure",
                data.VAL_IMAGE_SET,
                " and ".join(shared),
            )
        return VQADataset(self.config, split, self.tokenizer, self.vocabulary)

    def build_model(self) -> ResNetVLBERT:
        return ResNetVLBERT.from_config(self.config)

    def load_pretrained(self, model: nn.Module) -> list[LoadReport]:
        """Loads pretrained weights, and initializes the answer head from the language model if configured.

        The transform of the `mlm` classifier comes from the language file, and `CLASSIFIER_PRETRAINED` makes the last
        layer predict the mean word of each answer.
        """
        assert isinstance(model, ResNetVLBERT)
        network = self.config.NETWORK
        if network.CLASSIFIER_TYPE == "mlm":
            # First, since PARTIAL_PRETRAIN may replace these weights.
            self._load_transform(model.final_mlp[0])
        reports = super().load_pretrained(model)
        if network.CLASSIFIER_PRETRAINED:
            last = cast(nn.Linear, model.final_mlp[-1])
            start_from_words(
                last, model.vlbert.word_embeddings, list(map(self.tokenizer.ids, self.vocabulary.answers))
            )
        return reports

    def _load_transform(self, transform: nn.Module) -> None:
        """Loads the transform of the `mlm` classifier from the MLM head of the language file, if any."""
        if (language := language_file(self.config)) is None:
            return
        key, path = language
        weights = weights_of(read_weights(path, key), str(path))
        named = {language_name(name): value for name, value in weights.items()}
        head = {
            name.removeprefix(TRANSFORM): value for name, value in named.items() if name.startswith(TRANSFORM)
        }
        if head:
            load_state(transform, head, OfficialNames(), str(path))
        else:
            logger.warning("%s: has no masked-word head; the answer head starts from random values", path)

    def losses(self, outputs: VQAOutputs, batch: VQABatch) -> dict[str, Tensor]:
        """Returns the binary cross entropy, summed over the answers."""
        assert batch.label is not None
        logits = outputs.logits.float()
        return {"ans_loss": F.binary_cross_entropy_with_logits(logits, batch.label) * logits.shape[1]}

    def label_counts(self, batch: VQABatch) -> dict[str, Tensor | int]:
        return {"ans_loss": batch.num_samples}

    def metrics(self, outputs: VQAOutputs, batch: VQABatch, split: Split) -> dict[str, Ratio]:
        assert batch.label is not None
        return {"SoftAcc": soft_accuracy(outputs.logits, batch.label)}

    def predictions(self, outputs: VQAOutputs, batch: VQABatch) -> list[dict[str, Any]]:
        """Returns the best answer to every question, never `<unk>`; the first of equal ones."""
        sayable = torch.tensor(self.vocabulary.sayable(), device=outputs.logits.device)
        best = outputs.logits.masked_fill(~sayable, -torch.inf).argmax(dim=1).tolist()
        return [
            {"question_id": question_id, "answer": self.vocabulary.answers[number]}
            for question_id, number in zip(batch.question_ids, best, strict=True)
        ]

    def result_file(self, folder: Path, name: str) -> Path:
        return folder / f"{name}_vqa2_{self.config.DATASET.TEST_IMAGE_SET}.json"

    def write_predictions(self, records: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Writes the answers in the format of EvalAI."""
        write_json(path, records)


@torch.no_grad()
def start_from_words(layer: nn.Linear, words: nn.Embedding, pieces: Sequence[Sequence[int]]) -> None:
    """Sets every row to the mean embedding of the word pieces of its answer. Rows without pieces are unchanged.

    Args:
        layer: last layer of the classifier.
        words: word embeddings.
        pieces: word-piece ids of every answer.
    """
    assert layer.weight.shape == (len(pieces), words.embedding_dim)
    lengths = torch.tensor([len(answer) for answer in pieces])
    ids = torch.tensor([piece for answer in pieces for piece in answer])
    means = F.embedding_bag(ids, words.weight, lengths.cumsum(0) - lengths, mode="mean")
    layer.weight.copy_(torch.where(lengths[:, None] > 0, means, layer.weight))
