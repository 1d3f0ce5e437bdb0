"""Finds in any picture what a sentence means.

`python -m refcoco.predict --cfg YAML --ckpt CHECKPOINT --image PICTURE --expression "the red car on the left"`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from common.batch import Batch
from common.cli.predict import PredictionView, predict_main, predict_parser, read_arguments
from common.cli.run import run
from common.data.images import ImageSource
from common.inference.grid import BoxSource
from common.inference.predictor import Predictor
from common.inference.queries import ImageWithRegions, Query
from common.models.packing import argmax_per_row
from common.training.task import AnyTask
from refcoco.model import RefCOCOOutputs
from refcoco.task import RefCOCOTask


@dataclass(frozen=True)
class Found:
    """What a sentence means.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the picture.
        score: how surely it is meant, from 0 to 1.
        region: number of the region, from 1; 0 is the whole image.
        scores: those of all regions, the whole image first where the model has it as a candidate.
    """

    box: tuple[float, float, float, float]
    score: float
    region: int
    scores: tuple[float, ...]


class RefCOCOPredictor(Predictor[Query, Found]):
    """Finds the region that a sentence refers to."""

    task_class: ClassVar[type[AnyTask]] = RefCOCOTask

    def predict(self, image: ImageSource, expression: str, boxes: BoxSource | None = None) -> Found:
        """Returns the best region; see `Query`."""
        return self.predict_batch([Query(image, expression, boxes)])[0]

    def predictions(
        self, outputs: RefCOCOOutputs, batch: Batch, images_with_regions: Sequence[ImageWithRegions]
    ) -> list[Found]:
        """The best box of every sentence; of equal ones the first."""
        lengths = batch.num_boxes
        best = (argmax_per_row(outputs.logits, lengths) - lengths.starts).tolist()
        found = []
        for image_regions, place, scores in zip(
            images_with_regions, best, lengths.split(outputs.logits.sigmoid()), strict=True
        ):
            region = place + 1 - (len(scores) - len(image_regions.classes))
            box = (
                image_regions.regions.boxes[region - 1].tolist()
                if region
                else map(float, image_regions.picture.whole)
            )
            found.append(Found(tuple(box), float(scores[place]), region, tuple(scores.tolist())))
        return found


def main() -> None:
    """Reads the command line, and prints and draws the region."""
    flags = predict_parser("Find what an expression refers to in a picture.")
    flags.add_argument("--expression", required=True, help="what to look for")
    args = read_arguments(flags)

    def describe(image_regions: ImageWithRegions, found: Found) -> PredictionView:
        corners = ", ".join(f"{side:.1f}" for side in found.box)
        name = f"region {found.region}" if found.region else "the whole image"
        return PredictionView(
            lines=[f"{found.score:7.1%}  {name}: {corners} (x1, y1, x2, y2)"],
            record={"expression": args.expression, **asdict(found)},
            boxes=image_regions.drawn({found.region}),
            title=f"{args.expression} ({found.score:.0%})",
        )

    predict_main(args, RefCOCOPredictor, Query(args.image, args.expression, args.boxes), describe)


if __name__ == "__main__":
    sys.exit(run(main))
