"""A trained model for pictures of one's own: what it predicts, what it makes of words and regions, where it looks.

Letters: n regions, T text tokens, H hidden width, L layers, A heads, S = T + n + 1 places: text, regions, [END].
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from common.batch import Batch, Sample, TextSequence
from common.config import load_config
from common.data.coco import CLASS_NAMES
from common.data.collate import collate
from common.data.found import RegionFinder
from common.data.image_file import ImageSource, open_image
from common.data.picture import Picture, place_picture
from common.data.region_json import Regions
from common.data.regions import with_whole_image
from common.data.transforms import place_boxes
from common.engine import checkpoint
from common.engine.attention import AttentionMaps, AttentionPlaces, Named, maps_of, places_of
from common.engine.boxes import BoxSource, GridFinder, regions_of
from common.engine.build import AnyTask, load_model
from common.engine.drawing import DrawnBox
from common.engine.main import run_folder
from common.engine.precision import Precision, single
from common.engine.region_extractor import RegionExtractor
from common.errors import CheckpointError, DataError, UsageError
from common.modeling.fast_rcnn import PRECOMPUTED_DIM
from common.modeling.visual_linguistic_model import VisualLinguisticModel

logger = logging.getLogger(__name__)

QueryT = TypeVar("QueryT", bound="Query")
PredictionT = TypeVar("PredictionT")

BATCH = 16
"""Pictures that are run at once."""


@dataclass(frozen=True)
class Query:
    """A picture and what is said or asked about it.

    Attributes:
        image: path, PIL picture, or (h, w, 3) uint8 array.
        text: the sentence.
        boxes: regions of the picture in any form that `common.engine.boxes` knows; None lets the finder look.
    """

    image: ImageSource
    text: str
    boxes: BoxSource | None = None


class Scene(NamedTuple):
    """A picture with its regions.

    Attributes:
        name: how messages call it.
        image: RGB.
        picture: as the network sees it.
        regions: boxes (n, 4) in pixels of the picture, and their features where the network reads features.
        classes: (n,) int64 category 1..80 of COCO, 0 where it is not known.
    """

    name: str
    image: Image.Image
    picture: Picture
    regions: Regions
    classes: Tensor

    def kinds(self) -> list[str]:
        """The class of every region, empty where it is not known."""
        return [CLASS_NAMES[category] if category else "" for category in self.classes.tolist()]

    def drawn(self, chosen: Collection[int] = (), first: int = 1) -> list[DrawnBox]:
        """The regions to draw, with numbers from `first` on; one less is the whole image, drawn only if chosen."""
        whole = [DrawnBox(self.picture.whole, "image", True)] if first - 1 in chosen else []
        boxes = enumerate(zip(self.regions.boxes.tolist(), self.kinds(), strict=True), start=first)
        return whole + [
            DrawnBox(box, f"{number} {kind}".strip(), number in chosen) for number, (box, kind) in boxes
        ]


@dataclass(frozen=True)
class Encoding:
    """What the joint transformer makes of a picture and a text; all on the CPU.

    Attributes:
        places: what the states and the maps belong to.
        text: (T, H) final states of the text tokens.
        regions: (n, H) final states of the regions.
        pooled: (H,) the pooled first token; its final state where the model has no pooler.
        attention: (L, A, S, S) float32, see `AttentionMaps`; None unless asked for.
    """

    places: AttentionPlaces
    text: Tensor
    regions: Tensor
    pooled: Tensor
    attention: Tensor | None = None

    def maps(self) -> AttentionMaps:
        """The attention with its places, as files and pages hold it.

        Raises:
            ValueError: this was encoded without `attention=True`.
        """
        if self.attention is None:
            raise ValueError("there are no maps: encode with attention=True")
        return AttentionMaps(self.places, self.attention.numpy())


def device_of(name: str | torch.device | None) -> torch.device:
    """Returns the device of that name; by default the first GPU, else the CPU.

    Raises:
        UsageError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UsageError(f'--device: "{name}": no such device; use cpu, cuda or cuda:N') from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device: {name}: use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device: {name}: this machine has {torch.cuda.device_count()} GPUs")
    return device


