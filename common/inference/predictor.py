"""A trained model for pictures of one's own: what it predicts, what it makes of words and regions, where it looks.

Letters: n regions, T text tokens, H hidden width, L layers, A heads, S = T + n + 1 places: text, regions, [END].
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from PIL import Image
from typing_extensions import Self, TypeVar

from common.batch import Batch, Sample, TextSequence
from common.config.schema import load_config
from common.data.collate import collate
from common.data.images import ImageSource, open_image, prepare_image, resize_boxes
from common.data.regions.reader import prepend_image_box
from common.data.regions.types import Detector, Regions, detect_each
from common.devices import device_of
from common.errors import CheckpointError, DataError
from common.evaluation.checkpoints import load_model
from common.extraction.features import RegionExtractor
from common.inference.attention import SequenceSource, attention_of, describe_sequences, image_ids
from common.inference.grid import BoxSource, GridDetector, regions_of
from common.inference.queries import Encoding, ImageWithRegions, Query
from common.models.fast_rcnn import PRECOMPUTED_DIM
from common.models.visual_linguistic_model import VisualLinguisticModel
from common.training import checkpoint
from common.training.checkpoint import run_folder
from common.training.precision import Precision, to_float32
from common.training.task import AnyTask

logger = logging.getLogger(__name__)


T = TypeVar("T")


QueryT = TypeVar("QueryT", bound="Query")


PredictionT = TypeVar("PredictionT")


EncodedT = TypeVar("EncodedT", default="Encoding")


BATCH = 16
"""Pictures that are run at once."""


class TrainedModel(Generic[QueryT, EncodedT]):
    """A trained model that encodes pictures with texts; what it computes of a query does not depend on the others.

    Args:
        task: its task, under its configuration.
        model: the network, on `device`.
        device: where it computes.
        precision: number format.
        finder: finds regions where a query has none; a grid by default, which is announced.
        extractor: features of regions, for a network that reads features; else a query must bring them.

    Attributes:
        task_class: the task that `load` builds.
        query_class: what it is asked.
        first_region: number of the first region of a picture.
    """

    task_class: ClassVar[type[AnyTask]]
    query_class: ClassVar[type[Query]] = Query
    first_region: ClassVar[int] = 1

    def __init__(
        self,
        task: AnyTask,
        model: VisualLinguisticModel,
        *,
        device: torch.device,
        precision: Precision,
        finder: Detector | None = None,
        extractor: RegionExtractor | None = None,
    ) -> None:
        self.task = task
        self.model = model
        self.device = device
        self.precision = precision
        self.finder = finder or GridDetector()
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
        finder: Detector | None = None,
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
        return self._encoded([self.query(image, text, boxes)], attention)[0][0]

    def encode_batch(self, queries: Iterable[QueryT], *, attention: bool = False) -> list[EncodedT]:
        """Encodes pictures with texts, several at once; the names of their files of maps are different.

        Returns:
            The encoding of each query, in their order; of a VCR query a tuple with one of each choice.
        """
        return [self.of_query(encodings) for encodings in self._encoded(queries, attention)]

    def of_query(self, encodings: list[Encoding]) -> EncodedT:
        """Returns the only encoding of a query; tasks with several replace it."""
        (encoding,) = encodings
        return encoding  # type: ignore[return-value]

    def query(self, image: ImageSource, text: str, boxes: BoxSource | None = None) -> QueryT:
        """Returns the query of one text; tasks with queries of their own replace it."""
        return Query(image, text, boxes)  # type: ignore[return-value]

    def texts(self, query: QueryT) -> dict[str, str]:
        """Returns what a query says, by what messages call it; all of it must have words."""
        return {"its text": query.text}

    def check(self, query: QueryT, *, answered: bool) -> None:
        """Checks what a query says before its picture is opened.

        Args:
            query: of `query_class`.
            answered: whether it is to be answered, not only encoded.

        Raises:
            DataError: a text is none, or is empty.
        """
        for what, text in self.texts(query).items():
            if not isinstance(text, str):
                raise DataError(f"{what} is of type {type(text).__name__}; expected str")
            if not self.word_ids(text):
                raise DataError(f"{what} is empty; give at least one word")

    def text(self, query: QueryT) -> TextSequence:
        """Returns a query's text as the network reads it: `[CLS] words [SEP]`, unless the task replaces this."""
        tokenizer = self.task.tokenizer
        return TextSequence.plain([tokenizer.cls_id, *self.word_ids(query.text), tokenizer.sep_id])

    def word_ids(self, text: str) -> list[int]:
        """Returns the ids of the word pieces of a text."""
        return self.task.tokenizer.ids(text)

    def kept(self, image_regions: ImageWithRegions, query: QueryT) -> Sequence[int]:
        """Returns the places of the regions that the network sees, in its order: all, unless the task replaces this."""
        return range(len(image_regions.classes))

    def sample(self, index: int, image_regions: ImageWithRegions, query: QueryT) -> Sample:
        """Returns a query as an item of a dataset."""
        picture = image_regions.picture
        boxes, features = prepend_image_box(image_regions.regions, picture, add=self._adds_whole)
        return Sample(
            index=index,
            record_id=image_regions.name,
            image=picture.pixels,
            padded_size=picture.size[::-1],
            im_info=picture.im_info,
            boxes=resize_boxes(boxes, picture.im_info, flipped=False),
            texts=(self.text(query),),
            box_features=features,
        )

    @property
    def _adds_whole(self) -> bool:
        return bool(self.task.config.datasets[0].ADD_IMAGE_AS_A_BOX)

    def _results(
        self,
        queries: Iterable[QueryT],
        read: Callable[[Sequence[QueryT], Sequence[ImageWithRegions], Batch], Sequence[T]],
        *,
        answered: bool,
    ) -> Iterator[tuple[ImageWithRegions, T]]:
        """Yields the image_regions of each query and what `read` makes of it, in their order.

        Queries run together where they have equally many texts.
        """
        waiting = list(queries)
        for number, query in enumerate(waiting, 1):
            if not isinstance(query, self.query_class):
                kind, expected = type(query).__name__, self.query_class.__name__
                raise DataError(f"query {number} is of type {kind}; this model takes {expected}")
            with _naming(query.called(number)):
                self.check(query, answered=answered)
        for start in range(0, len(waiting), BATCH):
            part = waiting[start : start + BATCH]
            images_with_regions = self.see(part, start)
            samples = []
            for number, (image_regions, query) in enumerate(
                zip(images_with_regions, part, strict=True), start
            ):
                with _naming(image_regions.name):
                    sample = self.sample(number, image_regions, query)
                if sample.image is not None:
                    # One padded_size for all: an answer must not depend on the others of the batch.
                    sample = replace(sample, padded_size=(max(self.task.config.SCALES),) * 2)
                samples.append(sample)
            found: dict[int, T] = {}
            groups: dict[int, list[int]] = {}
            for position, sample in enumerate(samples):
                groups.setdefault(len(sample.texts), []).append(position)
            for members in groups.values():
                batch = collate([samples[place] for place in members], Batch).to(self.device)
                results = read(
                    [part[place] for place in members],
                    [images_with_regions[place] for place in members],
                    batch,
                )
                found.update(zip(members, results, strict=True))
            yield from (
                (image_regions, found[place]) for place, image_regions in enumerate(images_with_regions)
            )

    def see(self, queries: Sequence[QueryT], start: int = 0) -> list[ImageWithRegions]:
        """Opens the pictures, and finds regions and computes features where a query does not bring them.

        Args:
            queries: a few.
            start: how many came before them; pictures without a name are numbered.

        Raises:
            DataError: a picture or its regions cannot be used.
        """
        names = [query.called(number) for number, query in enumerate(queries, start + 1)]
        images = [open_image(query.image) for query in queries]
        found = self._find(names, images, queries)
        extractor = self.model.image_feature_extractor
        pixels = extractor is not None and extractor.has_pixels
        return [
            ImageWithRegions(
                name,
                image,
                prepare_image(image if pixels else None, image.size, self.task.config.SCALES),
                regions,
            )
            for name, image, regions in zip(names, images, found, strict=True)
        ]

    def _find(
        self, names: Sequence[str], images: Sequence[Image.Image], queries: Sequence[QueryT]
    ) -> list[Regions]:
        """Returns the regions of each image."""
        missing = [number for number, query in enumerate(queries) if query.boxes is None]
        if missing and self._reads_features and self.extractor is None:
            raise _no_features(names[missing[0]])
        looked: dict[int, Regions] = {}
        pictures = [(names[number], images[number]) for number in missing]
        for number, one in zip(missing, detect_each(self.finder, pictures), strict=True):
            if isinstance(one, DataError):
                raise one
            looked[number] = one
        width = PRECOMPUTED_DIM if self._reads_features else None
        found = [
            regions_of(looked.get(number, query.boxes), name, image.size, width)  # type: ignore[arg-type]
            for number, (name, image, query) in enumerate(zip(names, images, queries, strict=True))
        ]
        if self._reads_features:
            found = self._with_features(names, images, found)
        for number, (name, regions) in enumerate(zip(names, found, strict=True)):
            if self._adds_whole and not len(regions.boxes):
                least = getattr(self.finder, "score_threshold", None) if number in looked else None
                why = "" if least is None else f" with a confidence of at least {least:g} (--score-threshold)"
                logger.warning("%s: has no regions%s: the model sees the whole picture alone", name, why)
        return found

    def _with_features(
        self, names: Sequence[str], images: Sequence[Image.Image], found: list[Regions]
    ) -> list[Regions]:
        """Returns the regions of each picture, with features."""
        bare = [number for number, regions in enumerate(found) if regions.features is None]
        if not bare:
            return found
        if self.extractor is None:
            raise _no_features(names[bare[0]])
        computed = self.extractor(
            [images[number] for number in bare], [found[number].boxes for number in bare]
        )
        for number, (features, whole) in zip(bare, computed, strict=True):
            found[number] = found[number]._replace(features=features, image_feature=whole)
        return found

    def _encoded(self, queries: Iterable[QueryT], attention: bool) -> list[list[Encoding]]:
        """Returns the encodings of each query, in their order."""
        read = partial(self._encode, attention=attention)
        found = [encodings for _, encodings in self._results(queries, read, answered=False)]
        names = iter(image_ids([one.places.image_id for encodings in found for one in encodings]))
        return [
            [
                replace(one, places=one.places.model_copy(update={"image_id": next(names)}))
                for one in encodings
            ]
            for encodings in found
        ]

    def _encode(
        self,
        queries: Sequence[QueryT],
        images_with_regions: Sequence[ImageWithRegions],
        batch: Batch,
        *,
        attention: bool,
    ) -> list[list[Encoding]]:
        model, bert = self.model, self.model.vlbert
        with torch.inference_mode(), self.precision.autocast():
            encoded = model.encode(
                batch, model.region_features(batch), kernel="explicit" if attention else "auto"
            )
            pooled = encoded.first() if bert.pooler is None else bert.pool(encoded)
        columns = zip(
            describe_sequences(
                batch,
                encoded,
                list(map(self._named, images_with_regions, queries)),
                self.task.tokenizer,
                whole=self._adds_whole,
                upright=True,
            ),
            batch.text.lengths.split(to_float32(encoded.text()).cpu()),
            torch.split(to_float32(encoded.regions()).cpu(), encoded.num_regions),
            to_float32(pooled).cpu(),
            strict=True,
        )
        rows = iter(
            [
                Encoding(*states, attention_of(encoded, row) if attention else None)
                for row, states in enumerate(columns)
            ]
        )
        return [list(islice(rows, texts)) for texts in batch.text.per_image.sizes]

    def _named(self, image_regions: ImageWithRegions, query: QueryT) -> SequenceSource:
        """Says what a image_regions and its regions are called, and where they are."""
        kept, kinds = self.kept(image_regions, query), image_regions.kinds()
        boxes = image_regions.regions.boxes[list(kept)].tolist()
        return SequenceSource(
            image_regions.name,
            query.path,
            [self.first_region + place for place in kept],
            [kinds[place] for place in kept],
            [image_regions.picture.whole, *boxes] if self._adds_whole else boxes,
        )


