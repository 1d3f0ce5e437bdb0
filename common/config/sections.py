"""The sections of a configuration and the keys that tasks share, with their meaning.

Attribute names are the yaml keys. A default is what the reference does without the key.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from common.config.fields import (
    Above0,
    BatchSizes,
    Divisors,
    FromMinusOne,
    FromThree,
    LossLoggers,
    LossScale,
    Milestones,
    Multipliers,
    MustBeFalse,
    MustBeTrue,
    Natural,
    NonNegative,
    Number,
    OneToThree,
    PerChannel,
    Positive,
    PrecisionName,
    Probability,
    Renames,
    Split,
    Stages,
)


class Section(BaseModel):
    """A group of keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DatasetConfig(Section):
    """Where the samples come from."""

    DATASET: str = ""
    """Name of the dataset."""
    LABEL_INDEX_IN_BATCH: int = -1
    """Labels have names here."""
    APPEND_INDEX: MustBeFalse = False
    """Samples always carry their index."""
    TASK: Literal["Q2A", "QA2R", "Q2AR"] = "Q2AR"
    """VCR: the sub-task to train. Q2AR (the default) cannot be trained: vcr/val.py and vcr/test.py combine a Q2A and
    a
    QA2R run.
    """
    BASIC_ALIGN: bool = False
    """Without effect: only the reference records word numbers."""
    DATASET_PATH: str = ""
    """Directory of the dataset; empty: the working directory."""
    ROOT_PATH: str = ""
    """cache/ below it holds indexes of large files and archives whose own folder is not writable."""
    TRAIN_IMAGE_SET: str = ""
    """Split used for training, several joined with + (VCR: image folder); also part of the output path.
    VQA: train2014, val2014, minival2014, valminusminival2014. RefCOCO: train. Pretrain: train, val.
    """
    VAL_IMAGE_SET: str = ""
    """Split used for validation, as TRAIN_IMAGE_SET."""
    TEST_IMAGE_SET: str = ""
    """Split used for testing, as TRAIN_IMAGE_SET. VQA: test2015, test-dev2015; --split replaces it."""
    TRAIN_ANNOTATION_FILE: str = ""
    """VCR: jsonl file below DATASET_PATH. Pretrain general_corpus: text files joined with +, one sentence
    or paragraph per line, relative to the working directory.
    """
    VAL_ANNOTATION_FILE: str = ""
    """As TRAIN_ANNOTATION_FILE, for validation."""
    TEST_ANNOTATION_FILE: str = ""
    """As TRAIN_ANNOTATION_FILE, for testing."""
    ONLY_USE_RELEVANT_DETS: bool = True
    """VCR: keep only objects that the question or the choices mention."""
    ADD_IMAGE_AS_A_BOX: bool = True
    """Insert the whole image before the regions as box 0, with the feature of the image."""
    ZIP_MODE: bool = False
    """Read images and features from NAME.zip instead of the folder NAME."""
    CACHE_MODE: MustBeFalse = False
    """Keeping the whole dataset in memory is not supported."""
    IGNORE_DB_CACHE: bool = True
    """Annotations are always read directly."""
    MASK_SIZE: Positive = 14
    """VCR: side of the instance masks in cells; equals the region feature map, so 14 with
    NETWORK.IMAGE_C5_DILATED and 7 without.
    """
    QA2R_NOQ: bool = False
    """VCR QA2R: without the question; the answer alone is the query."""
    QA2R_AUG: MustBeFalse = False
    """Augmentation of QA2R is not supported."""
    ON_BAD_DATA: Literal["raise", "skip"] = "raise"
    """Invalid records: raise stops and names the record; skip uses the next valid one, counts, and stops above 1 % of
    the records. New key.
    """

    @property
    def cache(self) -> str:
        return os.path.join(self.ROOT_PATH, "cache")

    def path(self, name: str) -> str:
        """Returns the path of a file of the dataset; without DATASET_PATH relative to the working directory."""
        return os.path.join(self.DATASET_PATH, name)

    def image_set(self, split: Split) -> str:
        """Value of `{SPLIT}_IMAGE_SET`."""
        return str(getattr(self, f"{split.upper()}_IMAGE_SET"))

    def annotation_file(self, split: Split) -> str:
        """Value of `{SPLIT}_ANNOTATION_FILE`."""
        return str(getattr(self, f"{split.upper()}_ANNOTATION_FILE"))