class TrainedModel(Generic[QueryT]):
    """A trained model that encodes pictures with texts.

    Args:
        task: its task, under its configuration.
        model: the network, on `device`.
        device: where it computes.
        precision: number format.
        finder: finds regions where a query has none; a grid by default, which is announced.
        extractor: features of regions, for a network that reads features; else a query must bring them.

    Attributes:
        task_class: the task that `load` builds.
    """

    task_class: ClassVar[type[AnyTask]]

    def __init__(
        self,
        task: AnyTask,
        model: VisualLinguisticModel,
        *,
        device: torch.device,
        precision: Precision,
        finder: RegionFinder | None = None,
        extractor: RegionExtractor | None = None,
    ) -> None:
        self.task = task
        self.model = model
        self.device = device
        self.precision = precision
        self.finder = finder or GridFinder()
        self.extractor = extractor
        network = task.config.NETWORK
        self._reads_features = network.IMAGE_FEAT_PRECOMPUTED and model.image_feature_extractor is not None
        if extractor is not None and not self._reads_features:
            logger.warning("this model reads no region features: the network that computes them is not used")
        elif extractor is not None and extractor.feature_dim != PRECOMPUTED_DIM:
            raise CheckpointError(
                f"the network of region features computes {extractor.feature_dim} numbers for a region; the model "
                f"reads {PRECOMPUTED_DIM}, as a ResNet-50, 101 or 152 computes"
            )

    @classmethod
    def load(
        cls,
        cfg: str | Path,
        ckpt: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        overrides: Sequence[str] = (),
        fp16: bool = False,
        finder: RegionFinder | None = None,
        extractor: RegionExtractor | None = None,
    ) -> Self:
        """Builds the model of a yaml file and fills it from a checkpoint.

        Args:
            cfg: yaml file of the experiment.
            ckpt: its checkpoint; by default the best one of the training run.
            device: where to compute, cpu or cuda; by default the first GPU, else the CPU.
            overrides: `KEY.PATH=VALUE` settings on top of the file.
            fp16: compute in half precision.
            finder: see `TrainedModel`.
            extractor: see `TrainedModel`.

        Raises:
            UsageError: there is no such device.
            ConfigError: the yaml file or an override is wrong.
            CheckpointError: the checkpoint cannot be read, or belongs to another model.
        """
        config = load_config(cls.task_class.config_class, cfg, overrides)
        task = cls.task_class(config)
        where = device_of(device)
        best = checkpoint.best_file(run_folder(config, cfg, "train"), config.MODEL_PREFIX)
        model = load_model(task, ckpt or best, where)
        assert isinstance(model, VisualLinguisticModel)
        precision = Precision(where, "fp16" if fp16 else "fp32")
        return cls(task, model, device=where, precision=precision, finder=finder, extractor=extractor)

    def encode(
        self, image: ImageSource, text: str, boxes: BoxSource | None = None, *, attention: bool = False
    ) -> Encoding:
        """Encodes a picture with a text; see `Query` and `Encoding`."""
        return self.encode_batch([self.query(image, text, boxes)], attention=attention)[0]

    def encode_batch(self, queries: Iterable[QueryT], *, attention: bool = False) -> list[Encoding]:
        """Encodes pictures with texts, several at once."""
        encodings: list[Encoding] = []
        for asked, scenes, batch in self._batches(queries):
            encodings += self._encode(asked, scenes, batch, attention)
        return encodings

    def query(self, image: ImageSource, text: str, boxes: BoxSource | None = None) -> QueryT:
        """Returns the query of one text; tasks with queries of their own replace it."""
        return Query(image, text, boxes)  # type: ignore[return-value]

    def text(self, query: QueryT) -> TextSequence:
        """Returns a query's text as the network reads it: `[CLS] words [SEP]`, unless the task replaces this."""
        tokenizer = self.task.tokenizer
        return TextSequence.plain([tokenizer.cls_id, *self.word_ids(query.text), tokenizer.sep_id])

    def word_ids(self, text: str) -> list[int]:
        """Returns the ids of the word pieces of a text.

        Raises:
            DataError: it has none.
        """
        ids = self.task.tokenizer.ids(text)
        if not ids:
            raise DataError("its text is empty; give at least one word")
        return ids

    def named_regions(self, scene: Scene, query: QueryT) -> tuple[Iterable[int], list[str]]:
        """Returns number and class of every region that the network sees; of an unknown class an empty text."""
        return count(1), scene.kinds()

    def sample(self, index: int, scene: Scene, query: QueryT) -> Sample:
        """Returns a query as an item of a dataset."""
        picture = scene.picture
        boxes, features = with_whole_image(
            scene.regions, picture, add=self.task.config.datasets[0].ADD_IMAGE_AS_A_BOX
        )
        return Sample(
            index=index,
            record_id=scene.name,
            image=picture.pixels,
            canvas=picture.size[::-1],
            im_info=picture.im_info,
            boxes=place_boxes(boxes, picture.im_info, flipped=False),
            texts=(self.text(query),),
            box_features=features,
        )

    def _batches(self, queries: Iterable[QueryT]) -> Iterator[tuple[list[QueryT], list[Scene], Batch]]:
        """Reads queries, some at a time; batches are on the device."""
        waiting = list(queries)
        for start in range(0, len(waiting), BATCH):
            part = waiting[start : start + BATCH]
            scenes = self.see(part, start)
            samples = []
            for number, (scene, query) in enumerate(zip(scenes, part, strict=True), start):
                try:
                    samples.append(self.sample(number, scene, query))
                except DataError as error:
                    raise DataError(f"{scene.name}: {error}") from error
            yield part, scenes, collate(samples, Batch).to(self.device)

    def see(self, queries: Sequence[QueryT], start: int = 0) -> list[Scene]:
        """Opens the pictures, and finds regions and computes features where a query does not bring them.

        Args:
            queries: a few.
            start: how many came before them; pictures without a path are numbered.

        Raises:
            DataError: a picture or its regions cannot be used.
        """
        names = [
            str(query.image) if isinstance(query.image, str | Path) else f"picture {number}"
            for number, query in enumerate(queries, start + 1)
        ]
        images = [open_image(query.image) for query in queries]
        found = self._find(names, images, queries)
        extractor = self.model.image_feature_extractor
        pixels = extractor is not None and extractor.has_pixels
        return [
            Scene(
                name,
                image,
                place_picture(image if pixels else None, image.size, self.task.config.SCALES),
                *regions,
            )
            for name, image, regions in zip(names, images, found, strict=True)
        ]

    def _find(
        self, names: Sequence[str], images: Sequence[Image.Image], queries: Sequence[QueryT]
    ) -> list[tuple[Regions, Tensor]]:
        """Returns the regions of each picture and their categories."""
        missing = [number for number, query in enumerate(queries) if query.boxes is None]
        looked = dict(zip(missing, self.finder([images[number] for number in missing]), strict=True))
        width = PRECOMPUTED_DIM if self._reads_features else None
        found = [
            regions_of(looked.get(number, query.boxes), name, image.size, width)  # type: ignore[arg-type]
            for number, (name, image, query) in enumerate(zip(names, images, queries, strict=True))
        ]
        if not self._reads_features:
            return found
        bare = [number for number, (regions, _) in enumerate(found) if regions.features is None]
        if bare and self.extractor is None:
            raise DataError(
                f"{names[bare[0]]}: this model reads region features (NETWORK.IMAGE_FEAT_PRECOMPUTED), and none "
                "are given: give a region file that has them (boxes=, --boxes), or the network that computes them "
                "(extractor=, --features)"
            )
        if bare:
            assert self.extractor is not None
            computed = self.extractor(
                [images[number] for number in bare], [found[number][0].boxes for number in bare]
            )
            for number, (features, whole) in zip(bare, computed, strict=True):
                regions, classes = found[number]
                found[number] = regions._replace(features=features, image_feature=whole), classes
        return found

    def _encode(
        self, queries: Sequence[QueryT], scenes: Sequence[Scene], batch: Batch, attention: bool
    ) -> list[Encoding]:
        model, bert = self.model, self.model.vlbert
        with torch.inference_mode(), self.precision.autocast():
            encoded = model.encode(
                batch, model.region_features(batch), kernel="explicit" if attention else "auto"
            )
            pooled = encoded.first() if bert.pooler is None else bert.pool(encoded)
        named = [
            Named(
                Path(scene.name).stem,
                str(query.image) if isinstance(query.image, str | Path) else "",
                *self.named_regions(scene, query),
            )
            for scene, query in zip(scenes, queries, strict=True)
        ]
        whole = bool(self.task.config.datasets[0].ADD_IMAGE_AS_A_BOX)
        columns = zip(
            places_of(batch, encoded, named, self.task.tokenizer, whole=whole, upright=True),
            batch.text.lengths.split(single(encoded.text()).cpu()),
            torch.split(single(encoded.regions()).cpu(), encoded.num_regions),
            single(pooled).cpu(),
            strict=True,
        )
        return [
            Encoding(*states, maps_of(encoded, row) if attention else None)
            for row, states in enumerate(columns)
        ]


class Predictor(TrainedModel[QueryT], ABC, Generic[QueryT, PredictionT]):
    """A trained model that also answers."""

    def predict_batch(self, queries: Iterable[QueryT]) -> list[PredictionT]:
        """Returns one prediction for each query, in their order."""
        return [prediction for _, prediction in self.answers(queries)]

    def answers(self, queries: Iterable[QueryT]) -> Iterator[tuple[Scene, PredictionT]]:
        """Yields the scene and the prediction of each query, in their order."""
        for _, scenes, batch in self._batches(queries):
            with torch.inference_mode(), self.precision.autocast():
                outputs = single(self.model(batch))
            yield from zip(scenes, self.predictions(outputs, batch, scenes), strict=True)

    @abstractmethod
    def predictions(self, outputs: Any, batch: Batch, scenes: Sequence[Scene]) -> list[PredictionT]:
        """Reads what the network says of a batch."""
