"""Answers the questions of a test split, in the file that EvalAI wants (train_eval spec, 7.4)."""

from __future__ import annotations

import sys

from common.engine.main import checkpoint_parser, load_evaluation, run
from common.engine.results import prepare_device, write_test_result
from vqa.task import VQATask


def main() -> None:
    """Reads the command line, runs the model and writes its answers."""
    flags = checkpoint_parser("Test a VQA model.", "split, several joined with + (default: %(default)s)")
    flags.set_defaults(split="test2015")
    args = flags.parse_args()
    task, checkpoint, folder = load_evaluation(args, VQATask, "test")
    device, precision = prepare_device(args, task.config.GPUS)
    write_test_result(task, checkpoint, folder, device, precision, args.result_name or "")


if __name__ == "__main__":
    sys.exit(run(main))
