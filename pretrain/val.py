"""Validates a pre-trained model: its losses and masked-prediction accuracies, with the same masks in every run."""

from __future__ import annotations

import sys

from common.cli.evaluate import checkpoint_parser, load_evaluation
from common.cli.run import run
from common.distributed import process_group as distributed
from common.evaluation.outputs import write_json
from pretrain.task import PretrainTask


def main() -> None:
    flags = checkpoint_parser(
        "Validate a pre-trained model.", "split of the captions, train or val (default: VAL_IMAGE_SET)"
    )
    args = flags.parse_args()
    evaluation = load_evaluation(args, PretrainTask, "val")
    task = evaluation.task
    task.require_heads()
    metrics = evaluation.evaluate("val")
    name = f"{args.result_name or task.config.MODEL_PREFIX}_{task.config.datasets[0].VAL_IMAGE_SET}.json"
    write_json(evaluation.output_dir / name, [metrics])
    if distributed.is_main():
        sys.stdout.writelines(f"{name}\t{value:.6f}\n" for name, value in metrics.items())


if __name__ == "__main__":
    sys.exit(run(main))
