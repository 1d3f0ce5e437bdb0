"""VCR: a picture with detected objects, a question about them, and four choices (data spec 4.1)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor

from common.batch import Batch, Sample, stacked
from common.config.fields import Split
from common.data.coco import CLASS_INDEX
from common.data.dataset import VisualLinguisticDataset
from common.data.images import PreparedImage, read_image, resize_boxes, vcr_padded_size
from common.data.instance_masks import instance_mask
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
    mentions,
    rationale_lengths,
    referenced_objects,
    tokenize_words,
)

NUM_CHOICES = 4


def _known_class(name: str) -> str:
    if CLASS_INDEX.get(name, 0) == 0:
        raise ValueError(f'"{name}" is not one of the 80 object classes')
    return name


Reference = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Words = Annotated[list[str | Reference], Field(min_length=1)]
Choices = Annotated[list[Words], Field(min_length=NUM_CHOICES, max_length=NUM_CHOICES)]
Label = Annotated[int, Field(ge=0, lt=NUM_CHOICES)]
ScoredBox = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


class VCRRecord(BaseModel):
    """A line of an annotation file (data spec 1.3); texts are words and lists of indices into `objects`."""

    model_config = ConfigDict(strict=True, frozen=True)

    annot_id: str
    img_fn: str
    metadata_fn: str
    objects: list[Annotated[str, AfterValidator(_known_class)]]
    question: Words
    answer_choices: Choices
    rationale_choices: Choices | None = None
    answer_label: Label | None = None
    rationale_label: Label | None = None


class VCRMetadata(BaseModel):
    """What the detector found in a picture: x1, y1, x2, y2, score, polygons and class of every object."""

    model_config = ConfigDict(strict=True, frozen=True)

    boxes: list[ScoredBox]
    segms: list[list[list[tuple[FiniteFloat, FiniteFloat]]]]
    names: list[str] = []


@dataclass(frozen=True, kw_only=True)
class VCRSample(Sample):
    """One question.

    Attributes:
        label: () int64 number of the right choice; None in test mode.
    """

    label: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class VCRBatch(Batch):
    """Several questions. The texts of an image are ordered by condition, then by choice.

    Attributes:
        label: (B,) int64 number of the right choice; None in test mode.
    """

    label: Tensor | None = stacked()  # declares a field

    @property
    def num_conditions(self) -> int:
        """Questions per image that all choices are scored for: 1, in QA2R test mode one per answer."""
        return self.text.per_image.sizes[0] // NUM_CHOICES


class VCRReader:
    """Turns an annotation and the objects of a picture into what the model reads.

    Args:
        config: the experiment.
        tokenizer: BERT's.
        cut: whether QA2R texts are cut to the limit, as everywhere but in test mode (as the reference).
    """

    def __init__(self, config: VCRConfig, tokenizer: Tokenizer, *, cut: bool) -> None:
        self._data = config.DATASET
        self._network = config.NETWORK
        self._scales = config.SCALES
        self._tokenizer = tokenizer
        self._cut = cut

    def sample(
        self,
        index: int,
        record: VCRRecord,
        picture: PreparedImage,
        regions: tuple[Tensor, Tensor, Tensor],
        *,
        name_offset: int,
        flipped: bool = False,
        label: Tensor | None = None,
    ) -> VCRSample:
        """Puts an item together; `regions` as the method of that name returns them."""
        boxes, classes, masks = regions
        conditions, choices = self.texts(record, name_offset)
        return VCRSample(
            index=index,
            record_id=record.annot_id,
            image=picture.pixels,
            padded_size=vcr_padded_size(*picture.size, self._scales),
            im_info=picture.im_info,
            boxes=resize_boxes(boxes, picture.im_info, flipped=flipped),
            texts=tuple(
                assemble_text(
                    condition,
                    choice,
                    cls_id=self._tokenizer.cls_id,
                    sep_id=self._tokenizer.sep_id,
                    answer_first=self._network.ANSWER_FIRST,
                    one_sentence=self._network.QA_ONE_SENT,
                )
                for condition in conditions
                for choice in choices
            ),
            box_classes=classes,
            box_masks=masks.flip(-1) if flipped else masks,
            label=label,
        )

    def texts(self, record: VCRRecord, name_offset: int) -> tuple[list[Tokens], list[Tokens]]:
        """Tokenises a record and cuts its texts to the limit, except in QA2R test mode (as the reference).

        Returns:
            What each choice follows: the question, with the right answer in QA2R (in test mode with each
            answer; under `DATASET.QA2R_NOQ` the answer alone); and the four choices.
        """
        plain_tag = 0 if self._data.ADD_IMAGE_AS_A_BOX else -1
        known = mentions(record.objects, self.kept(record), name_offset, plain_tag + 1)

        def tokens(words: Words) -> Tokens:
            align = self._data.BASIC_ALIGN
            return tokenize_words(words, known, self._tokenizer, plain_tag=plain_tag, basic_align=align)

        question = tokens(record.question)
        answers = [tokens(words) for words in record.answer_choices]
        if self._data.TASK == "Q2A":
            length, lengths = answer_lengths(len(question), [len(answer) for answer in answers])
            return [question.first(length)], list(map(Tokens.first, answers, lengths))
        assert record.rationale_choices is not None, "checked on opening"
        rationales = [tokens(words) for words in record.rationale_choices]
        if self._cut:
            assert record.answer_label is not None, "checked on opening"
            answer = answers[record.answer_label]
            sizes = [len(rationale) for rationale in rationales]
            length, answer_length, lengths = rationale_lengths(len(question), len(answer), sizes)
            question, answers = question.first(length), [answer.first(answer_length)]
            rationales = list(map(Tokens.first, rationales, lengths))
        return answers if self._data.QA2R_NOQ else [question + answer for answer in answers], rationales

    def kept(self, record: VCRRecord) -> Sequence[int]:
        """Returns the objects that take part, in the order of their boxes."""
        if not self._data.ONLY_USE_RELEVANT_DETS:
            return range(len(record.objects))
        rationales = record.rationale_choices if self._data.TASK == "QA2R" else None
        return referenced_objects([record.question, *record.answer_choices, *(rationales or [])])

    def regions(
        self, record: VCRRecord, found: VCRMetadata, whole: tuple[int, int, int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns boxes (n, 4) in original pixels, classes (n,) and instance masks (n, M, M)."""
        size = (self._data.MASK_SIZE, self._data.MASK_SIZE)
        kept = self.kept(record)
        boxes = [found.boxes[place][:4] for place in kept]
        classes = [CLASS_INDEX.get(record.objects[place], 0) for place in kept]
        masks = [instance_mask(found.segms[place], found.boxes[place], size) for place in kept]
        if self._data.ADD_IMAGE_AS_A_BOX:
            boxes.insert(0, whole)
            classes.insert(0, 0)
            masks.insert(0, np.ones(size, dtype=np.bool_))
        if not boxes:
            raise DataError("no object takes part, and DATASET.ADD_IMAGE_AS_A_BOX is off")
        return (
            torch.tensor(boxes, dtype=torch.float32),
            torch.tensor(classes),
            torch.from_numpy(np.stack(masks)),
        )


