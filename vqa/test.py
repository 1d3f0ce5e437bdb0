"""Answers the questions of a test split, in the file that EvalAI wants (train_eval spec, 7.4)."""

from __future__ import annotations

import sys

from common.cli.evaluate import checkpoint_parser, load_evaluation, setup_eval
from common.cli.run import run
from common.evaluation.checkpoints import run_test
from vqa.task import VQATask


def main() -> None:
    """Reads the command line, runs the model and writes its answers."""
    flags = checkpoint_parser("Test a VQA model.", "split, several joined with + (default: %(default)s)")
    flags.set_defaults(split="test2015")
    args = flags.parse_args()
    task, checkpoint, folder = load_evaluation(args, VQATask, "test")
    device, precision = setup_eval(args, task.config.GPUS)
    run_test(task, checkpoint, folder, device, precision, args.result_name or "")


if __name__ == "__main__":
    sys.exit(run(main))
