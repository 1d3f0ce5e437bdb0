"""Loaders and models of a task, and what a checkpoint predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from common.batch import Batch
from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.data.dataset import VisualLinguisticDataset
from common.data.tokenizer import Tokenizer
from common.errors import ConfigError
from common.models.official_names import OfficialNames
from common.models.pretrained import (
    LoadReport,
    Weights,
    load_base_models,
    load_matching,
    read_weights,
    rename_prefixes,
    weights_of,
)
from common.models.visual_linguistic_model import VisualLinguisticModel
from common.training.metrics import Ratio

ConfigT = TypeVar("ConfigT", bound=ExperimentConfig)


BatchT = TypeVar("BatchT", bound=Batch)


OutputsT = TypeVar("OutputsT")


class Task(ABC, Generic[ConfigT, BatchT, OutputsT]):
    """One task under one configuration: how to build it, score it and read its predictions.

    Attributes:
        name: folder name of the task.
        config_class: the schema of its yaml files.
        validates_losses: whether validation also reports the losses (pre-training does).
        state_dict_names: maps parameter names to the names in checkpoint files.
        checkpoint_identity_keys: keys of `DATASET` that tell its models apart, which their parameters do not.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[ExperimentConfig]]
    validates_losses: ClassVar[bool] = False
    state_dict_names: ClassVar[OfficialNames] = OfficialNames()
    checkpoint_identity_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @property
    @abstractmethod
    def best_metric(self) -> str:
        """Validation metric that selects the best checkpoint."""

    @abstractmethod
    def build_dataset(self, split: Split) -> VisualLinguisticDataset[Any]:
        """Opens and checks the data of one split; of several datasets, the first."""

    def build_datasets(self, split: Split) -> Sequence[VisualLinguisticDataset[Any]]:
        """Opens and checks all data of one split; the first dataset defines the epoch."""
        return [self.build_dataset(split)]

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Builds the network with its initial values; reads no weight file."""

    def load_pretrained(self, model: nn.Module) -> list[LoadReport]:
        """Fills a fresh model from the BERT and ResNet files of the config, then from `PARTIAL_PRETRAIN`."""
        assert isinstance(model, VisualLinguisticModel)
        reports = load_base_models(model.vlbert, model.image_feature_extractor, self.config)
        path = self.config.NETWORK.PARTIAL_PRETRAIN
        if path:
            weights = weights_of(read_weights(path, "NETWORK.PARTIAL_PRETRAIN"), path)
            adapted = self.adapt_pretrained(weights, path)
            report = load_matching(model, adapted, self.state_dict_names, path)
            reports.append(report)
            if not any(name.endswith("special_word_embeddings.weight") for name in report.loaded):
                model.vlbert.copy_special_words()
        return reports

    def adapt_pretrained(self, weights: Weights, source: str) -> Weights:
        """Renames the weights of a pre-training checkpoint as the config says (spec model.md 9.3)."""
        return rename_prefixes(weights, self.config.NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES, source)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of `NETWORK.BERT_MODEL_NAME`.

        Raises:
            ConfigError: its vocabulary is larger than the model's table.
        """
        network = self.config.NETWORK
        tokenizer = Tokenizer.from_directory(network.BERT_MODEL_NAME)
        words = max(tokenizer.vocab.values()) + 1  # of a word that stands twice the last place counts
        if words > network.VLBERT.vocab_size:
            raise ConfigError(
                f"NETWORK.VLBERT.vocab_size: {network.VLBERT.vocab_size}, but the vocabulary of "
                f"NETWORK.BERT_MODEL_NAME ({network.BERT_MODEL_NAME}) has {words} words; "
                "use at least that"
            )
        return tokenizer

    @abstractmethod
    def losses(self, outputs: OutputsT, batch: BatchT) -> dict[str, Tensor]:
        """Unweighted scalar losses by the names of the reference's outputs; the trained loss is their weighted sum."""

    @abstractmethod
    def label_counts(self, batch: BatchT) -> dict[str, Tensor | int]:
        """What each loss is a mean over, by its name: numbers of labels, on the host or 0-dim on the device.

        Several processes, and the parts of a batch, weigh their losses by these, so that a step does not depend on
        how it is dealt out.
        """

    @property
    def label_count_eps(self) -> Mapping[str, float]:
        """What each loss adds to its number of labels before it divides by it; 0 where absent."""
        return {}

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Weight of each loss; 1 where absent."""
        return {}

    @abstractmethod
    def metrics(self, outputs: OutputsT, batch: BatchT, split: Split) -> dict[str, Ratio]:
        """Sum and count of each metric of `split` over this batch, in the order of the log line."""

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The loss that is trained: the weighted sum."""
        weights = self.loss_weights
        return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()

    def test_tasks(self) -> Sequence[PredictingTask[ConfigT, BatchT, OutputsT]]:
        """This task on each of the test sets that `--do-test` runs."""
        return []


class PredictingTask(Task[ConfigT, BatchT, OutputsT]):
    """A task with a test split, whose predictions are a file for its servers."""

    def test_tasks(self) -> Sequence[PredictingTask[ConfigT, BatchT, OutputsT]]:
        """This task on each of the test sets that `--do-test` runs: the configured one."""
        return [self]

    @abstractmethod
    def predictions(self, outputs: OutputsT, batch: BatchT) -> list[dict[str, Any]]:
        """One JSON-ready record per sample, in batch order."""

    @abstractmethod
    def result_file(self, folder: Path, name: str) -> Path:
        """Where the test result of a model called `name` goes."""

    @abstractmethod
    def write_predictions(self, records: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Writes the predictions of the test split, in dataset order, as the task's servers want them."""


AnyTask = Task[Any, Any, Any]
AnyPredictingTask = PredictingTask[Any, Any, Any]
