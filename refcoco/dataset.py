"""RefCOCO: an image, candidate regions, and an expression that refers to one of them."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from common.data.regions.reader import RegionStore, prepend_image_box
from common.data.regions.types import Regions
from common.data.samplers import aspect_groups
from common.data.samples import build_sample
from common.data.storage.store import Store
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.models.geometry import pairwise_iou
from refcoco.config import RefCOCOConfig
from refcoco.refer import Expression, read_expressions

logger = logging.getLogger(__name__)

IMAGES = "train2014"
"""COCO split of all images of the three datasets."""

DETECTIONS = "proposal/res101_coco_minus_refer_notime_dets.json"
REGION_SET = "trainval2014_resnet101_faster_rcnn_genome"

POSITIVE_IOU = 0.5
"""In training, boxes with a larger IoU with the target are positive. In tests, an equal IoU also counts."""

UNKNOWN_REGION = -1


@dataclass(frozen=True, kw_only=True)
class RefCOCOSample(Sample):
    """One expression. A prediction has none of the fields of the dataset.

    Attributes:
        label: (n,) float32, 1 for boxes that match the target, else 0; None in test mode.
        ref_id: () int64.
        sent_id: () int64.
        target: (4,) float32 annotated box of the referred object, in original pixels.
        target_region: () int64 index in `boxes` of the annotated box itself; -1 if it is not a candidate.
    """

    label: Tensor | None = None
    ref_id: Tensor | None = None
    sent_id: Tensor | None = None
    target: Tensor | None = None
    target_region: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class RefCOCOBatch(Batch):
    """Several expressions, one text sequence each.

    Attributes:
        label: (K,) float32 or None, see `RefCOCOSample`.
        ref_id: (B,) int64.
        sent_id: (B,) int64.
        target: (B, 4) float32.
        target_region: (B,) int64 index among the boxes of its image.
    """

    label: Tensor | None = ragged()
    ref_id: Tensor = stacked()
    sent_id: Tensor = stacked()
    target: Tensor = stacked()
    target_region: Tensor = stacked()


class RefCOCOPreprocessor:
    """Turns an image, an expression and candidate regions into a sample; for datasets and predictions.

    Args:
        config: the experiment.
        tokenizer: BERT's tokenizer.
    """

    def __init__(self, config: RefCOCOConfig, tokenizer: Tokenizer) -> None:
        self._adds_image_box = config.DATASET.ADD_IMAGE_AS_A_BOX
        self._tokenizer = tokenizer

    def __call__(
        self,
        index: int,
        record_id: str,
        image: PreparedImage,
        expression: str,
        regions: Regions,
        *,
        flipped: bool = False,
    ) -> RefCOCOSample:
        """Builds the sample of an expression, without labels.

        Args:
            index: index of the item.
            record_id: name of the expression.
            image: the image, flipped if `flipped`.
            expression: the expression. In a flipped image, left and right are swapped.
            regions: candidates in original pixels, not flipped. With `ADD_IMAGE_AS_A_BOX` the whole image is added.
            flipped: whether the image is flipped horizontally.
        """
        boxes, _ = prepend_image_box(regions, image, add=self._adds_image_box)
        pieces = self._tokenizer.ids(expression)
        if flipped:
            pieces = self._tokenizer.swap_left_right(pieces)
        text = TextSequence.plain([self._tokenizer.cls_id, *pieces, self._tokenizer.sep_id])
        return build_sample(RefCOCOSample, index, record_id, image, boxes, [text], flipped=flipped)


class RefCOCODataset(VisualLinguisticDataset[RefCOCOSample]):
    """The expressions of some splits of RefCOCO, RefCOCO+ or RefCOCOg.

    Candidates are the whole image, then detected and annotated boxes as `DATASET.{SPLIT}_BOXES` says.
    `DATASET.ON_BAD_DATA: skip` applies to training only: an evaluation skips no record.

    Args:
        config: the experiment.
        split: test has no labels.
        tokenizer: BERT's tokenizer.

    Attributes:
        preprocessor: turns records into samples.
        expressions: the expressions.

    Raises:
        ConfigError: the data have no such split.
        DataError: a file is missing, or a record is invalid.
    """

    batch_type = RefCOCOBatch

    def __init__(self, config: RefCOCOConfig, split: Split, tokenizer: Tokenizer) -> None:
        data = config.DATASET
        super().__init__(seed=config.RNG_SEED, on_bad_data=data.ON_BAD_DATA if split == "train" else "raise")
        self.preprocessor = RefCOCOPreprocessor(config, tokenizer)
        self._split = split
        self._scales = config.SCALES
        self._flip_prob = config.loop(split).FLIP_PROB
        self._image_boxes = int(data.ADD_IMAGE_AS_A_BOX)
        self._uses_annotated = "gt" in data.boxes(split)
        root = Path(data.DATASET_PATH)
        self._images = str(root / (f"{IMAGES}.zip@/{IMAGES}" if data.ZIP_MODE else IMAGES))
        self._store = Store([self._images], data.cache)
        folder = root / data.DATASET
        refs = folder / f"refs({data.SPLIT_BY}).p"
        key = f"DATASET.{split.upper()}_IMAGE_SET"
        self.expressions = read_expressions(refs, data.image_set(split), key)
        self._coco = CocoIndex(str(root / f"annotations/instances_{IMAGES}.json"))

        # Targets are read and texts are checked here, so that errors show before training.
        instances = CocoIndex(str(folder / "instances.json"))
        targets = []
        for expression in self.expressions:
            try:
                self._coco.size(expression.image_id)
                targets.append(instances.box(expression.annotation_id))
            except DataError as error:
                raise DataError(f"{refs}: {expression.name}: {error}") from error
            if not tokenizer.ids(expression.text):
                raise DataError(f"{refs}: {expression.name}: the expression is empty")
        self._targets = _to_corners(np.stack(targets))

        self._detections: BoxTable | None = None
        self._regions: RegionStore | None = None
        if "proposal" in data.boxes(split):
            if data.PROPOSAL_SOURCE == "vg":
                region_root = root / "vgbua_res101_precomputed"
                inner = f"{REGION_SET}.zip@/{REGION_SET}" if data.ZIP_MODE else REGION_SET
                self._regions = RegionStore(str(region_root / inner), data.PACKED_REGIONS, cache=data.cache)
            else:
                self._detections = BoxTable.of_detections(str(folder / DETECTIONS))
                self._warn_about_missing(self._detections, folder / DETECTIONS)

    def __len__(self) -> int:
        return len(self.expressions)

    def record_id(self, index: int) -> str:
        return self.expressions[index].name

    def groups(self) -> Sequence[int]:
        sizes = [self._coco.size(expression.image_id) for expression in self.expressions]
        return aspect_groups([width for width, _ in sizes], [height for _, height in sizes])

    def load(self, index: int, rng: random.Random) -> RefCOCOSample:
        """Reads one expression. Draws `random()` for a flip."""
        expression = self.expressions[index]
        flipped = rng.random() < self._flip_prob
        image = read_image(
            self._store,
            f"{self._images}/COCO_{IMAGES}_{expression.image_id:012d}.jpg",
            self._scales,
            flipped=flipped,
            original=self._coco.size(expression.image_id),
        )
        regions, target_region = self._candidates(expression, image)
        sample = self.preprocessor(index, expression.name, image, expression.text, regions, flipped=flipped)
        target = self._targets[index]
        label = None
        if self._split != "test":
            # As in the reference, IoU is computed on resized boxes.
            resized = resize_boxes(target[None], image.im_info, flipped=flipped)
            label = (pairwise_iou(sample.boxes, resized)[:, 0] > POSITIVE_IOU).float()
        return replace(
            sample,
            label=label,
            ref_id=torch.tensor(expression.ref_id),
            sent_id=torch.tensor(expression.sent_id),
            target=target,
            target_region=torch.tensor(target_region),
        )

    def _candidates(self, expression: Expression, image: PreparedImage) -> tuple[Regions, int]:
        """Returns detected and annotated boxes, and the index of the target's annotation among all candidates."""
        image_id = expression.image_id
        boxes = torch.zeros(0, 4)
        if self._detections is not None:
            boxes = _to_corners(self._detections.boxes(image_id))
        elif self._regions is not None:
            regions = self._regions.read(image_id, features=False)
            if regions.image_size not in (None, image.original):
                raise DataError(
                    f"the regions of image {image_id} are for an image of {regions.image_size}, but COCO says "
                    f"{image.original} (width, height)"
                )
            boxes = regions.boxes
        target_region = UNKNOWN_REGION
        # A training image without detections keeps the annotated boxes: otherwise no box would be positive.
        if self._uses_annotated or (self._split == "train" and not len(boxes)):
            matches = np.flatnonzero(self._coco.annotation_ids(image_id) == expression.annotation_id)
            if len(matches):
                target_region = self._image_boxes + len(boxes) + int(matches[0])
            boxes = torch.cat([boxes, _to_corners(self._coco.boxes(image_id))])
        return Regions(boxes), target_region

    def _warn_about_missing(self, detections: BoxTable, path: Path) -> None:
        images = dict.fromkeys(expression.image_id for expression in self.expressions)
        missing = [image for image in images if not len(detections.boxes(image))]
        if missing:
            logger.warning(
                "%s: no region for %d of %d images (%s: %s ...); they keep the whole image%s",
                path,
                len(missing),
                len(images),
                self._split,
                ", ".join(map(str, missing[:3])),
                " and the annotated boxes" if self._split == "train" else "",
            )


def _to_corners(boxes: NDArray[np.float64]) -> Tensor:
    """Converts x, y, width, height to (n, 4) float32 x1, y1, x2, y2."""
    return torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)).float()
