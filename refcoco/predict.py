"""Finds the region of an image that an expression refers to.

`python -m refcoco.predict --cfg YAML --ckpt CHECKPOINT --image IMAGE --expression "the red car on the left"`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from common.batch import Batch, Sample
from common.cli.predict import PredictionView, parse_predict_args, predict_main, predict_parser
from common.cli.run import run
from common.data.images import ImageSource
from common.inference.predictor import Predictor
from common.inference.queries import BoxSource, ImageWithRegions, Query
from common.models.packing import argmax_per_row
from common.training.task import AnyTask
from refcoco.dataset import RefCOCOPreprocessor
from refcoco.model import RefCOCOOutputs
from refcoco.task import RefCOCOTask


@dataclass(frozen=True)
class Grounding:
    """The region that an expression refers to.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the image.
        score: probability that the expression refers to it, from 0 to 1.
        region: number of the region, from 1; 0 is the whole image.
        scores: scores of all regions; the whole image comes first if it is a candidate.
    """

    box: tuple[float, float, float, float]
    score: float
    region: int
    scores: tuple[float, ...]


class RefCOCOPredictor(Predictor[Query, Grounding]):
    """Finds the region that an expression refers to."""

    task_class: ClassVar[type[AnyTask]] = RefCOCOTask
    task: RefCOCOTask

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._preprocessor = RefCOCOPreprocessor(self.task.config, self.tokenizer)

    def predict(self, image: ImageSource, expression: str, boxes: BoxSource | None = None) -> Grounding:
        """Returns the best region; see `Query`."""
        return self.predict_batch([Query(image, expression, boxes)])[0]

    def sample(self, index: int, image: ImageWithRegions, query: Query) -> Sample:
        return self._preprocessor(index, image.name, image.prepared, query.text, image.regions)

    def predictions(
        self, outputs: RefCOCOOutputs, batch: Batch, images: Sequence[ImageWithRegions]
    ) -> list[Grounding]:
        """Returns the region with the highest score for every expression; the first one if tied."""
        lengths = batch.num_boxes
        best = (argmax_per_row(outputs.logits, lengths) - lengths.starts).tolist()
        groundings = []
        for image, row, scores in zip(images, best, lengths.split(outputs.logits.sigmoid()), strict=True):
            # Row 0 is the whole image if the model has it as a candidate; the box is the user's, not the resized one.
            region = row + 1 - (len(scores) - len(image.regions.boxes))
            box = image.regions.boxes[region - 1].tolist() if region else map(float, image.prepared.whole_box)
            groundings.append(Grounding(tuple(box), float(scores[row]), region, tuple(scores.tolist())))
        return groundings


def main() -> None:
    """Runs the command line."""
    flags = predict_parser("Find the region of an image that an expression refers to.")
    flags.add_argument("--expression", required=True, help="the referring expression")
    args = parse_predict_args(flags)

    def view(image: ImageWithRegions, result: Grounding) -> PredictionView:
        corners = ", ".join(f"{side:.1f}" for side in result.box)
        name = f"region {result.region}" if result.region else "the whole image"
        return PredictionView(
            lines=[f"{result.score:7.1%}  {name}: {corners} (x1, y1, x2, y2)"],
            record={"expression": args.expression, **asdict(result)},
            boxes=image.to_draw({result.region}),
            caption=f"{args.expression} ({result.score:.0%})",
        )

    predict_main(args, RefCOCOPredictor, Query(args.image, args.expression, args.boxes), view)


if __name__ == "__main__":
    sys.exit(run(main))