class RegionFileKeys(Section):
    """Keys of `DATASET` in the tasks that read region files."""

    PACKED_REGIONS: str = ""
    """File written by scripts/pack_regions.py that replaces the folders or archives of region files, relative to the
    working directory; empty: not packed. Pretrain: several joined with +; an image is read from the file that was
    packed
    from its folder and contains it. New key.
    """


class AnswerVocabularyKeys(Section):
    """Keys of `DATASET` in VQA, accepted without effect in RefCOCO and pretrain."""

    ANSWER_VOCAB_FILE: str = ""
    """VQA: answer vocabulary, one answer per line, UTF-8."""
    ANSWER_VOCAB_SIZE: Positive = 3129
    """VQA: number of answers, the width of the classifier; equals the lines of the vocabulary."""


VCR_KEYS: dict[str, tuple[Any, ...]] = dict.fromkeys(
    (
        "DATASET.BASIC_ALIGN",
        "DATASET.ONLY_USE_RELEVANT_DETS",
        "DATASET.MASK_SIZE",
        "DATASET.QA2R_NOQ",
        "NETWORK.NO_OBJ_ATTENTION",
        "NETWORK.CNN_LOSS_WEIGHT",
        "NETWORK.ANS_LOSS_WEIGHT",
        "NETWORK.CLASSIFIER_SIGMOID",
        "NETWORK.CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT",
    ),
    (),
)
"""Shared keys that only VCR reads, in the form of `ExperimentConfig.dead`."""


class VLBertConfig(Section):
    """The joint transformer."""

    input_size: int = 1280
    """Leftover."""
    input_transform_type: OneToThree = 1
    """Leftover."""
    word_embedding_frozen: bool = False
    """Freeze the word embeddings except those of the first 1000 ids."""
    obj_pos_id_relative: MustBeTrue = True
    """All regions share the position after the text; other layouts are not supported."""
    hidden_size: Positive = 512
    """Width of the transformer; a multiple of num_attention_heads."""
    visual_size: Positive = 512
    """Width of the visual features that enter the embedding; equals NETWORK.IMAGE_FINAL_DIM. A linear layer is added
    if it
    differs from hidden_size.
    """
    num_hidden_layers: Positive = 4
    """Transformer layers."""
    num_attention_heads: Positive = 8
    """Attention heads per layer."""
    intermediate_size: Positive = 2048
    """Width of the feed-forward layers."""
    hidden_act: Literal["gelu", "relu", "swish"] = "gelu"
    """Activation of feed-forward layers and heads; gelu is the exact erf form."""
    hidden_dropout_prob: Probability = 0.1
    """Dropout after the embeddings, the attention output and the feed-forward output."""
    attention_probs_dropout_prob: Probability = 0.1
    """Dropout on the attention probabilities."""
    max_position_embeddings: Positive = 512
    """Rows of the position table."""
    type_vocab_size: FromThree = 3
    """Rows of the segment table: 0 and 1 text, 2 regions and [END]."""
    vocab_size: Positive = 30522
    """Rows of the word table."""
    initializer_range: NonNegative = 0.02
    """Standard deviation of initial weights."""
    visual_scale_text_init: Number = 0.0
    """Initial gain of the visual embedding of text: of its LayerNorm (visual_ln) or of one scalar."""
    visual_scale_object_init: Number = 0.0
    """The same for regions."""
    visual_ln: bool = False
    """Normalize visual embeddings with LayerNorm, not with a scalar scale."""
    object_word_embed_mode: OneToThree = 2
    """Linguistic embedding of a region: 1 = one of 81 classes, 2 = one for all, 3 = mean of the words
    that name it. VQA needs 2.
    """
    with_pooler: bool = False
    """Build the pooler on [CLS]; needed by VCR and by NETWORK.WITH_REL_LOSS of pretrain."""
    position_padding_idx: FromMinusOne = -1
    """The position of token i is i + this + 1: -1 for BERT, 1 for RoBERTa."""


