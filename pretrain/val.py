"""Evaluates a pre-trained model: its losses, and how much of what is hidden it restores, the same masks every time."""

from __future__ import annotations

import sys

from common.cli.evaluate import checkpoint_parser, load_evaluation, setup_eval
from common.cli.run import run
from common.distributed import process_group as distributed
from common.evaluation.checkpoints import load_model
from common.evaluation.evaluator import evaluate
from common.evaluation.outputs import write_json
from common.training.task import build_dataloader
from pretrain.task import PretrainTask


def main() -> None:
    """Reads the command line, runs the model, and writes and prints its metrics."""
    flags = checkpoint_parser(
        "Evaluate a pre-trained model.", "split of the captions, train or val (default: VAL_IMAGE_SET)"
    )
    args = flags.parse_args()
    task, checkpoint, folder = load_evaluation(args, PretrainTask, "val")
    task.require_heads()
    device, precision = setup_eval(args, task.config.GPUS)
    loader = build_dataloader(task, "val")
    found = evaluate(task, load_model(task, checkpoint, device), loader, device, "val", precision)
    name = f"{args.result_name or task.config.MODEL_PREFIX}_{task.config.datasets[0].VAL_IMAGE_SET}.json"
    write_json(folder / name, [found])
    if distributed.is_main():
        sys.stdout.writelines(f"{name}\t{value:.6f}\n" for name, value in found.items())


if __name__ == "__main__":
    sys.exit(run(main))
