"""Configuration of RefCOCO, RefCOCO+ and RefCOCOg: keys, defaults and constraints beyond the shared ones."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from common.config.fields import LossLoggers, Split
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

Boxes = Literal["gt", "proposal", "proposal+gt", "gt+proposal"]

SPLITS = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
"""Published splits of each dataset, the default first."""


class RefCOCODatasetConfig(AnswerVocabularyKeys, RegionFileKeys, DatasetConfig):
    """Images, expressions that refer to objects, candidate regions."""

    DATASET: Literal["", "refcoco", "refcoco+", "refcocog"] = ""
    SPLIT_BY: Literal["unc", "google", "umd"] = "unc"
    """RefCOCO: who split the data. refcoco: unc, google; refcoco+: unc; refcocog: umd (its default),
    google. New key.
    """
    TRAIN_BOXES: Boxes = "gt"
    """RefCOCO: candidate regions in training: annotated objects, detected ones, or both (detected ones
    come first in either spelling).
    """
    VAL_BOXES: Boxes = "gt"
    """RefCOCO: candidate regions in validation, as TRAIN_BOXES."""
    TEST_BOXES: Boxes = "gt"
    """RefCOCO: candidate regions in testing, as TRAIN_BOXES."""
    PROPOSAL_SOURCE: Literal["official", "vg"] = "official"
    """RefCOCO: detected regions of MAttNet (official) or of bottom-up attention (vg)."""
    USE_IMDB: bool = True
    """Leftover of VQA."""

    def boxes(self, split: Split) -> str:
        """Value of `{SPLIT}_BOXES`."""
        return str(getattr(self, f"{split.upper()}_BOXES"))

    @model_validator(mode="before")
    @classmethod
    def _default_split(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("DATASET") == "refcocog":
            return {"SPLIT_BY": SPLITS["refcocog"][0], **values}
        return values


class RefCOCONetworkConfig(AnswerNetworkKeys, NetworkConfig):
    """The model that finds the region an expression refers to."""

    ENABLE_CNN_REG_LOSS: bool = False


class RefCOCOTrainConfig(FineTuneTrainConfig):
    """Training."""

    LOSS_LOGGERS: LossLoggers = (("cls_loss", "ClsLoss"),)


class RefCOCOConfig(ExperimentConfig):
    """A RefCOCO, RefCOCO+ or RefCOCOg experiment."""

    dead: ClassVar[DeadKeys] = {
        **ExperimentConfig.dead,
        **VCR_KEYS,
        "DATASET.ANSWER_VOCAB_FILE": (),
        "DATASET.ANSWER_VOCAB_SIZE": (),
        "DATASET.TRAIN_ANNOTATION_FILE": (),
        "DATASET.VAL_ANNOTATION_FILE": (),
        "DATASET.TEST_ANNOTATION_FILE": (),
        "DATASET.USE_IMDB": (),
        "NETWORK.BLIND": (),
        "NETWORK.NO_GROUNDING": (),
        "NETWORK.ENABLE_CNN_REG_LOSS": (),
        "NETWORK.ANS_LOSS_TYPE": (),
        "NETWORK.VLBERT.object_word_embed_mode": (),
        "NETWORK.CLASSIFIER_TYPE": (),
        "NETWORK.CLASSIFIER_PRETRAINED": (),
        "NETWORK.CLASSIFIER_HIDDEN_SIZE": (),
    }

    MODULE: Literal["", "ResNetVLBERT"] = ""
    DATASET: RefCOCODatasetConfig = RefCOCODatasetConfig()
    """The data."""
    NETWORK: RefCOCONetworkConfig = RefCOCONetworkConfig()
    """The model."""
    TRAIN: RefCOCOTrainConfig = RefCOCOTrainConfig()
    """Training."""

    def rules(self) -> list[Rule]:
        """Returns combinations that cannot work."""
        data, network = self.DATASET, self.NETWORK
        splits = SPLITS.get(data.DATASET, (data.SPLIT_BY,))
        return [
            *super().rules(),
            (
                data.SPLIT_BY not in splits,
                "DATASET.SPLIT_BY",
                f"must be {' or '.join(splits)} with DATASET.DATASET {data.DATASET}",
            ),
            (
                bool(data.PACKED_REGIONS) and data.PROPOSAL_SOURCE != "vg",
                "DATASET.PACKED_REGIONS",
                "must be empty with DATASET.PROPOSAL_SOURCE official: it holds the regions of vg",
            ),
            (
                self.TEST.FLIP_PROB > 0,
                "TEST.FLIP_PROB",
                "must be 0: result boxes refer to the image without flipping",
            ),
            (
                network.IMAGE_FEAT_PRECOMPUTED,
                "NETWORK.IMAGE_FEAT_PRECOMPUTED",
                "must be false: RefCOCO data holds no region features",
            ),
            (
                network.IMAGE_SEMANTIC,
                "NETWORK.IMAGE_SEMANTIC",
                "must be false in RefCOCO: its regions have no classes",
            ),
        ]
