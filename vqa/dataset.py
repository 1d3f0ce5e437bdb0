"""VQA: an image or its region features, a question, and the answers of ten annotators."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.batch import Batch, Sample, TextSequence, stacked
from common.config.fields import Split
from common.data.coco import CocoIndex
from common.data.dataset import VisualLinguisticDataset
from common.data.images import PreparedImage, read_image
from common.data.regions.reader import RegionStore, prepend_image_box
from common.data.regions.types import Regions
from common.data.samplers import aspect_groups
from common.data.samples import build_sample
from common.data.storage.store import Store
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from vqa.answers import AnswerVocabulary, soft_target, swap_left_right
from vqa.config import VQAConfig
from vqa.questions import SOURCES, Questions, split_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VQASample(Sample):
    """One question.

    Attributes:
        label: (V,) float32 score of every answer in the vocabulary; None in test mode.
    """

    label: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class VQABatch(Batch):
    """Several questions, one text sequence each.

    Attributes:
        label: (B, V) float32 score of every answer in the vocabulary; None in test mode.
    """

    label: Tensor | None = stacked()

    @property
    def question_ids(self) -> list[int]:
        """Official id of every question."""
        return [int(record_id) for record_id in self.record_ids]


def assemble_question(pieces: Sequence[int], tokenizer: Tokenizer) -> TextSequence:
    """Returns `[CLS] question [SEP] [MASK] [SEP]`, the last two tokens in the second segment."""
    special = (tokenizer.sep_id, tokenizer.mask_id, tokenizer.sep_id)
    ids = np.array([tokenizer.cls_id, *pieces, *special])
    types = np.zeros_like(ids)
    types[-2:] = 1
    return TextSequence(ids=ids, types=types, tags=np.zeros_like(ids))


class VQAPreprocessor:
    """Turns an image, a question and regions into a sample; for datasets and predictions.

    Args:
        config: the experiment.
        tokenizer: BERT's tokenizer.
    """

    def __init__(self, config: VQAConfig, tokenizer: Tokenizer) -> None:
        self._data = config.DATASET
        self._tokenizer = tokenizer

    def __call__(
        self,
        index: int,
        record_id: str,
        image: PreparedImage,
        question: str,
        regions: Regions,
        *,
        flipped: bool = False,
        label: Tensor | None = None,
    ) -> VQASample:
        """Builds the sample of a question.

        Args:
            index: index of the item.
            record_id: id of the question.
            image: the image, flipped if `flipped`.
            question: the question. In a flipped image, left and right are swapped.
            regions: regions in original pixels, not flipped.
            flipped: whether the image is flipped horizontally.
            label: (V,) float32 score of every answer.
        """
        if regions.image_size not in (None, image.original):
            raise DataError(
                f"its region file is for an image of {regions.image_size} pixels (width, height), but the image "
                f"has {image.original}"
            )
        boxes, features = prepend_image_box(regions, image, add=self._data.ADD_IMAGE_AS_A_BOX)
        # As in the reference, USE_IMDB swaps words before tokenization, otherwise word pieces are swapped.
        if flipped and self._data.USE_IMDB:
            pieces = self._tokenizer.ids(swap_left_right(question))
        else:
            pieces = self._tokenizer.ids(question)
            pieces = self._tokenizer.swap_left_right(pieces) if flipped else pieces
        text = assemble_question(pieces, self._tokenizer)
        return build_sample(
            VQASample,
            index,
            record_id,
            image,
            boxes,
            [text],
            flipped=flipped,
            box_features=features,
            label=label,
        )


class VQADataset(VisualLinguisticDataset[VQASample]):
    """The questions of one split. `DATASET.ON_BAD_DATA: skip` applies to training only.

    Args:
        config: the experiment.
        split: test has no labels.
        tokenizer: BERT's tokenizer.
        vocabulary: the answers that are classes.

    Attributes:
        questions: questions and annotated answers.

    Raises:
        ConfigError: the split is unknown.
        DataError: questions, annotations, images or region files are missing or invalid.
    """

    batch_type = VQABatch

    def __init__(
        self, config: VQAConfig, split: Split, tokenizer: Tokenizer, vocabulary: AnswerVocabulary
    ) -> None:
        data = config.DATASET
        super().__init__(seed=config.RNG_SEED, on_bad_data=data.ON_BAD_DATA if split == "train" else "raise")
        self.preprocessor = VQAPreprocessor(config, tokenizer)
        self._precomputed = config.NETWORK.IMAGE_FEAT_PRECOMPUTED
        self._scales = config.SCALES
        self._labeled = split != "test"
        self._flip_prob = config.loop(split).FLIP_PROB
        self._sources = [SOURCES[name] for name in split_names(data, split)]

        def location(name: str, parent: str = "") -> str:
            folder = data.path(f"{parent}{name}")
            return f"{folder}.zip@/{name}" if data.ZIP_MODE else folder

        self._images = [location(source.images) for source in self._sources]
        self._store = Store([] if self._precomputed else self._images, data.cache)
        roots = [
            location(source.regions[data.BOXES], "vgbua_res101_precomputed/") for source in self._sources
        ]
        stores = {
            root: RegionStore(root, data.PACKED_REGIONS, cache=data.cache) for root in dict.fromkeys(roots)
        }
        self._regions = [stores[root] for root in roots]
        self.questions = Questions.open(data, split)
        grouped = split == "train" and config.TRAIN.ASPECT_GROUPING
        self._sizes: list[CocoIndex] = []
        if self._precomputed or grouped:
            names = [source.sizes for source in self._sources]
            folder = data.path("annotations")
            indexes = {name: CocoIndex(f"{folder}/{name}") for name in dict.fromkeys(names)}
            self._sizes = [indexes[name] for name in names]
        answers = self.questions.said
        self._num_classes = len(vocabulary.answers)
        self._classes = np.array([vocabulary.class_of(answer) for answer in answers], dtype=np.int64)
        self._swapped_classes = np.array(
            [vocabulary.class_of(swap_left_right(answer)) for answer in answers], dtype=np.int64
        )
        if self._labeled:
            codes = self.questions.codes()
            logger.info(
                "%s: %d questions; %d of %d answers are not in %s",
                data.image_set(split),
                len(self),
                np.count_nonzero(self._classes[codes] < 0),
                len(codes),
                data.ANSWER_VOCAB_FILE,
            )

    def __len__(self) -> int:
        return len(self.questions)

    def record_id(self, index: int) -> str:
        return str(self.questions.ids[index])

    def groups(self) -> list[int]:
        return aspect_groups(*zip(*(self._size(index) for index in range(len(self))), strict=True))

    def load(self, index: int, rng: random.Random) -> VQASample:
        """Reads one question. Draws `random()` for a flip."""
        flipped = rng.random() < self._flip_prob
        part, image_id = self.questions.parts[index], int(self.questions.images[index])
        regions = self._regions[part].read(image_id, features=self._precomputed)
        image = read_image(
            self._store,
            f"{self._images[part]}/COCO_{self._sources[part].images}_{image_id:012d}.jpg",
            self._scales,
            flipped=flipped,
            decode=not self._precomputed,
            original=self._size(index) if self._precomputed else None,
        )
        label = None
        if self._labeled:
            classes = self._swapped_classes if flipped else self._classes
            given, scores = soft_target(classes[self.questions.codes(index)])
            label = torch.zeros(self._num_classes)
            label[given] = torch.from_numpy(scores).float()
        return self.preprocessor(
            index,
            self.record_id(index),
            image,
            self.questions.texts[index],
            regions,
            flipped=flipped,
            label=label,
        )

    def _size(self, index: int) -> tuple[int, int]:
        """Returns width and height of the image of a question, from the COCO annotations."""
        questions = self.questions
        sizes: CocoIndex = self._sizes[questions.parts[index]]
        return sizes.size(int(questions.images[index]))
