"""Answers a question about an image.

`python -m vqa.predict --cfg YAML --ckpt CHECKPOINT --image IMAGE --boxes FILE --question "What color is the car?"`

A model that reads region features needs a region file with features (`--boxes`), or boxes of any kind and the ResNet
that computes their features (`--features`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from common.batch import Batch, Sample
from common.cli.predict import PredictionView, parse_predict_args, predict_main, predict_parser
from common.cli.run import run
from common.data.images import ImageSource
from common.errors import UsageError
from common.inference.predictor import Predictor
from common.inference.queries import BoxSource, ImageWithRegions, Query
from common.training.task import AnyTask
from vqa.dataset import VQAPreprocessor
from vqa.model import VQAOutputs
from vqa.task import VQATask


@dataclass(frozen=True)
class Answer:
    """An answer with its probability; answers do not exclude each other, so probabilities do not sum to 1."""

    text: str
    probability: float


class VQAPredictor(Predictor[Query, tuple[Answer, ...]]):
    """Answers questions from the answer vocabulary."""

    task_class: ClassVar[type[AnyTask]] = VQATask
    task: VQATask

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._preprocessor = VQAPreprocessor(self.task.config, self.tokenizer)
        self._answers = self.task.vocabulary.answers
        self._answerable = torch.tensor(self.task.vocabulary.sayable(), device=self.device)

    def predict(
        self, image: ImageSource, question: str, boxes: BoxSource | None = None, *, top: int = 5
    ) -> tuple[Answer, ...]:
        """Returns the `top` most probable answers, best first; see `Query`.

        Raises:
            UsageError: `top` is not a positive integer.
            DataError: the query is invalid.
        """
        if not isinstance(top, int) or top < 1:
            raise UsageError(f"top: {top!r}: must be an integer of at least 1")
        return self.predict_batch([Query(image, question, boxes)])[0][:top]

    def sample(self, index: int, image: ImageWithRegions, query: Query) -> Sample:
        return self._preprocessor(index, image.name, image.prepared, query.text, image.regions)

    def predictions(
        self, outputs: VQAOutputs, batch: Batch, images: Sequence[ImageWithRegions]
    ) -> list[tuple[Answer, ...]]:
        """Returns all answers except `<unk>`, best first; ties keep the order of the vocabulary."""
        logits = outputs.logits.masked_fill(~self._answerable, -torch.inf)
        order = logits.argsort(dim=1, descending=True, stable=True)[:, : int(self._answerable.sum())]
        probabilities = logits.sigmoid().gather(1, order)
        return [
            tuple(Answer(self._answers[index], value) for index, value in zip(*row, strict=True))
            for row in zip(order.tolist(), probabilities.tolist(), strict=True)
        ]


def main() -> None:
    """Runs the command line."""
    flags = predict_parser("Answer a question about an image.")
    flags.add_argument("--question", required=True, help="the question")
    flags.add_argument("--top", type=int, default=5, help="number of answers to print (default: %(default)s)")
    args = parse_predict_args(flags)
    if args.top < 1:
        raise UsageError(f"--top: {args.top}: must be at least 1")

    def view(image: ImageWithRegions, answers: tuple[Answer, ...]) -> PredictionView:
        best = answers[: args.top]
        return PredictionView(
            lines=[f"{answer.probability:7.1%}  {answer.text}" for answer in best],
            record={"question": args.question, "answers": [asdict(answer) for answer in best]},
            boxes=image.to_draw(),
            caption=f"{args.question} {best[0].text}",
        )

    predict_main(args, VQAPredictor, Query(args.image, args.question, args.boxes), view)


if __name__ == "__main__":
    sys.exit(run(main))
