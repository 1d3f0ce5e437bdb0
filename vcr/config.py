"""Configuration of VCR: keys, defaults and constraints beyond the shared ones."""

from __future__ import annotations

from typing import Literal

from common.config.fields import LossLoggers, MustBeFalse, OneToThree, Probability
from common.config.schema import ExperimentConfig, Rule
from common.config.sections import DatasetConfig, FineTuneTrainConfig, NetworkConfig, VLBertConfig


class VCRDatasetConfig(DatasetConfig):
    """Images, questions, answers and rationales."""

    DATASET: Literal["", "vcr"] = ""
    LABEL_INDEX_IN_BATCH: int = 7


class VCRVLBertConfig(VLBertConfig):
    """The joint transformer."""

    object_word_embed_mode: OneToThree = 1
    with_pooler: bool = True


class VCRNetworkConfig(NetworkConfig):
    """The model that scores an answer to a question about an image."""

    PARTIAL_PRETRAIN_SEGMB_INIT: bool = False
    """VCR: start the embedding of the second text segment from the first one of PARTIAL_PRETRAIN, because
    pre-training has one segment only.
    """
    FOR_MASK_VL_MODELING_PRETRAIN: MustBeFalse = False
    """Does not exist."""
    IMAGE_SEMANTIC: bool = True
    QA_ONE_SENT: bool = False
    """VCR: question and answer are one segment, without [SEP] between them; not with ANSWER_FIRST."""
    CNN_REG_DROPOUT: Probability = 0.0
    """VCR: dropout inside the region classifier, with CNN_LOSS_TOP."""
    CNN_LOSS_TOP: bool = False
    """VCR with ENABLE_CNN_REG_LOSS: classify the regions from the outputs of the joint transformer, not
    from the features that enter it.
    """
    ANSWER_FIRST: bool = False
    """VCR: the answer comes before the question."""
    LOAD_REL_HEAD: bool = True
    """VCR with CLASSIFIER_TYPE 1fc: start the answer head from the caption-image relationship head of
    PARTIAL_PRETRAIN, if that has one.
    """
    VLBERT: VCRVLBertConfig = VCRVLBertConfig()
    """The joint transformer."""
    CLASSIFIER_TYPE: Literal["2fc", "1fc"] = "2fc"


class VCRTrainConfig(FineTuneTrainConfig):
    """Training."""

    ASPECT_GROUPING: bool = False
    LOSS_LOGGERS: LossLoggers = (("ans_loss", "AnsLoss"), ("cnn_regularization_loss", "CNNRegLoss"))


class VCRConfig(ExperimentConfig):
    """A VCR experiment.

    `TRAIN.ASPECT_GROUPING` is false by default, unlike the reference, where the default stops the run.
    """

    MODULE: Literal["", "ResNetVLBERT"] = ""
    DATASET: VCRDatasetConfig = VCRDatasetConfig()
    """The data."""
    NETWORK: VCRNetworkConfig = VCRNetworkConfig()
    """The model."""
    TRAIN: VCRTrainConfig = VCRTrainConfig()
    """Training."""

    def rules(self) -> list[Rule]:
        """Returns combinations that cannot work."""
        data, network = self.DATASET, self.NETWORK
        mask = 14 if network.IMAGE_C5_DILATED else 7
        return [
            *super().rules(),
            (
                data.TASK == "Q2AR",
                "DATASET.TASK",
                'must be "Q2A" or "QA2R"; vcr/val.py computes Q2AR from a run of each',
            ),
            (
                mask != data.MASK_SIZE,
                "DATASET.MASK_SIZE",
                f"must be {mask}, 14 with NETWORK.IMAGE_C5_DILATED and 7 without",
            ),
            (not network.VLBERT.with_pooler, "NETWORK.VLBERT.with_pooler", "must be true in VCR"),
            (
                network.IMAGE_FEAT_PRECOMPUTED,
                "NETWORK.IMAGE_FEAT_PRECOMPUTED",
                "must be false: VCR data holds no region features",
            ),
            (
                network.ANSWER_FIRST and network.QA_ONE_SENT,
                "NETWORK.QA_ONE_SENT",
                "must be false with NETWORK.ANSWER_FIRST",
            ),
            (
                self.TRAIN.ASPECT_GROUPING,
                "TRAIN.ASPECT_GROUPING",
                "must be false in VCR: all images are padded alike",
            ),
        ]

    def remarks(self) -> list[Rule]:
        """Region losses that cannot be computed."""
        network = self.NETWORK
        unseen = network.BLIND or (network.NO_OBJ_ATTENTION and network.CNN_LOSS_TOP)
        key = "NETWORK.BLIND" if network.BLIND else "NETWORK.NO_OBJ_ATTENTION"
        return [
            (
                network.ENABLE_CNN_REG_LOSS and unseen,
                key,
                "the region loss (NETWORK.ENABLE_CNN_REG_LOSS) is skipped",
            )
        ]
