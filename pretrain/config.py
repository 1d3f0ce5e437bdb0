"""Configuration of pre-training: keys, defaults and constraints beyond the shared ones."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Tag, model_validator
from typing_extensions import Self

from common.config.fields import Allowed, LossLoggers, MustBeFalse, Natural, Positive, holds
from common.config.schema import DeadKeys, ExperimentConfig, Rule
from common.config.sections import (
    VCR_KEYS,
    AnswerVocabularyKeys,
    DatasetConfig,
    NetworkConfig,
    RegionFileKeys,
    TrainConfig,
    VLBertConfig,
)

SINGLE = "ResNetVLBERTForPretraining"
MULTITASK = "ResNetVLBERTForPretrainingMultitask"
ATTENTION = "ResNetVLBERTForAttentionVis"

COCO_CLASSES = 81
"""Classes of regions in coco_captions, the background included."""

_TEXT = 'must be "general_corpus" after the first'
_POSITIONS = "NETWORK.VLBERT.max_position_embeddings - position_padding_idx - 3"

MLM_LOSSES = (("mlm_loss", "MLMLoss"),)
MULTITASK_MLM_LOSSES = (("mlm_loss_wvc", "MLMLossWVC"), ("mlm_loss_aux", "MLMLossAUX"))


class PretrainDatasetConfig(AnswerVocabularyKeys, RegionFileKeys, DatasetConfig):
    """Images with captions, or text alone."""

    DATASET: Literal["", "conceptual_captions", "coco_captions", "general_corpus"] = ""
    SEQ_LEN: Positive = 64
    """Pretrain: maximum length of caption and regions together; general_corpus: of a text. In word pieces."""
    MIN_SEQ_LEN: Natural = 0
    """Pretrain general_corpus: join following lines until there are this many words."""


class PretrainVLBertConfig(VLBertConfig):
    """The joint transformer with the heads of pre-training."""

    with_pooler: bool = True
    from_scratch: bool = False
    """Pretrain: do not start from BERT's weights."""
    pos_embedding_frozen: bool = False
    """Pretrain: freeze the position embeddings."""
    visual_region_classes: Positive = 1601
    """Pretrain: classes of masked regions."""


class PretrainNetworkConfig(NetworkConfig):
    """The model that predicts masked words and regions."""

    FOR_MASK_VL_MODELING_PRETRAIN: MustBeFalse = False
    """Does not exist."""
    VLBERT: PretrainVLBertConfig = PretrainVLBertConfig()
    """The joint transformer."""
    CLASSIFIER_TYPE: Literal["2fc", "1fc"] = "2fc"
    WITH_REL_LOSS: bool = True
    """Pretrain: classify whether captions match (half are swapped); needs VLBERT.with_pooler and
    conceptual_captions.
    """
    WITH_MLM_LOSS: bool = True
    """Pretrain: predict masked words."""
    WITH_MVRC_LOSS: bool = True
    """Pretrain: classify masked regions."""
    MLM_LOSS_NORM_IN_BATCH_FIRST: bool = False
    """Pretrain: average the word loss in each sample first, then over samples."""
    MVRC_LOSS_NORM_IN_BATCH_FIRST: bool = False
    """Pretrain: the same for the region loss."""
    MASK_RAW_PIXELS: bool = True
    """Pretrain from images: blank the pixels of masked regions; false replaces their features by a
    learned vector.
    """


class PretrainTrainConfig(TrainConfig):
    """Training."""

    ASPECT_GROUPING: bool = False
    LOSS_LOGGERS: LossLoggers = (("relationship_loss", "RelLoss"), *MLM_LOSSES, ("mvrc_loss", "MVRCLoss"))
    """Losses in the log line and in tensorboard: "key of the model's outputs,name to show". Pretrain: without this
    key, all that the model has.
    """


def _one_or_list(value: Any) -> str:
    return "<list>" if isinstance(value, tuple) else "<one>"


Datasets = Annotated[
    Annotated[PretrainDatasetConfig, Tag("<one>")]
    | Annotated[tuple[PretrainDatasetConfig, ...], holds(lambda entries: len(entries) > 1), Tag("<list>")],
    Discriminator(_one_or_list),
    Allowed("a section of keys, or a list of two or more"),
]


