"""RefCOCO: a picture, candidate regions, and a sentence that refers to one of them (data spec 4.3)."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.batch import Batch, Sample, TextSequence, ragged, stacked
from common.config.fields import Split
from common.data.coco import BoxTable, CocoIndex
from common.data.dataset import VisualLinguisticDataset
from common.data.images import PreparedImage, read_image, resize_boxes
from common.data.regions.reader import RegionStore
from common.data.samplers import aspect_groups
from common.data.storage.store import Store
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.models.geometry import pairwise_iou
from refcoco.config import RefCOCOConfig
from refcoco.refer import Expression, read_expressions

logger = logging.getLogger(__name__)

IMAGES = "train2014"
"""All pictures of the three datasets are of this part of COCO."""

DETECTIONS = "proposal/res101_coco_minus_refer_notime_dets.json"
REGION_SET = "trainval2014_resnet101_faster_rcnn_genome"

RIGHT_IOU = 0.5
"""A box whose overlap with the target is larger is right in training; in tests an equal one is, too."""

UNKNOWN_REGION = -1


@dataclass(frozen=True, kw_only=True)
class RefCOCOSample(Sample):
    """One sentence.

    Attributes:
        label: (n,) float32, 1 for the boxes that cover what the sentence refers to, else 0; None in test mode.
        ref_id: () int64.
        sent_id: () int64.
        target: (4,) float32, the box that the sentence refers to, in original pixels.
        target_region: () int64, the row of `boxes` that is the annotation itself; -1 where none is.
    """

    label: Tensor | None
    ref_id: Tensor
    sent_id: Tensor
    target: Tensor
    target_region: Tensor


@dataclass(frozen=True, kw_only=True)
class RefCOCOBatch(Batch):
    """Several sentences, one text sequence each.

    Attributes:
        label: (K,) float32 or None, see `RefCOCOSample`.
        ref_id: (B,) int64.
        sent_id: (B,) int64.
        target: (B, 4) float32.
        target_region: (B,) int64, local to the image's boxes.
    """

    label: Tensor | None = ragged()  # declares a field
    ref_id: Tensor = stacked()
    sent_id: Tensor = stacked()
    target: Tensor = stacked()
    target_region: Tensor = stacked()


class RefCOCODataset(VisualLinguisticDataset[RefCOCOSample]):
    """The sentences of some splits of RefCOCO, RefCOCO+ or RefCOCOg.

    Candidate regions are the detected ones, then the annotated ones, as `DATASET.{SPLIT}_BOXES` says, and before
    them the whole image. `DATASET.ON_BAD_DATA: skip` concerns training alone: evaluation leaves out no record.

    Args:
        config: the experiment.
        split: which part; test has no labels.
        tokenizer: BERT's.

    Attributes:
        expressions: the sentences.

    Raises:
        ConfigError: the data has no such split.
        DataError: a file is missing, or a record of it cannot be used.
    """

    batch_type = RefCOCOBatch

    def __init__(self, config: RefCOCOConfig, split: Split, tokenizer: Tokenizer) -> None:
        data = config.DATASET
        super().__init__(seed=config.RNG_SEED, on_bad_data=data.ON_BAD_DATA if split == "train" else "raise")
        self._split = split
        self._scales = config.SCALES
        self._flip_prob = config.loop(split).FLIP_PROB
        self._image_box = data.ADD_IMAGE_AS_A_BOX
        self._annotated = "gt" in data.boxes(split)
        root = Path(data.DATASET_PATH)
        self._images = str(root / (f"{IMAGES}.zip@/{IMAGES}" if data.ZIP_MODE else IMAGES))
        self._store = Store([self._images], data.cache)
        folder = root / data.DATASET
        refs = folder / f"refs({data.SPLIT_BY}).p"
        key = f"DATASET.{split.upper()}_IMAGE_SET"
        self.expressions = read_expressions(refs, data.image_set(split), key)
        self._coco = CocoIndex(str(root / f"annotations/instances_{IMAGES}.json"))
        self._targets = self._find_targets(refs, CocoIndex(str(folder / "instances.json")))
        self._ids, self._starts = self._tokenize(refs, tokenizer)
        self._tokenizer = tokenizer
        self._detections: BoxTable | None = None
        self._regions: RegionStore | None = None
        if "proposal" in data.boxes(split):
            if data.PROPOSAL_SOURCE == "vg":
                region_root = root / "vgbua_res101_precomputed"
                inner = f"{REGION_SET}.zip@/{REGION_SET}" if data.ZIP_MODE else REGION_SET
                self._regions = RegionStore(str(region_root / inner), data.PACKED_REGIONS, cache=data.cache)
            else:
                self._detections = BoxTable.of_detections(str(folder / DETECTIONS))
                self._warn_of_lacking(self._detections, folder / DETECTIONS)

    def __len__(self) -> int:
        return len(self.expressions)

    def record_id(self, index: int) -> str:
        """Returns the numbers of sentence and ref."""
        return self.expressions[index].name

    def groups(self) -> Sequence[int]:
        """Returns the aspect group of every item."""
        sizes = [self._coco.size(expression.image_id) for expression in self.expressions]
        return aspect_groups([width for width, _ in sizes], [height for _, height in sizes])

    def load(self, index: int, rng: random.Random) -> RefCOCOSample:
        """Reads one sentence; draws `random()` for a flip."""
        expression = self.expressions[index]
        flipped = rng.random() < self._flip_prob
        picture = read_image(
            self._store,
            f"{self._images}/COCO_{IMAGES}_{expression.image_id:012d}.jpg",
            self._scales,
            flipped=flipped,
            original=self._coco.size(expression.image_id),
        )
        candidates, target_region = self._candidates(expression, picture)
        target = self._targets[index]
        placed = resize_boxes(torch.cat([target[None], candidates]), picture.im_info, flipped=flipped)
        overlap = pairwise_iou(placed[1:], placed[:1])[:, 0]
        return RefCOCOSample(
            index=index,
            record_id=expression.name,
            image=picture.pixels,
            padded_size=picture.size[::-1],
            im_info=picture.im_info,
            boxes=placed[1:],
            texts=(self._text(index, flipped),),
            label=None if self._split == "test" else (overlap > RIGHT_IOU).float(),
            ref_id=torch.tensor(expression.ref_id),
            sent_id=torch.tensor(expression.sent_id),
            target=target,
            target_region=torch.tensor(target_region),
        )

    def _text(self, index: int, flipped: bool) -> TextSequence:
        """[CLS], the sentence, [SEP]; in a mirrored picture left is right."""
        ids = self._ids[self._starts[index] : self._starts[index + 1]].tolist()
        tokenizer = self._tokenizer
        pieces = tokenizer.mirrored(ids) if flipped else ids
        return TextSequence.plain([tokenizer.cls_id, *pieces, tokenizer.sep_id])

    def _candidates(self, expression: Expression, picture: PreparedImage) -> tuple[Tensor, int]:
        """Returns the (n, 4) float32 boxes in original pixels, and which of them is the target's annotation.

        A training picture without any detected region keeps the annotated ones: else nothing would be right.
        """
        image_id = expression.image_id
        detected = self._detected(image_id, picture)
        parts = [torch.tensor([picture.whole], dtype=torch.float32)] if self._image_box else []
        parts.append(detected)
        region = UNKNOWN_REGION
        if self._annotated or (self._split == "train" and not len(detected)):
            own = np.flatnonzero(self._coco.annotation_ids(image_id) == expression.annotation_id)
            if len(own):
                region = sum(map(len, parts)) + int(own[0])
            parts.append(_corners(self._coco.boxes(image_id)))
        boxes = torch.cat(parts)
        if not len(boxes):
            raise DataError("the image has no candidate region, and DATASET.ADD_IMAGE_AS_A_BOX is off")
        return boxes, region

    def _detected(self, image_id: int, picture: PreparedImage) -> Tensor:
        if self._detections is not None:
            return _corners(self._detections.boxes(image_id))
        if self._regions is None:
            return torch.zeros(0, 4)
        found = self._regions.read(image_id, features=False)
        if found.image_size not in (None, picture.original):
            raise DataError(
                f"the regions of image {image_id} are of a picture of {found.image_size}, but COCO says "
                f"{picture.original} (width, height)"
            )
        return found.boxes

    def _find_targets(self, refs: Path, instances: CocoIndex) -> Tensor:
        """Returns the (N, 4) float32 corners of what each sentence refers to, and checks that all images are known."""
        boxes = []
        for expression in self.expressions:
            try:
                self._coco.size(expression.image_id)
                boxes.append(instances.box(expression.annotation_id))
            except DataError as error:
                raise DataError(f"{refs}: {expression.name}: {error}") from error
        return _corners(np.stack(boxes))

    def _tokenize(self, refs: Path, tokenizer: Tokenizer) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Returns the word-piece ids of all sentences, and where each begins."""
        texts = []
        for expression in self.expressions:
            texts.append(tokenizer.ids(expression.text))
            if not texts[-1]:
                raise DataError(f"{refs}: {expression.name}: the expression is empty")
        starts = np.cumsum([0, *map(len, texts)])
        return np.concatenate([np.array(text, dtype=np.int32) for text in texts]), starts

    def _warn_of_lacking(self, detections: BoxTable, path: Path) -> None:
        images = dict.fromkeys(expression.image_id for expression in self.expressions)
        lacking = [image for image in images if not len(detections.boxes(image))]
        if lacking:
            logger.warning(
                "%s: no region for %d of %d images (%s: %s ...); they keep the whole image%s",
                path,
                len(lacking),
                len(images),
                self._split,
                ", ".join(map(str, lacking[:3])),
                " and the annotated boxes" if self._split == "train" else "",
            )


def _corners(boxes: NDArray[np.float64]) -> Tensor:
    """(n, 4) float32 x1, y1, x2, y2 of boxes x, y, width, height."""
    return torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)).float()
