"""The `Task` contract: everything that training and evaluation know about a task."""

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
from common.config.sections import TrainConfig
from common.data.collate import NO_LIMITS, MicrobatchLimits
from common.data.dataset import VisualLinguisticDataset
from common.data.loader import BatchLoader, build_loader
from common.data.samplers import EpochBatches, JointBatches
from common.data.tokenizer import Tokenizer
from common.distributed import process_group as distributed
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
    """A task under one configuration: its data, model, losses, metrics and predictions.

    Attributes:
        name: folder name of the task.
        config_class: schema of its yaml files.
        validates_losses: whether validation also reports the losses, as pre-training does.
        state_dict_names: maps parameter names to the names in checkpoint files.
        checkpoint_identity_keys: `DATASET` keys that distinguish models with the same parameters.
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
        """Name of the validation metric that selects the best checkpoint."""

    @abstractmethod
    def build_dataset(self, split: Split) -> VisualLinguisticDataset[Any]:
        """Opens and checks the data of one split; the first dataset if there are several."""

    def build_datasets(self, split: Split) -> Sequence[VisualLinguisticDataset[Any]]:
        """Opens and checks all datasets of one split. The first one defines the epoch."""
        return [self.build_dataset(split)]

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Builds the model with its initial values. Reads no weight file."""

    def load_pretrained(self, model: nn.Module) -> list[LoadReport]:
        """Loads the configured BERT and ResNet weights into a new model, then `NETWORK.PARTIAL_PRETRAIN`."""
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
        """Renames the weights of a pre-training checkpoint; see "Loading rules" in `docs/model.md`."""
        return rename_prefixes(weights, self.config.NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES, source)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of `NETWORK.BERT_MODEL_NAME`.

        Raises:
            ConfigError: its vocabulary is larger than the embedding table of the model.
        """
        network = self.config.NETWORK
        tokenizer = Tokenizer.from_directory(network.BERT_MODEL_NAME)
        words = max(tokenizer.vocab.values()) + 1  # a duplicate word has the id of its last line
        if words > network.VLBERT.vocab_size:
            raise ConfigError(
                f"NETWORK.VLBERT.vocab_size: {network.VLBERT.vocab_size}, but the vocabulary of "
                f"NETWORK.BERT_MODEL_NAME ({network.BERT_MODEL_NAME}) has {words} words; "
                "use at least that"
            )
        return tokenizer

    @abstractmethod
    def losses(self, outputs: OutputsT, batch: BatchT) -> dict[str, Tensor]:
        """Returns unweighted () losses by their names in the reference. Each is a mean over the labels of the batch."""

    @abstractmethod
    def label_counts(self, batch: BatchT) -> dict[str, Tensor | int]:
        """Returns the number of labels that each loss is a mean over: an int, or a () tensor on the device.

        Ranks and microbatches weight their losses by these numbers (`LossScaler`), so that a step does not depend on
        how its samples are split.
        """

    @property
    def label_count_eps(self) -> Mapping[str, float]:
        """What each loss adds to its label count before it divides; 0 if missing."""
        return {}

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Weight of each loss; 1 if missing."""
        return {}

    @abstractmethod
    def metrics(self, outputs: OutputsT, batch: BatchT, split: Split) -> dict[str, Ratio]:
        """Returns sum and count of each metric of `split` over this batch, in the order of the log line."""

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Returns the training loss: the weighted sum of the losses."""
        weights = self.loss_weights
        return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()

    def test_tasks(self) -> Sequence[PredictingTask[ConfigT, BatchT, OutputsT]]:
        """Returns this task on each test split that `--do-test` runs."""
        return []


class PredictingTask(Task[ConfigT, BatchT, OutputsT]):
    """A task with a test split, whose predictions go to an evaluation server."""

    def test_tasks(self) -> Sequence[PredictingTask[ConfigT, BatchT, OutputsT]]:
        return [self]

    @abstractmethod
    def predictions(self, outputs: OutputsT, batch: BatchT) -> list[dict[str, Any]]:
        """Returns one JSON-serializable record per sample, in batch order."""

    @abstractmethod
    def result_file(self, folder: Path, name: str) -> Path:
        """Returns the path of the test result of the model `name`."""

    @abstractmethod
    def write_predictions(self, records: Sequence[Mapping[str, Any]], path: Path) -> None:
        """Writes the predictions of the test split, in dataset order, in the format of the evaluation server."""


AnyTask = Task[Any, Any, Any]
AnyPredictingTask = PredictingTask[Any, Any, Any]


def build_dataloader(task: AnyTask, split: Split) -> BatchLoader[Any]:
    """Opens a split and builds the loader of this rank.

    Training pads the last batches with repeated samples so that all ranks have equally many. An evaluation sees every
    sample of the first dataset once, and takes as many batches from the others.
    """
    config = task.config
    loop = config.loop(split)
    training = split == "train"
    datasets = task.build_datasets(split)
    num_batches = -(-len(datasets[0]) // loop.batch_sizes[0])
    samplers = [
        EpochBatches(
            len(dataset) if training else min(len(dataset), num_batches * size),
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
        JointBatches(samplers) if len(samplers) > 1 else samplers[0],
        batch_type=datasets[0].batch_type,
        num_workers=config.NUM_WORKERS_PER_GPU,
        pin_memory=True,
        limits=limits_of(config.TRAIN) if training else NO_LIMITS,
    )


def limits_of(train: TrainConfig) -> MicrobatchLimits:
    return MicrobatchLimits(train.MAX_TOKENS, train.MAX_REGIONS)
