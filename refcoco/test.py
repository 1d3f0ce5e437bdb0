"""Writes the box that a model chooses for every sentence of a split, and says how many are right."""

from __future__ import annotations

import sys

from common.cli.evaluate import checkpoint_parser, load_evaluation, setup_eval
from common.cli.run import run
from common.evaluation.checkpoints import run_test
from refcoco.task import RefCOCOTask


def main() -> None:
    """Reads the command line, runs the model and writes the file."""
    flags = checkpoint_parser("Test a model of referring expressions.", "test, testA, testB or val (default)")
    flags.set_defaults(split="val")
    args = flags.parse_args()
    task, checkpoint, folder = load_evaluation(args, RefCOCOTask, "test")
    device, precision = setup_eval(args)
    run_test(task, checkpoint, folder, device, precision, args.result_name or "")


if __name__ == "__main__":
    sys.exit(run(main))