class PretrainConfig(ExperimentConfig):
    """A pre-training experiment.

    `TRAIN.ASPECT_GROUPING` is false by default, unlike the reference, where the default stops the run.
    """

    dead: ClassVar[DeadKeys] = {
        **ExperimentConfig.dead,
        **VCR_KEYS,
        "DATASET.ANSWER_VOCAB_FILE": (),
        "DATASET.ANSWER_VOCAB_SIZE": (),
        "DATASET.TASK": (),
        "DATASET.TEST_IMAGE_SET": ("val",),
        "DATASET.TEST_ANNOTATION_FILE": ("./data/en_corpus/bc1g.doc",),
        "DATASET.IGNORE_DB_CACHE": (False,),
        "NETWORK.BLIND": (),
        "NETWORK.NO_GROUNDING": (),
        "NETWORK.ENABLE_CNN_REG_LOSS": (False,),
        "NETWORK.VLBERT.object_word_embed_mode": (),
        "NETWORK.CLASSIFIER_TYPE": (),
        "NETWORK.CLASSIFIER_HIDDEN_SIZE": (),
        "NETWORK.CLASSIFIER_DROPOUT": (),
        "TEST.SHUFFLE": (),
        "TEST.FLIP_PROB": (),
        "TEST.BATCH_IMAGES": None,
    }

    MODULE: Literal[
        "", "ResNetVLBERTForPretraining", "ResNetVLBERTForPretrainingMultitask", "ResNetVLBERTForAttentionVis"
    ] = ""
    DATASET: Datasets = PretrainDatasetConfig()
    """The data; a list for several datasets at once."""
    NETWORK: PretrainNetworkConfig = PretrainNetworkConfig()
    """The model."""
    TRAIN: PretrainTrainConfig = PretrainTrainConfig()
    """Training."""

    @model_validator(mode="after")
    def _log_what_is_trained(self) -> Self:
        """Logs all losses of the model if the file does not list any."""
        if "LOSS_LOGGERS" not in self.TRAIN.model_fields_set and self.MODULE in (SINGLE, MULTITASK):
            update = {"LOSS_LOGGERS": self.own_losses}
            object.__setattr__(self, "TRAIN", self.TRAIN.model_copy(update=update))
        return self

    @property
    def datasets(self) -> tuple[PretrainDatasetConfig, ...]:
        """The `DATASET` sections: images with captions, then texts."""
        return self.DATASET if isinstance(self.DATASET, tuple) else (self.DATASET,)

    @property
    def multitask(self) -> bool:
        """Whether a text corpus is read beside the captions."""
        return self.MODULE == MULTITASK

    @property
    def own_losses(self) -> LossLoggers:
        """Losses of the model, and their names in the log."""
        network = self.NETWORK
        return (
            *((("relationship_loss", "RelLoss"),) * network.WITH_REL_LOSS),
            *((MULTITASK_MLM_LOSSES if self.multitask else MLM_LOSSES) * network.WITH_MLM_LOSS),
            *((("mvrc_loss", "MVRCLoss"),) * network.WITH_MVRC_LOSS),
        )

    def remarks(self) -> list[Rule]:
        """Returns settings that work but may surprise."""
        own = dict(self.own_losses)
        absent = [name for name, _ in self.TRAIN.LOSS_LOGGERS if name not in own]
        return [
            *super().remarks(),
            (
                bool(absent) and self.MODULE in (SINGLE, MULTITASK),
                "TRAIN.LOSS_LOGGERS",
                f"this model has no {', '.join(absent)} and will show 0 for it; it has {', '.join(own)}",
            ),
        ]

    def rules(self) -> list[Rule]:
        """Returns combinations that cannot work."""
        network, bert = self.NETWORK, self.NETWORK.VLBERT
        losses = (network.WITH_REL_LOSS, network.WITH_MLM_LOSS, network.WITH_MVRC_LOSS)
        trains = self.MODULE != ATTENTION
        return [
            *super().rules(),
            *self._dataset_rules(),
            (
                trains and network.WITH_REL_LOSS and not bert.with_pooler,
                "NETWORK.VLBERT.with_pooler",
                "must be true with NETWORK.WITH_REL_LOSS",
            ),
            (
                trains and not any(losses),
                "NETWORK.WITH_MLM_LOSS",
                "at least one of NETWORK.WITH_REL_LOSS, WITH_MLM_LOSS and WITH_MVRC_LOSS must be true",
            ),
            (
                isinstance(self.DATASET, tuple) and bert.visual_size != bert.hidden_size,
                "NETWORK.VLBERT.visual_size",
                f"must equal NETWORK.VLBERT.hidden_size, {bert.hidden_size}, where DATASET is a list",
            ),
            (
                network.IMAGE_SEMANTIC,
                "NETWORK.IMAGE_SEMANTIC",
                "must be false in pretrain: its regions have no classes",
            ),
            (
                not trains and self.TRAIN.END_EPOCH > 0,
                "TRAIN.END_EPOCH",
                f"must be 0 with {ATTENTION}, which has nothing to train; another MODULE does",
            ),
            (self.TRAIN.ASPECT_GROUPING, "TRAIN.ASPECT_GROUPING", "must be false in pretrain"),
        ]

    def _dataset_rules(self) -> list[Rule]:
        """Checks which datasets fit the model: one with images, followed by texts in a list."""
        network = self.NETWORK
        longest = network.VLBERT.max_position_embeddings - network.VLBERT.position_padding_idx - 3
        (images, place), *others = zip(self.datasets, self.dataset_keys, strict=True)
        coco = images.DATASET == "coco_captions"
        return [
            (
                self.MODULE == MULTITASK and not others,
                "DATASET",
                f"must be a list of datasets with {MULTITASK}",
            ),
            (self.MODULE == SINGLE and bool(others), "DATASET", f"must be one dataset with {SINGLE}"),
            (
                images.DATASET == "general_corpus",
                f"{place}.DATASET",
                'must be a dataset with images, "conceptual_captions" or "coco_captions"',
            ),
            *(
                rule
                for data, key in others
                for rule in (
                    (data.DATASET not in ("", "general_corpus"), f"{key}.DATASET", _TEXT),
                    (longest < data.SEQ_LEN, f"{key}.SEQ_LEN", f"must be at most {longest}, {_POSITIONS}"),
                )
            ),
            (coco and images.PACKED_REGIONS != "", f"{place}.PACKED_REGIONS", "must be empty for COCO"),
            (coco and network.WITH_REL_LOSS, "NETWORK.WITH_REL_LOSS", "must be false with coco_captions"),
            (
                coco and network.WITH_MVRC_LOSS and network.VLBERT.visual_region_classes != COCO_CLASSES,
                "NETWORK.VLBERT.visual_region_classes",
                f"must be {COCO_CLASSES} with coco_captions and NETWORK.WITH_MVRC_LOSS",
            ),
            (
                coco and network.IMAGE_FEAT_PRECOMPUTED,
                "NETWORK.IMAGE_FEAT_PRECOMPUTED",
                "must be false: coco_captions holds no region features",
            ),
        ]
