"""VQA: a picture or its region features, a question, and what ten annotators answered (data spec 4.2)."""

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
from common.data.images import PreparedImage, read_image, resize_boxes
from common.data.regions.reader import RegionStore, prepend_image_box
from common.data.regions.types import Regions
from common.data.samplers import aspect_groups
from common.data.storage.store import Store
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from vqa.answers import AnswerVocabulary, mirrored, soft_target
from vqa.config import VQAConfig
from vqa.questions import SOURCES, Questions, split_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VQASample(Sample):
    """One question.

    Attributes:
        label: (V,) float32 score of every answer of the vocabulary; None in test mode.
    """

    label: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class VQABatch(Batch):
    """Several questions, one text sequence each.

    Attributes:
        label: (B, V) float32 score of every answer of the vocabulary; None in test mode.
    """

    label: Tensor | None = stacked()

    @property
    def question_ids(self) -> list[int]:
        """The official id of every question."""
        return [int(record_id) for record_id in self.record_ids]


def assemble_question(pieces: Sequence[int], tokenizer: Tokenizer) -> TextSequence:
    """`[CLS] question [SEP] [MASK] [SEP]`, the last two in the second segment (model spec 7.2)."""
    special = (tokenizer.sep_id, tokenizer.mask_id, tokenizer.sep_id)
    ids = np.array([tokenizer.cls_id, *pieces, *special])
    types = np.zeros_like(ids)
    types[-2:] = 1
    return TextSequence(ids=ids, types=types, tags=np.zeros_like(ids))


class VQADataset(VisualLinguisticDataset[VQASample]):
    """The questions of one split. `DATASET.ON_BAD_DATA: skip` concerns training alone.

    Args:
        config: the experiment.
        split: test has no labels.
        tokenizer: BERT's.
        vocabulary: the answers that are classes.

    Attributes:
        questions: what is asked, and answered.

    Raises:
        ConfigError: unknown split.
        DataError: questions, annotations, pictures or region files are missing, or one of them is wrong.
    """

    batch_type = VQABatch

    def __init__(
        self, config: VQAConfig, split: Split, tokenizer: Tokenizer, vocabulary: AnswerVocabulary
    ) -> None:
        data = config.DATASET
        super().__init__(seed=config.RNG_SEED, on_bad_data=data.ON_BAD_DATA if split == "train" else "raise")
        self._data = data
        self._precomputed = config.NETWORK.IMAGE_FEAT_PRECOMPUTED
        self._scales = config.SCALES
        self._labelled = split != "test"
        self._flip_prob = config.loop(split).FLIP_PROB
        self._tokenizer = tokenizer
        self._sources = [SOURCES[name] for name in split_names(data, split)]
        self._images = [self._place(source.images) for source in self._sources]
        self._store = Store([] if self._precomputed else self._images, data.cache)
        places = [
            self._place(source.regions[data.BOXES], "vgbua_res101_precomputed/") for source in self._sources
        ]
        opened = {
            place: RegionStore(place, data.PACKED_REGIONS, cache=data.cache)
            for place in dict.fromkeys(places)
        }
        self._regions = [opened[place] for place in places]
        self.questions = Questions.open(data, split)
        grouped = split == "train" and config.TRAIN.ASPECT_GROUPING
        self._sizes = self._open_sizes() if self._precomputed or grouped else []
        said = self.questions.said
        self._num_classes = len(vocabulary.answers)
        self._classes = np.array([vocabulary.class_of(answer) for answer in said], dtype=np.int64)
        self._mirrored_classes = np.array(
            [vocabulary.class_of(mirrored(answer)) for answer in said], dtype=np.int64
        )
        if self._labelled:
            codes = self.questions.codes()
            logger.info(
                "%s: %d questions; %d of %d answers are not in %s",
                data.image_set(split),
                len(self),
                np.count_nonzero(self._classes[codes] < 0),
                len(codes),
                data.ANSWER_VOCAB_FILE,
            )

    def _place(self, name: str, above: str = "") -> str:
        """Folder below DATASET_PATH, or its place in the archive of that name."""
        folder = self._data.path(f"{above}{name}")
        return f"{folder}.zip@/{name}" if self._data.ZIP_MODE else folder

    def _open_sizes(self) -> list[CocoIndex]:
        """Sizes of the pictures of every joined split."""
        names = [source.sizes for source in self._sources]
        folder = self._data.path("annotations")
        opened = {name: CocoIndex(f"{folder}/{name}") for name in dict.fromkeys(names)}
        return [opened[name] for name in names]

    def _size(self, index: int) -> tuple[int, int]:
        """Width and height of the picture of a question, as COCO tells them."""
        questions = self.questions
        sizes: CocoIndex = self._sizes[questions.parts[index]]
        return sizes.size(int(questions.images[index]))

    def __len__(self) -> int:
        return len(self.questions)

    def record_id(self, index: int) -> str:
        """Returns the question id."""
        return str(self.questions.ids[index])

    def groups(self) -> list[int]:
        """Returns 0 for questions about a picture at least as wide as high, else 1 (`TRAIN.ASPECT_GROUPING`)."""
        return aspect_groups(*zip(*(self._size(index) for index in range(len(self))), strict=True))

    def load(self, index: int, rng: random.Random) -> VQASample:
        """Reads one question; draws `random()` for a flip."""
        flipped = rng.random() < self._flip_prob
        part, image_id = self.questions.parts[index], int(self.questions.images[index])
        found = self._regions[part].read(image_id, features=self._precomputed)
        picture = read_image(
            self._store,
            f"{self._images[part]}/COCO_{self._sources[part].images}_{image_id:012d}.jpg",
            self._scales,
            flipped=flipped,
            decode=not self._precomputed,
            original=self._size(index) if self._precomputed else None,
        )
        boxes, features = self._boxes(found, picture)
        return VQASample(
            index=index,
            record_id=self.record_id(index),
            image=picture.pixels,
            padded_size=picture.size[::-1],
            im_info=picture.im_info,
            boxes=resize_boxes(boxes, picture.im_info, flipped=flipped),
            texts=(assemble_question(self._pieces(self.questions.texts[index], flipped), self._tokenizer),),
            box_features=features,
            label=self._label(index, flipped) if self._labelled else None,
        )

    def _boxes(self, found: Regions, picture: PreparedImage) -> tuple[Tensor, Tensor | None]:
        """Returns boxes (n, 4) in original pixels, the whole image first, and their features (n, F) if any."""
        if found.image_size not in (None, picture.original):
            raise DataError(
                f"its region file is for a picture of {found.image_size} pixels (width, height), but the picture "
                f"has {picture.original}"
            )
        return prepend_image_box(found, picture, add=self._data.ADD_IMAGE_AS_A_BOX)

    def _pieces(self, text: str, flipped: bool) -> list[int]:
        """Word pieces of a question; left and right change places in mirrored pictures."""
        if flipped and self._data.USE_IMDB:
            return self._tokenizer.ids(mirrored(text))
        pieces = self._tokenizer.ids(text)
        return self._tokenizer.mirrored(pieces) if flipped else pieces

    def _label(self, index: int, flipped: bool) -> Tensor:
        classes = self._mirrored_classes if flipped else self._classes
        given, scores = soft_target(classes[self.questions.codes(index)])
        label = torch.zeros(self._num_classes)
        label[given] = torch.from_numpy(scores).float()
        return label
