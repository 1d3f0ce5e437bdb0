"""Chooses the answer, or the rationale, to a question about an image.

`python -m vcr.predict --cfg YAML --ckpt CHECKPOINT --image IMAGE --metadata FILE --question "Why is [0] smiling ?"
--choice "[0] is happy ." --choice "..."`; a QA->R model also needs `--answer`. `[0]` refers to the first object,
`[0,2]` to the first and the third.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from common.batch import Batch, Sample
from common.cli.predict import PredictionView, parse_predict_args, predict_main, predict_parser
from common.cli.run import run
from common.data.images import ImageSource
from common.data.instance_masks import check_polygons
from common.data.regions.sources import parse_boxes
from common.data.regions.types import Regions
from common.data.storage.store import Store, parse_model
from common.errors import DataError, UsageError
from common.inference.predictor import Predictor
from common.inference.queries import BoxSource, Encoding, ImageWithRegions, Query
from common.training.task import AnyTask
from vcr.dataset import VCRMetadata, VCRPreprocessor, VCRRecord
from vcr.model import VCROutputs
from vcr.task import VCRTask
from vcr.text import MAX_TOKENS, referenced_objects

logger = logging.getLogger(__name__)

UNKNOWN_OBJECT = "object"

Polygons: TypeAlias = list[list[list[tuple[float, float]]]]
"""Outlines of every object as lists of x, y in pixels of the image."""


@dataclass(frozen=True, kw_only=True)
class VCRQuery(Query):
    """A question with its choices. Texts refer to objects as `[0]` or `[0,2]`.

    Attributes:
        choices: answers, or rationales for a QA->R model; empty to encode the question alone.
        answer: the answer to explain, for a QA->R model.
        polygons: outlines of every object; defaults to the boxes.
        first_name: index of the first person's name in `vcr.text.PERSON_NAMES`.
    """

    choices: Sequence[str] = ()
    answer: str | None = None
    polygons: Polygons | None = None
    first_name: int = 0


def words_of(text: str) -> list[str | list[int]]:
    """Splits a text at whitespace; `[0]` and `[0,2]` become lists of object indices."""
    words: list[str | list[int]] = []
    for index, part in enumerate(re.split(r"(\[\s*\d+(?:\s*,\s*\d+)*\s*\])", text)):
        if index % 2:  # re.split puts the references at odd indices
            words.append([int(number) for number in re.findall(r"\d+", part)])
        else:
            words += part.split()
    return words


def read_metadata(path: str | Path) -> tuple[Regions, Polygons]:
    """Reads boxes, classes and polygons of the objects in a VCR metadata file.

    Raises:
        DataError: the file is missing or invalid.
    """
    metadata = parse_model(_Metadata, Store().read(str(path)), str(path))
    if not len(metadata.boxes) == len(metadata.segms) == len(metadata.names):
        raise DataError(f"{path}: boxes, segms and names must have the same length")
    boxes = parse_boxes({"boxes": [box[:4] for box in metadata.boxes], "classes": metadata.names}, str(path))
    if metadata.width is not None and metadata.height is not None:
        boxes = boxes._replace(image_size=(metadata.width, metadata.height))
    return boxes, metadata.segms


class _Metadata(VCRMetadata):
    """Adds the image size, which the dataset does not read."""

    width: int | None = None
    height: int | None = None


class VCRPredictor(Predictor[VCRQuery, tuple[float, ...], tuple[Encoding, ...]]):
    """Chooses an answer (Q->A model) or a rationale (QA->R model)."""

    task_class: ClassVar[type[AnyTask]] = VCRTask
    query_class: ClassVar[type[Query]] = VCRQuery
    first_region: ClassVar[int] = 0
    task: VCRTask

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._preprocessor = VCRPreprocessor(self.task.config, self.tokenizer, truncate=True)

    def predict(
        self,
        image: ImageSource,
        question: str,
        choices: Sequence[str],
        boxes: BoxSource | None = None,
        *,
        answer: str | None = None,
    ) -> tuple[float, ...]:
        """Returns the probability of each choice; see `VCRQuery`."""
        return self.predict_batch([VCRQuery(image, question, boxes, choices=choices, answer=answer)])[0]

    def query(self, image: ImageSource, text: str, boxes: BoxSource | None = None) -> VCRQuery:
        return VCRQuery(image, text, boxes)

    def group_by_query(self, encodings: list[Encoding]) -> tuple[Encoding, ...]:
        return tuple(encodings)

    def texts(self, query: VCRQuery) -> dict[str, str]:
        answer = {} if query.answer is None else {"its answer": query.answer}
        choices = {f"choice {number}": choice for number, choice in enumerate(query.choices, 1)}
        return {"its question": query.text, **answer, **choices}

    def check(self, query: VCRQuery, *, predicting: bool) -> None:
        """See `TrainedModel`; also warns about texts that will be truncated."""
        if not isinstance(query.choices, list | tuple) or (predicting and len(query.choices) < 2):
            raise DataError("choices: give a list of at least two texts")
        super().check(query, predicting=predicting)
        lengths = [len(self.word_ids(text)) for text in self.texts(query).values()]
        choices = lengths[len(lengths) - len(query.choices) :]
        if (longest := sum(lengths) - sum(choices) + max(choices, default=0)) > MAX_TOKENS:
            logger.warning(
                "question and choice have %d word pieces; the model reads %d, so both are truncated",
                longest,
                MAX_TOKENS,
            )

    def word_ids(self, text: str) -> list[int]:
        """See `TrainedModel`; a reference counts as one word."""
        return super().word_ids(" ".join("x" if isinstance(word, list) else word for word in words_of(text)))

    def visible_regions(self, image: ImageWithRegions, query: VCRQuery) -> Sequence[int]:
        """See `TrainedModel`; with `ONLY_USE_RELEVANT_DETS` only the objects that texts refer to."""
        return self._preprocessor.visible_objects(self._record(image, query))

    def sample(self, index: int, image: ImageWithRegions, query: VCRQuery) -> Sample:
        record = self._record(image, query)
        corners = image.regions.boxes.tolist()
        if query.polygons is not None:
            check_polygons(query.polygons, len(corners))
        outlines = query.polygons or [
            [[(x1, y1), (x2, y1), (x2, y2), (x1, y2)]] for x1, y1, x2, y2 in corners
        ]
        metadata = VCRMetadata.model_construct(boxes=corners, segms=outlines)
        return self._preprocessor(index, record, image.prepared, metadata, name_offset=query.first_name)

    def _record(self, image: ImageWithRegions, query: VCRQuery) -> VCRRecord:
        """Converts a query to an annotation.

        Raises:
            DataError: a text is missing, or refers to an object that does not exist.
        """
        rationales = self.task.config.DATASET.TASK == "QA2R"
        if rationales and query.choices and query.answer is None:
            raise DataError(
                "this model chooses rationales (QA2R): give the answer to explain (answer=, --answer)"
            )
        if query.answer and not rationales:
            raise DataError("this model chooses answers (Q2A): remove the answer (answer=, --answer)")
        choices = [words_of(choice) for choice in query.choices or [""]]
        answer = words_of(query.answer or "")
        question = words_of(query.text)
        largest = max(referenced_objects([question, answer, *choices]), default=-1)
        num_objects = len(image.regions.boxes)
        if largest >= num_objects:
            raise DataError(
                f"a text refers to object {largest}, but the image has {num_objects} objects, numbered from 0"
            )
        return VCRRecord.model_construct(
            annot_id=image.name,
            img_fn=image.name,
            metadata_fn="",
            objects=[name or UNKNOWN_OBJECT for name in image.class_names()],
            question=question,
            answer_choices=[answer] if rationales else choices,
            rationale_choices=choices if rationales else None,
            answer_label=0,
        )

    def predictions(
        self, outputs: VCROutputs, batch: Batch, images: Sequence[ImageWithRegions]
    ) -> list[tuple[float, ...]]:
        """Returns the probability of each choice."""
        return [tuple(row) for row in outputs.logits.softmax(dim=1).tolist()]


def main() -> None:
    """Runs the command line."""
    flags = predict_parser("Choose the answer to a question about an image.")
    flags.add_argument(
        "--metadata",
        help="VCR metadata file with the objects of the image, instead of --boxes or --detector",
    )
    flags.add_argument("--question", required=True, help="the question; [0] refers to the first object")
    flags.add_argument("--choice", action="append", required=True, help="an answer or rationale; repeatable")
    flags.add_argument("--answer", help="the answer to explain, for a QA->R model")
    args = parse_predict_args(flags)
    if len(args.choice) < 2:
        raise UsageError("--choice: give at least two")
    if args.metadata and (args.boxes or args.detector):
        raise UsageError("--metadata, --boxes and --detector: give one of them")
    boxes, polygons = read_metadata(args.metadata) if args.metadata else (args.boxes, None)
    query = VCRQuery(
        args.image, args.question, boxes, choices=args.choice, answer=args.answer, polygons=polygons
    )

    def view(image: ImageWithRegions, probabilities: tuple[float, ...]) -> PredictionView:
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        texts = [args.question, args.answer or "", *args.choice]
        return PredictionView(
            lines=[
                f"{probability:7.1%}  {choice}{'  <-' if index == best else ''}"
                for index, (choice, probability) in enumerate(zip(args.choice, probabilities, strict=True))
            ],
            record={"question": args.question, "choice": best, "probabilities": probabilities},
            boxes=image.to_draw(referenced_objects(map(words_of, texts)), first=0),
            caption=f"{args.question} {args.choice[best]}",
        )

    predict_main(args, VCRPredictor, query, view)


if __name__ == "__main__":
    sys.exit(run(main))
