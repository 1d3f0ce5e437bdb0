"""Writes the box that a model chooses for every sentence of a split, and says how many are right."""

from __future__ import annotations

import sys

from common.engine.main import checkpoint_parser, load_evaluation, run
from common.engine.results import prepare_device, write_test_result
from refcoco.task import RefCOCOTask


def main() -> None:
    """Reads the command line, runs the model and writes the file."""
    flags = checkpoint_parser("Test a model of referring expressions.", "test, testA, testB or val (default)")
    flags.set_defaults(split="val")
    args = flags.parse_args()
    task, checkpoint, folder = load_evaluation(args, RefCOCOTask, "test")
    device, precision = prepare_device(args)
    write_test_result(task, checkpoint, folder, device, precision, args.result_name or "")


if __name__ == "__main__":
    sys.exit(run(main))
