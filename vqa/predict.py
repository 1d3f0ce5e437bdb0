"""Answers a question about any picture.

`python -m vqa.predict --cfg YAML --ckpt CHECKPOINT --image PICTURE --boxes FILE --question "What colour is the car?"`

A model that reads region features needs them: a region file (`--boxes`), or the network that computes them
(`--features`), with boxes of any kind.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from common.batch import Batch, TextSequence
from common.cli.predict import PredictionView, predict_main, predict_parser, read_arguments
from common.cli.run import run
from common.data.images import ImageSource
from common.errors import UsageError
from common.inference.grid import BoxSource
from common.inference.predictor import Predictor
from common.inference.queries import ImageWithRegions, Query
from common.training.task import AnyTask
from vqa.dataset import assemble_question
from vqa.model import VQAOutputs
from vqa.task import VQATask


@dataclass(frozen=True)
class Answer:
    """An answer, and how likely people would give it; several may be likely."""

    text: str
    probability: float


class VQAPredictor(Predictor[Query, tuple[Answer, ...]]):
    """Answers questions from the vocabulary of the model."""

    task_class: ClassVar[type[AnyTask]] = VQATask
    task: VQATask

    def predict(
        self, image: ImageSource, question: str, boxes: BoxSource | None = None, *, top: int = 5
    ) -> tuple[Answer, ...]:
        """Returns the `top` best answers, the best first; see `Query`.

        Raises:
            UsageError: `top` is no whole number of at least 1.
            DataError: the query cannot be used.
        """
        if not isinstance(top, int) or top < 1:
            raise UsageError(f"top: {top!r}: must be a whole number of at least 1")
        return self.predict_batch([Query(image, question, boxes)])[0][:top]

    def text(self, query: Query) -> TextSequence:
        """`[CLS] question [SEP] [MASK] [SEP]`."""
        return assemble_question(self.word_ids(query.text), self.task.tokenizer)

    def predictions(
        self, outputs: VQAOutputs, batch: Batch, images_with_regions: Sequence[ImageWithRegions]
    ) -> list[tuple[Answer, ...]]:
        """All answers to every question but `<unk>`, the best first; of equal ones the first of the vocabulary."""
        vocabulary = self.task.vocabulary
        sayable = torch.tensor(vocabulary.sayable(), device=outputs.logits.device)
        logits = outputs.logits.masked_fill(~sayable, -torch.inf)
        order = logits.argsort(dim=1, descending=True, stable=True)[:, : int(sayable.sum())]
        shares = logits.sigmoid().gather(1, order)
        return [
            tuple(Answer(vocabulary.answers[number], share) for number, share in zip(*row, strict=True))
            for row in zip(order.tolist(), shares.tolist(), strict=True)
        ]


def main() -> None:
    """Reads the command line, and prints and draws the answer."""
    flags = predict_parser("Answer a question about a picture.")
    flags.add_argument("--question", required=True, help="what to ask")
    flags.add_argument("--top", type=int, default=5, help="answers to show (default: %(default)s)")
    args = read_arguments(flags)
    if args.top < 1:
        raise UsageError(f"--top: {args.top}: must be at least 1")

    def describe(image_regions: ImageWithRegions, answers: tuple[Answer, ...]) -> PredictionView:
        best = answers[: args.top]
        return PredictionView(
            lines=[f"{answer.probability:7.1%}  {answer.text}" for answer in best],
            record={"question": args.question, "answers": [asdict(answer) for answer in best]},
            boxes=image_regions.drawn(),
            title=f"{args.question} {best[0].text}",
        )

    predict_main(args, VQAPredictor, Query(args.image, args.question, args.boxes), describe)


if __name__ == "__main__":
    sys.exit(run(main))
