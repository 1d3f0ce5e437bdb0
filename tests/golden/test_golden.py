"""Every golden case, compared at its own tolerance."""

from __future__ import annotations

import pytest

from tests.golden import (
    callback_cases,
    data_cases,
    eval_json_cases,
    eval_vcr_cases,
    metric_cases,
    model_cases,
    pretrain_cases,
    run_cases,
    train_cases,
    unit_cases,
)

pytestmark = pytest.mark.integration

AREAS = (
    callback_cases,
    data_cases,
    eval_json_cases,
    eval_vcr_cases,
    metric_cases,
    model_cases,
    pretrain_cases,
    run_cases,
    train_cases,
    unit_cases,
)
RUNNERS = [runner for area in AREAS for runner in area.RUNNERS]


def test_golden(golden_case, report):
    runners = [run for matches, run in RUNNERS if matches(golden_case)]
    assert len(runners) == 1, f"{len(runners)} runners understand {golden_case.path}; expected one"
    try:
        runners[0](golden_case, report)
    except Exception as error:
        report.failures.append(f"{type(error).__name__}: {error}")
        raise
    assert report.comparisons or report.skipped, "the case compared nothing"
    assert not report.failures, "\n".join(report.failures)
