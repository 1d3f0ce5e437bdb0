"""Predicts the box that each expression of a split refers to, and logs the accuracy."""

from __future__ import annotations

import sys

from common.cli.evaluate import checkpoint_parser, load_evaluation
from common.cli.run import run
from refcoco.task import RefCOCOTask


def main() -> None:
    flags = checkpoint_parser("Test a referring-expression model.", "test, testA, testB or val (default)")
    flags.set_defaults(split="val")
    args = flags.parse_args()
    evaluation = load_evaluation(args, RefCOCOTask, "test", use_config_gpus=False)
    evaluation.write_test_result(args.result_name or "")


if __name__ == "__main__":
    sys.exit(run(main))