class VCRDataset(VisualLinguisticDataset[VCRSample]):
    """The questions of one split.

    Persons are named from a list of 13, in turn. In training the first name is drawn; else it continues where
    the records before ended, so that a text never depends on what else was read. `DATASET.ON_BAD_DATA: skip`
    concerns training alone: evaluation leaves out no record.

    Args:
        config: the experiment.
        split: train draws names; test has no labels.
        tokenizer: BERT's.

    Attributes:
        reader: turns records into samples.
        records: the annotations.
        name_offsets: (N,) number of the first person's name in each record, outside training.

    Raises:
        DataError: the annotations are missing or a line of them is wrong, or there are no pictures.
    """

    batch_type = VCRBatch

    def __init__(self, config: VCRConfig, split: Split, tokenizer: Tokenizer) -> None:
        data = config.DATASET
        assert data.TASK != "Q2AR", "the configuration rules this out"
        super().__init__(seed=config.RNG_SEED, on_bad_data=data.ON_BAD_DATA if split == "train" else "raise")
        self.reader = VCRReader(config, tokenizer, cut=split != "test")
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
        persons = [self._count_persons(index, record) for index, record in enumerate(self.records)]
        self.name_offsets: NDArray[np.int64] = np.cumsum([0, *persons[:-1]]) % len(PERSON_NAMES)

    def __len__(self) -> int:
        return len(self.records)

    def record_id(self, index: int) -> str:
        """Returns the `annot_id`."""
        return self.records[index].annot_id

    def load(self, index: int, rng: random.Random) -> VCRSample:
        """Reads one question; draws `random()` for a flip, then in training `randrange(13)` for the names."""
        record = self.records[index]
        flipped = rng.random() < self._flip_prob
        train = self._split == "train"
        name_offset = rng.randrange(len(PERSON_NAMES)) if train else int(self.name_offsets[index])
        picture = read_image(
            self._store,
            f"{self._images}/{record.img_fn}",
            self._scales,
            flipped=flipped,
            decode=self._reads_pixels,
        )
        label = record.answer_label if self._task == "Q2A" else record.rationale_label
        return self.reader.sample(
            index,
            record,
            picture,
            self.reader.regions(record, self._metadata(record), picture.whole),
            name_offset=name_offset,
            flipped=flipped,
            label=None if self._split == "test" else torch.tensor(label),
        )

    def _count_persons(self, index: int, record: VCRRecord) -> int:
        """Checks what a record needs in this task and split; returns how many persons of it take part."""
        names = ["answer"] if self._task == "Q2A" else ["answer", "rationale"]
        needed = [f"{name}_choices" for name in names]
        needed += [f"{name}_label" for name in names if self._split != "test"]
        missing = [name for name in needed if getattr(record, name) is None]
        if missing:
            raise DataError(f"{self.records.where(index)}: {missing[0]}: Field required")
        texts = [record.question, *record.answer_choices, *(record.rationale_choices or [])]
        largest = max(referenced_objects(texts), default=-1)
        if largest >= len(record.objects):
            raise DataError(
                f"{self.records.where(index)}: a text refers to object {largest}, but there are "
                f"{len(record.objects)}, counted from 0"
            )
        return sum(record.objects[place] == "person" for place in self.reader.kept(record))

    def _metadata(self, record: VCRRecord) -> VCRMetadata:
        path = f"{self._images}/{record.metadata_fn}"
        found = parse_model(VCRMetadata, self._store.read(path), path)
        if not len(found.boxes) == len(found.segms) == len(record.objects):
            raise DataError(
                f"{path}: {len(found.boxes)} boxes and {len(found.segms)} segms; expected "
                f"{len(record.objects)} of each, one for each of the record's objects"
            )
        return found
