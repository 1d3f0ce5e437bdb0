"""VCR: an image with detected objects, a question about them, and four choices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product, starmap
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

from common.batch import Batch, Sample, stacked
from common.config.fields import Split
from common.data.coco import CLASS_INDEX
from common.data.dataset import VisualLinguisticDataset
from common.data.images import PreparedImage, read_image, vcr_padded_size
from common.data.instance_masks import instance_mask
from common.data.samples import build_sample
from common.data.storage.jsonl import JsonLines
from common.data.storage.store import Store, parse_model
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from vcr.config import VCRConfig
from vcr.text import (
    PERSON_NAMES,
    Tokens,
    answer_lengths,
    assemble_text,
    name_objects,
    rationale_lengths,
    referenced_objects,
    tokenize_words,
)

NUM_CHOICES = 4


Reference = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Words = Annotated[list[str | Reference], Field(min_length=1)]
Choices = Annotated[list[Words], Field(min_length=NUM_CHOICES, max_length=NUM_CHOICES)]
Label = Annotated[int, Field(ge=0, lt=NUM_CHOICES)]
ScoredBox = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


class VCRRecord(BaseModel):
    """A line of an annotation file. Texts are words and lists of indices into `objects`."""

    model_config = ConfigDict(strict=True, frozen=True)

    annot_id: str
    img_fn: str
    metadata_fn: str
    objects: list[str]
    question: Words
    answer_choices: Choices
    rationale_choices: Choices | None = None
    answer_label: Label | None = None
    rationale_label: Label | None = None


class VCRMetadata(BaseModel):
    """Detections in an image: x1, y1, x2, y2, score, polygons and class of every object."""

    model_config = ConfigDict(strict=True, frozen=True)

    boxes: list[ScoredBox]
    segms: list[list[list[tuple[FiniteFloat, FiniteFloat]]]]
    names: list[str] = []


@dataclass(frozen=True, kw_only=True)
class VCRSample(Sample):
    """One question.

    Attributes:
        label: () int64 index of the right choice; None in test mode.
    """

    label: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class VCRBatch(Batch):
    """Several questions. The texts of an image are ordered by condition, then by choice.

    Attributes:
        label: (B,) int64 index of the right choice; None in test mode.
    """

    label: Tensor | None = stacked()

    @property
    def num_conditions(self) -> int:
        """Conditions per image that all choices are scored for: 1, in QA2R test mode one per answer."""
        return self.text.per_image.sizes[0] // NUM_CHOICES


class VCRPreprocessor:
    """Turns an annotation and the objects of its image into a sample; for datasets and predictions.

    Args:
        config: the experiment.
        tokenizer: BERT's tokenizer.
        truncate: whether QA2R texts are truncated. As in the reference, they are not in test mode.
    """

    def __init__(self, config: VCRConfig, tokenizer: Tokenizer, *, truncate: bool) -> None:
        self._data = config.DATASET
        self._network = config.NETWORK
        self._scales = config.SCALES
        self._tokenizer = tokenizer
        self._cls_id, self._sep_id = tokenizer.cls_id, tokenizer.sep_id
        self._truncate = truncate

    def __call__(
        self,
        index: int,
        record: VCRRecord,
        image: PreparedImage,
        metadata: VCRMetadata,
        *,
        name_offset: int,
        flipped: bool = False,
        label: Tensor | None = None,
    ) -> VCRSample:
        """Builds the sample of a question.

        Args:
            index: index of the item.
            record: the annotation.
            image: its image, flipped if `flipped`.
            metadata: boxes and polygons of all objects, not flipped.
            name_offset: index of the first person's name.
            flipped: whether the image is flipped horizontally.
            label: () int64 index of the right choice.
        """
        mask_size = (self._data.MASK_SIZE, self._data.MASK_SIZE)
        boxes: list[Sequence[float]] = []
        classes: list[int] = []
        masks: list[NDArray[np.bool_]] = []
        if self._data.ADD_IMAGE_AS_A_BOX:
            boxes.append(image.whole_box)
            classes.append(0)
            masks.append(np.ones(mask_size, dtype=np.bool_))
        for i in self.visible_objects(record):
            boxes.append(metadata.boxes[i][:4])
            # The objects of a prediction may have no known class.
            classes.append(CLASS_INDEX.get(record.objects[i], 0))
            masks.append(instance_mask(metadata.segms[i], metadata.boxes[i], mask_size))
        if not boxes:
            raise DataError("no object is visible, and DATASET.ADD_IMAGE_AS_A_BOX is off")
        box_masks = torch.from_numpy(np.stack(masks))
        assemble = partial(
            assemble_text,
            cls_id=self._cls_id,
            sep_id=self._sep_id,
            answer_first=self._network.ANSWER_FIRST,
            one_sentence=self._network.QA_ONE_SENT,
        )
        # Ordered by condition, then by choice, as `VCRBatch` expects.
        texts = list(starmap(assemble, product(*self.texts(record, name_offset))))
        return build_sample(
            VCRSample,
            index,
            record.annot_id,
            image,
            torch.tensor(boxes, dtype=torch.float32),
            texts,
            flipped=flipped,
            # As in the reference, images are padded to the maximum size of their orientation.
            padded_size=vcr_padded_size(*image.size, self._scales),
            box_classes=torch.tensor(classes),
            box_masks=box_masks.flip(-1) if flipped else box_masks,
            label=label,
        )

    def texts(self, record: VCRRecord, name_offset: int) -> tuple[list[Tokens], list[Tokens]]:
        """Tokenizes a record and truncates its texts, except in QA2R test mode.

        Returns:
            The conditions: the question; in QA2R with the right answer, in test mode with each answer, under
            `DATASET.QA2R_NOQ` the answer alone. And the four choices.
        """
        plain_tag = 0 if self._data.ADD_IMAGE_AS_A_BOX else -1
        mentions = name_objects(record.objects, self.visible_objects(record), name_offset, plain_tag + 1)
        choices = record.rationale_choices if self._data.TASK == "QA2R" else None
        question, *tokens = [
            tokenize_words(words, mentions, self._tokenizer, plain_tag=plain_tag)
            for words in (record.question, *record.answer_choices, *(choices or ()))
        ]
        answers, rationales = tokens[: len(record.answer_choices)], tokens[len(record.answer_choices) :]
        if self._data.TASK == "Q2A":
            length, lengths = answer_lengths(len(question.ids), [len(answer.ids) for answer in answers])
            return [question.first(length)], list(map(Tokens.first, answers, lengths))
        if self._truncate:
            assert record.answer_label is not None, "checked when the dataset is opened"
            answer = answers[record.answer_label]
            sizes = [len(rationale.ids) for rationale in rationales]
            length, answer_length, lengths = rationale_lengths(len(question.ids), len(answer.ids), sizes)
            question, answers = question.first(length), [answer.first(answer_length)]
            rationales = list(map(Tokens.first, rationales, lengths))
        return answers if self._data.QA2R_NOQ else [question.joined(answer) for answer in answers], rationales

    def visible_objects(self, record: VCRRecord) -> Sequence[int]:
        """Returns the indices of the objects that the model sees, in the order of their boxes."""
        if not self._data.ONLY_USE_RELEVANT_DETS:
            return range(len(record.objects))
        rationales = record.rationale_choices if self._data.TASK == "QA2R" else None
        return referenced_objects([record.question, *record.answer_choices, *(rationales or [])])


class VCRDataset(VisualLinguisticDataset[VCRSample]):
    """The questions of one split.

    Persons get one of 13 names, in turn. In training the first name is random. Otherwise it continues where the
    records before ended, so that a text never depends on which records were read. `DATASET.ON_BAD_DATA: skip` applies
    to training only: an evaluation skips no record.

    Args:
        config: the experiment.
        split: train draws names; test has no labels.
        tokenizer: BERT's tokenizer.

    Attributes:
        preprocessor: turns records into samples.
        records: the annotations.
        name_offsets: (N,) index of the first person's name in each record, outside training.

    Raises:
        DataError: images or annotations are missing, or an annotation is invalid.
    """

    batch_type = VCRBatch

    def __init__(self, config: VCRConfig, split: Split, tokenizer: Tokenizer) -> None:
        data = config.DATASET
        assert data.TASK != "Q2AR", "excluded by the configuration"
        super().__init__(seed=config.RNG_SEED, on_bad_data=data.ON_BAD_DATA if split == "train" else "raise")
        self.preprocessor = VCRPreprocessor(config, tokenizer, truncate=split != "test")
        self._task = data.TASK
        self._reads_pixels = not config.NETWORK.BLIND
        self._scales = config.SCALES
        self._split = split
        self._flip_prob = config.loop(split).FLIP_PROB
        root, image_set = Path(data.DATASET_PATH), data.image_set(split)
        self._images = str(root / (f"{image_set}.zip@/{image_set}" if data.ZIP_MODE else image_set))
        self._store = Store([self._images], data.cache)
        annotations = root / data.annotation_file(split)
        self.records = JsonLines(str(annotations), VCRRecord, data.cache)
        persons = [self._check_record(index, record) for index, record in enumerate(self.records)]
        self.name_offsets: NDArray[np.int64] = np.cumsum([0, *persons[:-1]]) % len(PERSON_NAMES)

    def __len__(self) -> int:
        return len(self.records)

    def record_id(self, index: int) -> str:
        return self.records[index].annot_id

    def load(self, index: int, rng: random.Random) -> VCRSample:
        """Reads one question. Draws `random()` for a flip, then in training `randrange(13)` for the names."""
        record = self.records[index]
        flipped = rng.random() < self._flip_prob
        is_train = self._split == "train"
        name_offset = rng.randrange(len(PERSON_NAMES)) if is_train else int(self.name_offsets[index])
        image = read_image(
            self._store,
            f"{self._images}/{record.img_fn}",
            self._scales,
            flipped=flipped,
            decode=self._reads_pixels,
        )
        path = f"{self._images}/{record.metadata_fn}"
        metadata = parse_model(VCRMetadata, self._store.read(path), path)
        if not len(metadata.boxes) == len(metadata.segms) == len(record.objects):
            raise DataError(
                f"{path}: {len(metadata.boxes)} boxes and {len(metadata.segms)} segms; expected "
                f"{len(record.objects)} of each, one for each of the record's objects"
            )
        label = record.answer_label if self._task == "Q2A" else record.rationale_label
        return self.preprocessor(
            index,
            record,
            image,
            metadata,
            name_offset=name_offset,
            flipped=flipped,
            label=None if self._split == "test" else torch.tensor(label),
        )

    def _check_record(self, index: int, record: VCRRecord) -> int:
        """Checks that a record has what this task and split need; returns the number of its visible persons."""
        names = ["answer"] if self._task == "Q2A" else ["answer", "rationale"]
        required = [f"{name}_choices" for name in names]
        required += [f"{name}_label" for name in names if self._split != "test"]
        for i, name in enumerate(record.objects):
            if CLASS_INDEX.get(name, 0) == 0:
                raise DataError(
                    f'{self.records.where(index)}: objects.{i}: "{name}" is not one of the 80 object classes'
                )
        missing = [name for name in required if getattr(record, name) is None]
        if missing:
            raise DataError(f"{self.records.where(index)}: {missing[0]}: Field required")
        texts = [record.question, *record.answer_choices, *(record.rationale_choices or [])]
        largest = max(referenced_objects(texts), default=-1)
        if largest >= len(record.objects):
            raise DataError(
                f"{self.records.where(index)}: a text refers to object {largest}, but there are "
                f"{len(record.objects)}, counted from 0"
            )
        return sum(record.objects[i] == "person" for i in self.preprocessor.visible_objects(record))
