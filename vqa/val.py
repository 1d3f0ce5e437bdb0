"""Official VQA accuracy of a model on a split with annotations, overall and by answer type."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from common.cli.evaluate import checkpoint_parser, load_evaluation
from common.cli.run import run
from common.distributed import process_group as distributed
from common.evaluation.outputs import write_json
from vqa.answers import official_accuracy
from vqa.questions import Questions
from vqa.task import VQATask


def accuracies(records: Sequence[Mapping[str, Any]], questions: Questions) -> dict[str, float]:
    """Returns the mean accuracy in percent, overall and by answer type.

    Args:
        records: predicted answers in dataset order.
        questions: questions with the answers of the annotators.
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
    flags = checkpoint_parser(
        "Validate a VQA model.",
        "split with annotations, several joined with + (default: DATASET.VAL_IMAGE_SET)",
    )
    args = flags.parse_args()
    evaluation = load_evaluation(args, VQATask, "val")
    records = evaluation.predict("val")
    config = evaluation.task.config
    split = config.DATASET.VAL_IMAGE_SET
    write_json(
        evaluation.output_dir / f"{args.result_name or config.MODEL_PREFIX}_vqa2_{split}.json", records
    )
    if distributed.is_main():
        sys.stdout.write(f"Evaluate on split: {split}...\n")
        for name, percent in accuracies(records, Questions.open(config.DATASET, "val")).items():
            sys.stdout.write(f"{name}\t{percent:.2f}\n")


if __name__ == "__main__":
    sys.exit(run(main))
