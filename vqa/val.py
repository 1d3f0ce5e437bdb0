"""Official VQA accuracy of a model on an annotated split, overall and by type of answer."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from common.cli.evaluate import checkpoint_parser, load_evaluation, setup_eval
from common.cli.run import run
from common.distributed import process_group as distributed
from common.evaluation.checkpoints import predict_split
from common.evaluation.outputs import write_json
from vqa.answers import official_accuracy
from vqa.questions import Questions
from vqa.task import VQATask


def accuracies(records: Sequence[Mapping[str, Any]], questions: Questions) -> dict[str, float]:
    """Mean accuracy in percent, overall and by answer type.

    Args:
        records: one answer to each question, in the same order.
        questions: with the answers of the annotators.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for index, record in enumerate(records):
        assert record["question_id"] == questions.ids[index], "predictions are in dataset order"
        score = official_accuracy(record["answer"], questions.answers(index))
        scores["overall"].append(score)
        if questions.types[index]:
            scores[questions.types[index]].append(score)
    return {name: 100 * sum(values) / len(values) for name, values in scores.items()}


def main() -> None:
    """Reads the command line, runs the model, writes its answers and prints the accuracies."""
    flags = checkpoint_parser(
        "Validate a VQA model.", "annotated split, several joined with + (default: DATASET.VAL_IMAGE_SET)"
    )
    args = flags.parse_args()
    task, checkpoint, folder = load_evaluation(args, VQATask, "val")
    device, precision = setup_eval(args, task.config.GPUS)
    records = predict_split(task, checkpoint, "val", device, precision)
    data = task.config.DATASET
    write_json(
        folder / f"{args.result_name or task.config.MODEL_PREFIX}_vqa2_{data.VAL_IMAGE_SET}.json", records
    )
    if not distributed.is_main():
        return
    result = accuracies(records, Questions.open(data, "val"))
    sys.stdout.write(f"Evaluate on split: {data.VAL_IMAGE_SET}...\n")
    for name, percent in result.items():
        sys.stdout.write(f"{name}\t{percent:.2f}\n")


if __name__ == "__main__":
    sys.exit(run(main))