class NetworkConfig(Section):
    """The model and the weights it starts from."""

    BLIND: bool = False
    """VCR, VQA: see nothing. Words carry no visual feature, sequences have no regions, there is no region loss."""
    NO_GROUNDING: bool = False
    """VCR: every word carries the feature of box 0. VQA: the words carry no visual feature."""
    PARTIAL_PRETRAIN: str = ""
    """Checkpoint that fills the matching part of the new model; --partial-pretrain replaces it."""
    PARTIAL_PRETRAIN_PREFIX_CHANGES: Renames = ()
    """Renames of its keys: the first rule whose old prefix matches a key is applied to it, once."""
    NO_OBJ_ATTENTION: bool = False
    """VCR: nothing attends to the regions."""
    IMAGE_FEAT_PRECOMPUTED: bool = False
    """Region features (2048 numbers) come from files and no ResNet is built. VQA and pretrain."""
    IMAGE_NUM_LAYERS: Literal[18, 34, 50, 101, 152] = 50
    """Depth of the ResNet. 18 and 34 make features 512 wide (the reference cannot use them)."""
    IMAGE_WIDTH: Positive = 64
    """Channels of the ResNet's first stage; all its widths scale with it. New key."""
    IMAGE_C5_DILATED: bool = False
    """Last ResNet stage with dilation 2 on 14x14 regions, not with stride 2 on 7x7."""
    IMAGE_STRIDE_IN_1x1: bool = False
    """Bottlenecks stride in their first 1x1 convolution (Caffe), not in the 3x3 one."""
    PIXEL_MEANS: PerChannel = ()
    """Means of B, G, R on 0..255, subtracted from the image."""
    PIXEL_STDS: Divisors = ()
    """Divisors of B, G, R after that."""
    IMAGE_PRETRAINED: str = ""
    """ResNet weights: the file is {this}-{epoch}.model, four digits. "" starts from random values."""
    IMAGE_PRETRAINED_EPOCH: Natural = 0
    """The epoch in that name."""
    IMAGE_FROZEN_BACKBONE_STAGES: Stages = (1, 2)
    """ResNet stages that are not trained: 1 = first convolution, 2 to 4 = trunk, 5 = region head."""
    IMAGE_FROZEN_BN: bool = True
    """Freeze batch normalization, parameters and statistics."""
    IMAGE_FINAL_DIM: Positive = 512
    """Width of a region's representation; equals VLBERT.visual_size."""
    IMAGE_SEMANTIC: bool = False
    """VCR: append an embedding of the region's class to its feature."""
    OUTPUT_CONV5: MustBeFalse = False
    """Does not exist."""
    BERT_MODEL_NAME: str = "bert-base-uncased"
    """Directory with vocab.txt (the tokenizer) and, for initial weights, pytorch_model.bin."""
    BERT_PRETRAINED: str = ""
    """Other initial BERT weights: the file is {this}-{epoch}.model, four digits."""
    BERT_PRETRAINED_EPOCH: Natural = 0
    """The epoch in that name."""
    BERT_FROZEN: bool = True
    """Leftover."""
    BERT_ALIGN_QUESTION: bool = True
    """Leftover."""
    BERT_ALIGN_ANSWER: bool = True
    """Leftover."""
    BERT_USE_LAYER: int = -2
    """Leftover."""
    BERT_WITH_NSP_LOSS: bool = False
    """Leftover."""
    BERT_WITH_MLM_LOSS: bool = False
    """Leftover."""
    ENABLE_CNN_REG_LOSS: bool = True
    """VCR: also classify the regions into 81 classes. VQA: must be false unless IMAGE_FEAT_PRECOMPUTED
    (and does nothing then).
    """
    CNN_LOSS_WEIGHT: NonNegative = 1.0
    """VCR: weight of the region classification loss."""
    ANS_LOSS_WEIGHT: NonNegative = 1.0
    """VCR: weight of the answer loss."""
    VLBERT: VLBertConfig = VLBertConfig()
    """The joint transformer."""
    CLASSIFIER_TYPE: Literal["2fc", "1fc", "mlm"] = "2fc"
    """Answer head: 2fc = hidden layer and linear, 1fc = linear, mlm (VQA) = BERT's MLM transform and
    linear.
    """
    CLASSIFIER_HIDDEN_SIZE: Positive = 1024
    """Width of the hidden layer of 2fc."""
    CLASSIFIER_DROPOUT: Probability = 0.1
    """Dropout in the head."""
    CLASSIFIER_SIGMOID: bool = False
    """VCR: binary cross entropy of each choice, not one softmax over the choices."""
    CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT: Above0 = 1.0
    """VCR with CLASSIFIER_SIGMOID: weight w of the right choice; the loss is scaled by (w+1)/(2w)."""


