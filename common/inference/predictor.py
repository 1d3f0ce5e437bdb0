"""Trained models on the user's own images: predictions, encodings and attention maps."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from PIL import Image
from typing_extensions import Self, TypeVar

from common.batch import Batch, Sample, TextSequence
from common.config.schema import ExperimentConfig, load_config
from common.data.collate import collate
from common.data.images import ImageSource, open_image, prepare_image
from common.data.regions.reader import prepend_image_box
from common.data.regions.types import Detector, Regions
from common.data.samples import build_sample
from common.devices import device_of
from common.errors import CheckpointError, DataError
from common.evaluation.checkpoints import load_model
from common.extraction.features import RegionExtractor
from common.inference.attention import (
    SequenceTokens,
    attention_of,
    describe_sequences,
    image_ids,
    region_labels,
)
from common.inference.grid import GridDetector
from common.inference.queries import BoxSource, Encoding, ImageWithRegions, Query, resolve_boxes
from common.models.fast_rcnn import PRECOMPUTED_DIM
from common.models.visual_linguistic_model import VisualLinguisticModel
from common.training import checkpoint
from common.training.precision import Precision, to_float32
from common.training.task import AnyTask

logger = logging.getLogger(__name__)

QueryT = TypeVar("QueryT", bound="Query")
PredictionT = TypeVar("PredictionT")
EncodedT = TypeVar("EncodedT", default="Encoding")

BATCH_SIZE = 16


class TrainedModel(Generic[QueryT, EncodedT]):
    """A trained model that encodes images with texts. The result of a query does not depend on its batch.

    Args:
        task: the task with its configuration.
        model: the network, on `device`.
        device: device of the network.
        precision: number format.
        detector: finds regions in images without boxes; by default a fixed grid, with a warning.
        extractor: computes region features for queries without them, if the network reads features.

    Attributes:
        task_class: the task that `load` builds.
        query_class: type of the queries.
        first_region: number of the first region of an image.
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
        detector: Detector | None = None,
        extractor: RegionExtractor | None = None,
    ) -> None:
        self.task = task
        self.model = model
        self.device = device
        self.precision = precision
        self.detector = detector or GridDetector()
        self.extractor = extractor
        self.tokenizer = task.tokenizer  # read here, so that a missing vocabulary is reported when loading
        self._adds_image_box = bool(task.config.datasets[0].ADD_IMAGE_AS_A_BOX)
        network = task.config.NETWORK
        self._reads_features = network.IMAGE_FEAT_PRECOMPUTED and model.image_feature_extractor is not None
        if extractor is not None and not self._reads_features:
            logger.warning("this model reads no region features: the feature extractor is not used")
        elif extractor is not None and extractor.feature_dim != PRECOMPUTED_DIM:
            raise CheckpointError(
                f"the feature extractor computes {extractor.feature_dim} features per region; the model reads "
                f"{PRECOMPUTED_DIM}, which a ResNet-50, 101 or 152 computes"
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
        detector: Detector | None = None,
        extractor: RegionExtractor | None = None,
    ) -> Self:
        """Builds the model of a yaml file and loads a checkpoint.

        Args:
            cfg: yaml file of the experiment.
            ckpt: checkpoint; by default the best one of the training run.
            device: cpu or cuda; by default the first GPU, or the CPU if there is none.
            overrides: `KEY.PATH=VALUE` settings that replace values of the yaml file.
            fp16: compute in half precision.
            detector: see `TrainedModel`.
            extractor: see `TrainedModel`.

        Raises:
            UsageError: no such device.
            ConfigError: the yaml file or an override is invalid.
            CheckpointError: the checkpoint cannot be read or belongs to another model.
        """
        config = load_config(cls.task_class.config_class, cfg, overrides)
        path = ckpt or default_checkpoint(config, cfg)
        return cls.from_config(config, path, device, fp16=fp16, detector=detector, extractor=extractor)

    @classmethod
    def from_config(
        cls,
        config: ExperimentConfig,
        ckpt: str | Path,
        device: str | torch.device | None = None,
        *,
        fp16: bool = False,
        detector: Detector | None = None,
        extractor: RegionExtractor | None = None,
    ) -> Self:
        """Builds the model of a configuration and loads a checkpoint; see `load`."""
        task = cls.task_class(config)
        torch_device = device_of(device)
        model = load_model(task, ckpt, torch_device)
        assert isinstance(model, VisualLinguisticModel)
        precision = Precision(torch_device, "fp16" if fp16 else "fp32")
        return cls(
            task, model, device=torch_device, precision=precision, detector=detector, extractor=extractor
        )

    def encode(
        self, image: ImageSource, text: str, boxes: BoxSource | None = None, *, attention: bool = False
    ) -> Encoding:
        """Encodes an image with a text; see `Query` and `Encoding`."""
        return self._encode([self.query(image, text, boxes)], attention)[0][0]

    def encode_batch(self, queries: Iterable[QueryT], *, attention: bool = False) -> list[EncodedT]:
        """Encodes images with texts, in batches. Image ids in the results are unique.

        Returns:
            The encoding of each query in order; for a VCR query a tuple with one encoding per choice.
        """
        return [self.group_by_query(encodings) for encodings in self._encode(queries, attention)]

    def group_by_query(self, encodings: list[Encoding]) -> EncodedT:
        """Returns the only encoding of a query; tasks with several texts per query override this."""
        (encoding,) = encodings
        return encoding  # type: ignore[return-value]

    def query(self, image: ImageSource, text: str, boxes: BoxSource | None = None) -> QueryT:
        """Returns a query with a single text; tasks with their own query type override this."""
        return Query(image, text, boxes)  # type: ignore[return-value]

    def texts(self, query: QueryT) -> dict[str, str]:
        """Returns the texts of a query by their names in messages; none of them may be empty."""
        return {"its text": query.text}

    def check(self, query: QueryT, *, predicting: bool) -> None:
        """Checks the texts of a query before its image is opened.

        Args:
            query: of `query_class`.
            predicting: whether a prediction is requested, not only an encoding.

        Raises:
            DataError: a text is not a string or is empty.
        """
        for name, text in self.texts(query).items():
            if not isinstance(text, str):
                raise DataError(f"{name} is of type {type(text).__name__}; expected str")
            if not self.word_ids(text):
                raise DataError(f"{name} is empty; give at least one word")

    def text(self, query: QueryT) -> TextSequence:
        """Returns the text as the model reads it: `[CLS] words [SEP]` unless the task overrides this."""
        return TextSequence.plain([self.tokenizer.cls_id, *self.word_ids(query.text), self.tokenizer.sep_id])

    def word_ids(self, text: str) -> list[int]:
        """Returns the word-piece ids of a text."""
        return self.tokenizer.ids(text)

    def visible_regions(self, image: ImageWithRegions, query: QueryT) -> Sequence[int]:
        """Returns the indices of the regions that the model reads, in its order: all by default."""
        return range(len(image.regions.boxes))

    def sample(self, index: int, image: ImageWithRegions, query: QueryT) -> Sample:
        """Returns a query as a dataset item."""
        prepared = image.prepared
        boxes, features = prepend_image_box(image.regions, prepared, add=self._adds_image_box)
        texts = [self.text(query)]
        return build_sample(Sample, index, image.name, prepared, boxes, texts, box_features=features)

    def _batches(
        self, queries: Iterable[QueryT], *, predicting: bool
    ) -> Iterator[tuple[list[QueryT], list[ImageWithRegions], Batch]]:
        """Checks all queries, then yields them in batches with an equal number of texts per query."""
        pending = list(queries)
        for number, query in enumerate(pending, 1):
            if not isinstance(query, self.query_class):
                query_type, expected = type(query).__name__, self.query_class.__name__
                raise DataError(f"query {number} is of type {query_type}; this model takes {expected}")
            with _error_prefix(query.display_name(number)):
                self.check(query, predicting=predicting)
        for start in range(0, len(pending), BATCH_SIZE):
            items = []
            for index, query in enumerate(pending[start : start + BATCH_SIZE], start):
                image = self.prepare(query, index + 1)
                with _error_prefix(image.name):
                    sample = self.sample(index, image, query)
                if sample.image is not None:
                    # Pad to a fixed size: convolutions see the padding, so a result would depend on the batch.
                    sample = replace(sample, padded_size=(max(self.task.config.SCALES),) * 2)
                items.append((query, image, sample))
            for _, group in groupby(items, key=lambda item: len(item[2].texts)):
                batch_queries, images, samples = map(list, zip(*group, strict=True))
                yield batch_queries, images, collate(samples, Batch).to(self.device)

    def prepare(self, query: QueryT, number: int = 1) -> ImageWithRegions:
        """Opens an image, and detects regions and extracts features if the query has none.

        Args:
            query: the query.
            number: name of the image if it has no other.

        Raises:
            DataError: the image or its regions are invalid.
        """
        name = query.display_name(number)
        image = open_image(query.image)
        regions = self._regions(query, name, image)
        network = self.model.image_feature_extractor
        pixels = image if network is not None and network.has_pixels else None
        prepared = prepare_image(pixels, image.size, self.task.config.SCALES)
        return ImageWithRegions(name, image, prepared, regions)

    def _regions(self, query: QueryT, name: str, image: Image.Image) -> Regions:
        feature_dim = PRECOMPUTED_DIM if self._reads_features else None
        source, hint = query.boxes, ""
        if source is None:
            if self._reads_features and self.extractor is None:
                raise _missing_features(name)
            with _error_prefix(name):
                (source,) = self.detector([image])
            threshold = getattr(self.detector, "score_threshold", None)
            if threshold is not None:
                hint = f" with a confidence of at least {threshold:g} (--score-threshold)"
        regions = resolve_boxes(source, name, image.size, feature_dim)
        if self._reads_features and regions.features is None:
            if self.extractor is None:
                raise _missing_features(name)
            ((features, image_feature),) = self.extractor([image], [regions.boxes])
            regions = regions._replace(features=features, image_feature=image_feature)
        if self._adds_image_box and not len(regions.boxes):
            logger.warning("%s: no regions%s: the model reads only the whole image", name, hint)
        return regions

    def _encode(self, queries: Iterable[QueryT], attention: bool) -> list[list[Encoding]]:
        """Returns the encodings of each query, one per text."""
        results: list[list[Encoding]] = []
        for batch_queries, images, batch in self._batches(queries, predicting=False):
            model = self.model
            with torch.inference_mode(), self.precision.autocast():
                encoded = model.encode(
                    batch, model.region_features(batch), kernel="explicit" if attention else "auto"
                )
                bert = model.vlbert
                pooled = encoded.first() if bert.pooler is None else bert.pool(encoded)
            described = list(map(self._describe, images, batch_queries))
            rows = zip(
                describe_sequences(batch, encoded, described, self.tokenizer),
                batch.text.lengths.split(to_float32(encoded.text()).cpu()),
                torch.split(to_float32(encoded.regions()).cpu(), encoded.num_regions),
                to_float32(pooled).cpu(),
                strict=True,
            )
            encodings = [
                Encoding(
                    sequence=sequence,
                    text=text,
                    regions=regions,
                    pooled=first,
                    attention=attention_of(encoded, row) if attention else None,
                )
                for row, (sequence, text, regions, first) in enumerate(rows)
            ]
            for num_texts in batch.text.per_image.sizes:
                results.append(encodings[:num_texts])
                del encodings[:num_texts]
        names = iter(image_ids([item.sequence.image_id for encodings in results for item in encodings]))
        return [
            [
                replace(item, sequence=item.sequence.model_copy(update={"image_id": next(names)}))
                for item in encodings
            ]
            for encodings in results
        ]

    def _describe(self, image: ImageWithRegions, query: QueryT) -> SequenceTokens:
        """Returns the image and the regions that the model reads, without text tokens."""
        visible = list(self.visible_regions(image, query))
        class_names = image.class_names()
        boxes = [tuple(box) for box in image.regions.boxes[visible].tolist()]
        return SequenceTokens(
            image_id=image.name,
            image=query.path,
            size=image.image.size,
            tokens=(),
            boxes=(image.prepared.whole_box, *boxes) if self._adds_image_box else tuple(boxes),
            labels=region_labels(
                [self.first_region + index for index in visible],
                [class_names[index] for index in visible],
                whole=self._adds_image_box,
            ),
            upright=True,
        )


