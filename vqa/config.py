"""Configuration of VQA: keys, defaults and constraints beyond the shared ones."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from common.config.fields import LossLoggers, MustBeFalse
from common.config.schema import DeadKeys, ExperimentConfig, Rule
from common.config.sections import (
    VCR_KEYS,
    AnswerNetworkKeys,
    AnswerVocabularyKeys,
    DatasetConfig,
    FineTuneTrainConfig,
    NetworkConfig,
    RegionFileKeys,
)


class VQADatasetConfig(AnswerVocabularyKeys, RegionFileKeys, DatasetConfig):
    """Images or region features, questions and answers."""

    DATASET: Literal["", "vqa"] = ""
    # yaml reads an unquoted 36 as a number
    BOXES: Annotated[
        Literal["36", "10-100ada"], BeforeValidator(lambda value: str(value) if value == 36 else value)
    ] = "36"
    """VQA: set of region features: 36 of each image, or 10 to 100."""
    USE_IMDB: bool = True
    """VQA: read Pythia's imdb files instead of the official json files; answers are then used unchanged."""
    ANSWER_NORMALISE: Literal["vocabulary", "both"] = "vocabulary"
    """VQA: what is normalized before answers are looked up: the vocabulary only, as in the reference, or also
    annotated
    answers. New key.
    """


class VQANetworkConfig(AnswerNetworkKeys, NetworkConfig):
    """The model that answers a question about an image."""

    FOR_MASK_VL_MODELING_PRETRAIN: MustBeFalse = False
    """Does not exist."""


class VQATrainConfig(FineTuneTrainConfig):
    """Training."""

    LOSS_LOGGERS: LossLoggers = (("ans_loss", "AnsLoss"),)


class VQAConfig(ExperimentConfig):
    """A VQA experiment."""

    dead: ClassVar[DeadKeys] = {
        **ExperimentConfig.dead,
        **VCR_KEYS,
        "DATASET.TRAIN_ANNOTATION_FILE": (),
        "DATASET.VAL_ANNOTATION_FILE": (),
        "DATASET.TEST_ANNOTATION_FILE": (),
        "NETWORK.ANS_LOSS_TYPE": (),
    }

    MODULE: Literal["", "ResNetVLBERT"] = ""
    DATASET: VQADatasetConfig = VQADatasetConfig()
    """The data."""
    NETWORK: VQANetworkConfig = VQANetworkConfig()
    """The model."""
    TRAIN: VQATrainConfig = VQATrainConfig()
    """Training."""

    def rules(self) -> list[Rule]:
        """Returns combinations that cannot work."""
        network = self.NETWORK
        return [
            *super().rules(),
            (
                network.IMAGE_SEMANTIC,
                "NETWORK.IMAGE_SEMANTIC",
                "must be false in VQA: its regions have no classes",
            ),
            (
                network.ENABLE_CNN_REG_LOSS and not network.IMAGE_FEAT_PRECOMPUTED,
                "NETWORK.ENABLE_CNN_REG_LOSS",
                "must be false where images are read: regions of VQA have no classes",
            ),
            (
                network.VLBERT.object_word_embed_mode != 2,
                "NETWORK.VLBERT.object_word_embed_mode",
                "must be 2 in VQA",
            ),
            (
                network.CLASSIFIER_PRETRAINED and network.CLASSIFIER_TYPE == "2fc",
                "NETWORK.CLASSIFIER_PRETRAINED",
                "must be false with NETWORK.CLASSIFIER_TYPE 2fc: its last layer is not as wide as a word",
            ),
        ]
