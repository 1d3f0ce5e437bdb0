"""The `Task` contract: all that the trainer and the evaluator know of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor, nn

from common.batch import Batch
from common.config import ExperimentConfig
from common.data.dataset import VisualLinguisticDataset
from common.engine.metrics import Ratio
from common.modeling.official_names import OfficialNames
from common.modeling.pretrained import LoadReport

Split = Literal["train", "val", "test"]

ConfigT = TypeVar("ConfigT", bound=ExperimentConfig)
BatchT = TypeVar("BatchT", bound=Batch)
OutputsT = TypeVar("OutputsT")


class Task(ABC, Generic[ConfigT, BatchT, OutputsT]):
    """One task under one configuration: how to build it, score it and read its predictions.

    Attributes:
        name: folder name of the task.
        config_class: the schema of its yaml files.
        best_metric: validation metric that selects the best checkpoint.
        validates_losses: whether validation also reports the losses (pre-training does).
        names: the names of its parameters on disk.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[ExperimentConfig]]
    best_metric: ClassVar[str]
    validates_losses: ClassVar[bool] = False
    names: ClassVar[OfficialNames] = OfficialNames()

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @abstractmethod
    def build_dataset(self, split: Split) -> VisualLinguisticDataset[Any]:
        """Opens and checks the data of one split."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """Builds the network with its initial values; reads no weight file."""

    @abstractmethod
    def load_pretrained(self, model: nn.Module) -> list[LoadReport]:
        """Fills a fresh model from the language, image and partial-pretrain files that the config names."""

    @abstractmethod
    def losses(self, outputs: OutputsT, batch: BatchT) -> dict[str, Tensor]:
        """Unweighted scalar losses by the names of the reference's outputs; the trained loss is their weighted sum."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Weight of each loss; 1 where absent."""
        return {}

    @abstractmethod
    def metrics(self, outputs: OutputsT, batch: BatchT, split: Split) -> dict[str, Ratio]:
        """Sum and count of each metric of `split` over this batch, in the order of the log line."""

    @abstractmethod
    def predictions(self, outputs: OutputsT, batch: BatchT) -> list[dict[str, Any]]:
        """One JSON-ready record per sample, in batch order."""
