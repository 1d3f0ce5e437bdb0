"""Writes the probabilities of the test split and, with both models, the file for the VCR leaderboard."""

from __future__ import annotations

import sys

from common.cli.run import run
from vcr.evaluation import parser, write_test_files


def main() -> None:
    flags = parser("Test VCR models.", "./test_result")
    flags.add_argument("--test-file", help="annotation file (default: DATASET.TEST_ANNOTATION_FILE)")
    write_test_files(flags.parse_args())


if __name__ == "__main__":
    sys.exit(run(main))
