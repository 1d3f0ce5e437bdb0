"""Result files of VCR: the probabilities of each model, and the joint file for the leaderboard."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import DataError
from common.evaluation.outputs import write_result
from common.files import save_array
from vcr.dataset import NUM_CHOICES

logger = logging.getLogger(__name__)

COLUMNS = {
    "Q2A": [f"answer_{choice}" for choice in range(NUM_CHOICES)],
    "QA2R": [
        f"rationale_conditioned_on_a{answer}_{choice}"
        for answer in range(NUM_CHOICES)
        for choice in range(NUM_CHOICES)
    ],
}
"""Columns of the csv files after `annot_id`."""


def write_probabilities(records: Sequence[Mapping[str, Any]], columns: Sequence[str], csv: Path) -> None:
    """Writes the probabilities of one model as `.npy` and `.csv`, one row per question in dataset order."""
    values = np.array([record["probabilities"] for record in records], dtype=np.float32)
    npy = csv.with_suffix(".npy")
    write_result(npy, partial(save_array, values=values))
    logger.info("result npy saved to %s.", npy)
    table = pd.DataFrame(values, columns=list(columns))
    table.insert(0, "annot_id", [record["annot_id"] for record in records])
    write_result(csv, lambda temporary: table.to_csv(temporary, index=False))
    logger.info("result csv saved to %s.", csv)


def merge_result(q2a: Path, qa2r: Path, merged: Path) -> None:
    """Joins both files on `annot_id`, in the order of the answers.

    Raises:
        DataError: the files have different questions.
    """
    tables = []
    for path in (q2a, qa2r):
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a result file: {error}") from error
        if "annot_id" not in table:
            raise DataError(f"{path}: not a result file: it has no column annot_id; leave out --use-cache")
        tables.append(table)
    if set(tables[0]["annot_id"]) != set(tables[1]["annot_id"]):
        raise DataError(f"{q2a} and {qa2r} do not hold the same questions; test both on one file")
    joined = tables[0].merge(tables[1], on="annot_id", how="inner")
    write_result(merged, lambda temporary: joined.to_csv(temporary, index=False))
    logger.info("merged result csv saved to %s.", merged)


def common_name(prefixes: Sequence[str]) -> str:
    """Returns the common part of two model prefixes: `x_a_res101` and `x_r_res101` give `x`."""
    return os.path.commonprefix(list(prefixes)).rstrip("_-.") or "vcr"  # noqa: RUF071 - of characters, not of folders
