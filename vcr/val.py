"""Validation accuracies of Q->A, QA->R and Q->AR, from one model or both."""

from __future__ import annotations

import sys

from common.cli.run import run
from common.distributed import process_group as distributed
from vcr.evaluation import parser, validate


def main() -> None:
    flags = parser("Validate VCR models.", "./vcr_val_results")
    flags.set_defaults(result_name="vl-bert")  # as in the reference
    flags.add_argument("--annot", help="annotation file (default: DATASET.VAL_ANNOTATION_FILE)")
    result = validate(flags.parse_args())
    if distributed.is_main():
        sys.stdout.write("Evaluate...\n")
        for name, percent in result.items():
            sys.stdout.write(f"{name}\t{percent:.1f}\n")


if __name__ == "__main__":
    sys.exit(run(main))