class AnswerNetworkKeys(Section):
    """Keys of `NETWORK` in VQA, accepted without effect in RefCOCO."""

    ANS_LOSS_TYPE: Literal["bce"] = "bce"
    """VQA: binary cross entropy of each answer; there is no other."""
    REPLACE_OBJECT_CHANGE_LABEL: bool = True
    """Leftover."""
    CLASSIFIER_PRETRAINED: bool = False
    """VQA: start each row of the last layer from the mean word embedding of its answer; not with
    CLASSIFIER_TYPE 2fc.
    """


class LoopConfig(Section):
    """How the samples of one split are run through."""

    SHUFFLE: bool = False
    """Shuffle the samples; the order depends on RNG_SEED and the epoch only."""
    FLIP_PROB: Probability = 0.0
    """Probability of flipping an image horizontally. With precomputed features only the boxes are flipped."""
    BATCH_IMAGES: BatchSizes = 1
    """Samples per process and micro-batch. Pretrain: a list exactly where DATASET is a list."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """`BATCH_IMAGES`, one entry for each dataset."""
        return self.BATCH_IMAGES if isinstance(self.BATCH_IMAGES, tuple) else (self.BATCH_IMAGES,)


class TestConfig(LoopConfig):
    """Testing."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    TEST_EPOCH: int = 0
    """Leftover."""


