"""Answers the questions of a test split and writes the file for the EvalAI server; see `docs/data_formats.md`."""

from __future__ import annotations

import sys

from common.cli.evaluate import checkpoint_parser, load_evaluation
from common.cli.run import run
from vqa.task import VQATask


def main() -> None:
    flags = checkpoint_parser("Test a VQA model.", "split, several joined with + (default: %(default)s)")
    flags.set_defaults(split="test2015")
    args = flags.parse_args()
    load_evaluation(args, VQATask, "test").write_test_result(args.result_name or "")


if __name__ == "__main__":
    sys.exit(run(main))