class Predictor(TrainedModel[QueryT, EncodedT], ABC, Generic[QueryT, PredictionT, EncodedT]):
    """A trained model with predictions."""

    def predict_batch(self, queries: Iterable[QueryT]) -> list[PredictionT]:
        """Returns one prediction per query, in order."""
        return [prediction for _, prediction in self.predictions_with_images(queries)]

    def predictions_with_images(
        self, queries: Iterable[QueryT]
    ) -> Iterator[tuple[ImageWithRegions, PredictionT]]:
        """Yields the image and the prediction of each query, in order."""
        for _, images, batch in self._batches(queries, predicting=True):
            with torch.inference_mode(), self.precision.autocast():
                outputs = to_float32(self.model(batch))
            yield from zip(images, self.predictions(outputs, batch, images), strict=True)

    @abstractmethod
    def predictions(
        self, outputs: Any, batch: Batch, images: Sequence[ImageWithRegions]
    ) -> list[PredictionT]:
        """Converts the model outputs of a batch to one prediction per image."""


def default_checkpoint(config: ExperimentConfig, cfg: str | Path) -> Path:
    """Returns the path of the best checkpoint of the training run of a yaml file."""
    return checkpoint.best_file(checkpoint.run_folder(config, cfg, "train"), config.MODEL_PREFIX)


@contextmanager
def _error_prefix(name: str) -> Iterator[None]:
    """Prefixes data errors with the name of the image."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _missing_features(name: str) -> DataError:
    return DataError(
        f"{name}: this model reads region features (NETWORK.IMAGE_FEAT_PRECOMPUTED), and the query has none: pass a "
        "region file with features (boxes=, --boxes) or a feature extractor (extractor=, --features)"
    )