class TrainConfig(LoopConfig):
    """Training."""

    SHUFFLE: bool = True
    FLIP_PROB: Probability = 0.5
    LR_MULT: Multipliers = ()
    """Learning-rate factors: parameters whose name contains the text form a group with that factor."""
    ASPECT_GROUPING: bool = True
    """Batch landscape and portrait images apart (less padding). RefCOCO and VQA."""
    RESUME: bool = False
    """Continue from the checkpoint of epoch BEGIN_EPOCH - 1; stopped and started again, from where that run was."""
    AUTO_RESUME: bool = True
    """Continue from the newest checkpoint in the output directory, if any; without it every start is a new run."""
    BEGIN_EPOCH: Natural = 0
    """First epoch, counted from 0."""
    END_EPOCH: Natural = 0
    """Epochs in all: one past the last."""
    OPTIMIZER: Literal["SGD", "Adam", "AdamW"] = "SGD"
    """Optimizer."""
    CLIP_GRAD_NORM: Number = -1.0
    """Clip the global L2 norm of the gradient to this; off where <= 0."""
    GRAD_ACCUMULATE_STEPS: Positive = 1
    """Micro-batches per update."""
    MAX_TOKENS: Natural = 0
    """A micro-batch whose sequences (text, regions and [END]; VCR has four per sample) are together longer goes
    through the model in parts that are not, one after the other. What is learnt stays the same, but for the
    dropout masks and trainable batch normalization. 0: no limit. New key.
    """
    MAX_REGIONS: Natural = 0
    """The same for the boxes of its images. New key."""
    DRY_RUN: Literal["auto", "always", "never"] = "auto"
    """Before the first step, run the largest batch that samples of the data can make forward and backward, so
    that memory runs out then or not at all; auto: on a GPU. It changes no result. New key.
    """
    LR: NonNegative = 0.1
    """Learning rate PER SAMPLE: the base rate is LR x processes x BATCH_IMAGES (the sum of a list) x
    GRAD_ACCUMULATE_STEPS.
    """
    LR_SCHEDULE: Literal["step", "triangle", "plateau"] = "step"
    """step = x LR_FACTOR at each of LR_STEP; triangle = up over WARMUP_STEPS, then down to 0 at the end;
    plateau = x LR_FACTOR when validation stalls.
    """
    LR_FACTOR: Above0 = 0.1
    """Decay factor of step and plateau."""
    LR_STEP: Milestones = ()
    """Epochs at which step decays, ascending."""
    WARMUP: bool = False
    """Warm up (step and triangle)."""
    WARMUP_METHOD: Literal["linear", "constant"] = "linear"
    """Shape of step's warm-up."""
    WARMUP_FACTOR: NonNegative = 1.0 / 3
    """First factor of step's warm-up; triangle starts at 0."""
    WARMUP_STEPS: Natural = 1000
    """Length of the warm-up in updates."""
    WD: NonNegative = 0.0001
    """Weight decay of every parameter, biases and LayerNorm included."""
    MOMENTUM: NonNegative = 0.9
    """Momentum of SGD."""
    FP16: bool = False
    """Train in 16-bit mixed precision."""
    FP16_LOSS_SCALE: LossScale = 128.0
    """Loss scale of FP16: fixed, or dynamic. An update whose gradient overflows is left out, counted, and
    does not move the schedule; a dynamic scale is halved then, and doubled after 2000 good updates.
    """
    PRECISION: Literal["", "fp32", "tf32", "fp16", "bf16"] = ""
    """Number format, whatever FP16 says; empty: fp16 with FP16, else fp32. tf32 is fp32 but lets a GPU round
    the factors of products and convolutions; bf16 needs no loss scale, also on a CPU. New key.
    """
    ON_NONFINITE: Literal["raise", "skip"] = "raise"
    """A loss or gradient that is not finite: raise stops and names step, losses and records, nothing of it is
    saved; skip leaves the update out and counts it, 20 in a row at most. New key.
    """
    LOSS_LOGGERS: LossLoggers = ()
    """Losses in the log line and in tensorboard: "key of the model's outputs,name to show"."""

    @property
    def precision(self) -> PrecisionName:
        """What `PRECISION` and `FP16` ask for."""
        return self.PRECISION or ("fp16" if self.FP16 else "fp32")

    @property
    def resumable(self) -> bool:
        """Whether the same command resumes a stopped run."""
        return self.AUTO_RESUME or self.RESUME


class FineTuneTrainConfig(TrainConfig):
    """Training of VCR, VQA and RefCOCO, with three leftover keys that pretrain lacks."""

    VISUAL_SCALE_TEXT_LR_MULT: Number = 1.0
    """Leftover; use LR_MULT."""
    VISUAL_SCALE_OBJECT_LR_MULT: Number = 1.0
    """Leftover; use LR_MULT."""
    VISUAL_SCALE_CLIP_GRAD_NORM: Number = -1.0
    """Leftover."""
