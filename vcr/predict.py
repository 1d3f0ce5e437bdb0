"""Chooses an answer, or a rationale, to a question about any picture.

`python -m vcr.predict --cfg YAML --ckpt CHECKPOINT --image PICTURE --metadata FILE --question "Why is [0] smiling ?"
--choice "[0] is happy ." --choice "..."`; a QA->R model also takes `--answer`. `[0]` is the first object, `[0,2]` the
first and the third.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

from common.batch import Batch, Sample
from common.cli.predict import PredictionView, predict_main, predict_parser, read_arguments
from common.cli.run import run
from common.data.images import ImageSource
from common.data.instance_masks import check_polygons
from common.data.regions.sources import parse_boxes
from common.data.regions.types import Regions
from common.data.storage.store import Store, parse_model
from common.errors import DataError, UsageError
from common.inference.grid import BoxSource
from common.inference.predictor import Predictor
from common.inference.queries import Encoding, ImageWithRegions, Query
from common.training.task import AnyTask
from vcr.dataset import VCRMetadata, VCRPreprocessor, VCRRecord
from vcr.model import VCROutputs
from vcr.task import VCRTask
from vcr.text import MAX_TOKENS, referenced_objects

logger = logging.getLogger(__name__)

UNKNOWN_OBJECT = "object"

Polygons: TypeAlias = list[list[list[tuple[float, float]]]]
"""Outlines of every object: x, y in pixels of the picture."""


@dataclass(frozen=True, kw_only=True)
class VCRQuery(Query):
    """A question with its choices. Texts refer to objects as `[0]` or `[0,2]`.

    Attributes:
        choices: the answers, or for a QA->R model the rationales; none to encode the question alone.
        answer: what a QA->R model is to find a reason for.
        polygons: outlines of every object; the boxes where None.
        first_name: number of the first person's name (`vcr.text.PERSON_NAMES`).
    """

    choices: Sequence[str] = ()
    answer: str | None = None
    polygons: Polygons | None = None
    first_name: int = 0


def words_of(text: str) -> list[str | list[int]]:
    """Splits at masked_pixel_boxes; `[0]` and `[0,2]` become lists of object numbers."""
    parts = re.split(r"(\[\s*\d+(?:\s*,\s*\d+)*\s*\])", text)
    return [
        word
        for place, part in enumerate(parts)
        for word in ([list(map(int, re.findall(r"\d+", part)))] if place % 2 else part.split())
    ]


def read_metadata(path: str | Path) -> tuple[Regions, Polygons]:
    """Reads the objects of a picture from its VCR metadata file: boxes and classes, and polygons.

    Raises:
        DataError: the file cannot be used.
    """
    found = parse_model(_Metadata, Store().read(str(path)), str(path))
    if not len(found.boxes) == len(found.segms) == len(found.names):
        raise DataError(f"{path}: boxes, segms and names must be equally many")
    boxes = parse_boxes({"boxes": [box[:4] for box in found.boxes], "classes": found.names}, str(path))
    if found.width is not None and found.height is not None:
        boxes = boxes._replace(image_size=(found.width, found.height))
    return boxes, found.segms


class _Metadata(VCRMetadata):
    """With the size of the picture, which the data set does not need."""

    width: int | None = None
    height: int | None = None


class VCRPredictor(Predictor[VCRQuery, tuple[float, ...], tuple[Encoding, ...]]):
    """Chooses among answers, or among rationales, as the model was trained."""

    task_class: ClassVar[type[AnyTask]] = VCRTask
    query_class: ClassVar[type[Query]] = VCRQuery
    first_region: ClassVar[int] = 0

    def predict(
        self,
        image: ImageSource,
        question: str,
        choices: Sequence[str],
        boxes: BoxSource | None = None,
        *,
        answer: str | None = None,
    ) -> tuple[float, ...]:
        """Returns the probability of every choice; see `VCRQuery`."""
        return self.predict_batch([VCRQuery(image, question, boxes, choices=choices, answer=answer)])[0]

    def query(self, image: ImageSource, text: str, boxes: BoxSource | None = None) -> VCRQuery:
        """A question alone, for `encode`."""
        return VCRQuery(image, text, boxes)

    def of_query(self, encodings: list[Encoding]) -> tuple[Encoding, ...]:
        """The encoding of every choice."""
        return tuple(encodings)

    def texts(self, query: VCRQuery) -> dict[str, str]:
        """See `TrainedModel`."""
        answer = {} if query.answer is None else {"its answer": query.answer}
        choices = {f"choice {number}": choice for number, choice in enumerate(query.choices, 1)}
        return {"its question": query.text, **answer, **choices}

    def check(self, query: VCRQuery, *, answered: bool) -> None:
        """See `TrainedModel`; also says of texts that they will be cut."""
        if not isinstance(query.choices, list | tuple) or (answered and len(query.choices) < 2):
            raise DataError("choices: give a list of at least two texts")
        super().check(query, answered=answered)
        lengths = [len(self.word_ids(text)) for text in self.texts(query).values()]
        choices = lengths[len(lengths) - len(query.choices) :]
        if (longest := sum(lengths) - sum(choices) + max(choices, default=0)) > MAX_TOKENS:
            logger.warning(
                "question and choice have %d word pieces; the model reads %d, and the ends of both are cut",
                longest,
                MAX_TOKENS,
            )

    def word_ids(self, text: str) -> list[int]:
        """See `TrainedModel`; a reference counts as a word."""
        return super().word_ids(" ".join("x" if isinstance(word, list) else word for word in words_of(text)))

    def kept(self, image_regions: ImageWithRegions, query: VCRQuery) -> Sequence[int]:
        """See `TrainedModel`; some models see only the objects that texts speak of."""
        return self._preprocessor().visible_objects(self._record(image_regions, query))

    def sample(self, index: int, image_regions: ImageWithRegions, query: VCRQuery) -> Sample:
        """Puts question and choices together as the dataset does."""
        record = self._record(image_regions, query)
        corners = image_regions.regions.boxes.tolist()
        if query.polygons is not None:
            check_polygons(query.polygons, len(corners))
        outlines = query.polygons or [
            [[(x1, y1), (x2, y1), (x2, y2), (x1, y2)]] for x1, y1, x2, y2 in corners
        ]
        found = VCRMetadata.model_construct(boxes=corners, segms=outlines)
        return self._preprocessor()(index, record, image_regions.picture, found, name_offset=query.first_name)

    def _preprocessor(self) -> VCRPreprocessor:
        return VCRPreprocessor(self.task.config, self.task.tokenizer, truncate=True)

    def _record(self, image_regions: ImageWithRegions, query: VCRQuery) -> VCRRecord:
        """Writes a query as an annotation.

        Raises:
            DataError: a text is missing, or refers to an object that is not there.
        """
        rationales = self.task.config.DATASET.TASK == "QA2R"
        if rationales and query.choices and query.answer is None:
            raise DataError(
                "this model finds reasons (QA2R): give the answer to find one for (answer=, --answer)"
            )
        if query.answer and not rationales:
            raise DataError("this model finds answers (Q2A): it takes none (answer=, --answer)")
        choices = [words_of(choice) for choice in query.choices or [""]]
        answer = words_of(query.answer or "")
        question = words_of(query.text)
        largest = max(referenced_objects([question, answer, *choices]), default=-1)
        if largest >= len(image_regions.classes):
            raise DataError(
                f"a text refers to object {largest}, but there are {len(image_regions.classes)}, counted from 0"
            )
        return VCRRecord.model_construct(
            annot_id=image_regions.name,
            img_fn=image_regions.name,
            metadata_fn="",
            objects=[kind or UNKNOWN_OBJECT for kind in image_regions.kinds()],
            question=question,
            answer_choices=[answer] if rationales else choices,
            rationale_choices=choices if rationales else None,
            answer_label=0,
        )

    def predictions(
        self, outputs: VCROutputs, batch: Batch, images_with_regions: Sequence[ImageWithRegions]
    ) -> list[tuple[float, ...]]:
        """The probability of every choice."""
        return [tuple(row) for row in outputs.logits.softmax(dim=1).tolist()]


def main() -> None:
    """Reads the command line, and prints and draws the choice."""
    flags = predict_parser("Choose an answer to a question about a picture.")
    flags.add_argument(
        "--metadata", help="VCR metadata of the picture: its objects, in place of --boxes or --detector"
    )
    flags.add_argument("--question", required=True, help="what to ask; [0] is the first object")
    flags.add_argument("--choice", action="append", required=True, help="an answer or rationale; repeatable")
    flags.add_argument("--answer", help="what a QA->R model is to find a reason for")
    args = read_arguments(flags)
    if len(args.choice) < 2:
        raise UsageError("--choice: give at least two")
    if args.metadata and (args.boxes or args.detector):
        raise UsageError("--metadata, --boxes and --detector: give one of them")
    boxes, polygons = read_metadata(args.metadata) if args.metadata else (args.boxes, None)
    query = VCRQuery(
        args.image, args.question, boxes, choices=args.choice, answer=args.answer, polygons=polygons
    )

    def describe(image_regions: ImageWithRegions, shares: tuple[float, ...]) -> PredictionView:
        best = max(range(len(shares)), key=shares.__getitem__)
        texts = [args.question, args.answer or "", *args.choice]
        return PredictionView(
            lines=[
                f"{share:7.1%}  {choice}{'  <-' if number == best else ''}"
                for number, (choice, share) in enumerate(zip(args.choice, shares, strict=True))
            ],
            record={"question": args.question, "choice": best, "probabilities": shares},
            boxes=image_regions.drawn(referenced_objects(map(words_of, texts)), first=0),
            title=f"{args.question} {args.choice[best]}",
        )

    predict_main(args, VCRPredictor, query, describe)


if __name__ == "__main__":
    sys.exit(run(main))