@contextmanager
def _naming(picture: str) -> Iterator[None]:
    """Says of an error which picture it concerns."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{picture}: {error}") from error


def _no_features(picture: str) -> DataError:
    return DataError(
        f"{picture}: this model reads region features (NETWORK.IMAGE_FEAT_PRECOMPUTED), and none are given: give a "
        "region file that has them (boxes=, --boxes), or the network that computes them (extractor=, --features)"
    )


class Predictor(TrainedModel[QueryT, EncodedT], ABC, Generic[QueryT, PredictionT, EncodedT]):
    """A trained model that also answers."""

    def predict_batch(self, queries: Iterable[QueryT]) -> list[PredictionT]:
        """Returns one prediction for each query, in their order."""
        return [prediction for _, prediction in self.answers(queries)]

    def answers(self, queries: Iterable[QueryT]) -> Iterator[tuple[ImageWithRegions, PredictionT]]:
        """Yields the image_regions and the prediction of each query, in their order."""
        return self._results(queries, self._answer, answered=True)

    def _answer(
        self, queries: Sequence[QueryT], images_with_regions: Sequence[ImageWithRegions], batch: Batch
    ) -> list[PredictionT]:
        with torch.inference_mode(), self.precision.autocast():
            outputs = to_float32(self.model(batch))
        return self.predictions(outputs, batch, images_with_regions)

    @abstractmethod
    def predictions(
        self, outputs: Any, batch: Batch, images_with_regions: Sequence[ImageWithRegions]
    ) -> list[PredictionT]:
        """Reads what the network says of a batch."""
