"""Options and the report of the golden runner: `python -m pytest tests/golden --golden DIR`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.golden.harness import Report, discover

HERE = Path(__file__).parent
REPORTS = pytest.StashKey[list[Report]]()


def pytest_addoption(parser):
    parser.addoption("--golden", default=str(HERE), help="folder laid out like tests/golden")


def pytest_generate_tests(metafunc):
    if "golden_case" in metafunc.fixturenames:
        root = Path(metafunc.config.getoption("--golden", default=str(HERE))).resolve()
        if not root.is_dir():
            raise pytest.UsageError(f"--golden {root}: no such folder")
        cases = list(discover(root))
        if not cases:
            raise pytest.UsageError(
                f"--golden {root}: holds no case; expected data, eval, model or train below it"
            )
        metafunc.parametrize("golden_case", cases, ids=[case.name for case in cases])


@pytest.fixture
def report(request, golden_case):
    report = Report(golden_case.name)
    request.config.stash.setdefault(REPORTS, []).append(report)
    return report


def pytest_terminal_summary(terminalreporter, config):
    reports = config.stash.get(REPORTS, [])
    if not reports:
        return
    write = terminalreporter.write_line
    terminalreporter.section("golden cases: worst error of each")
    width = max(len(report.name) for report in reports)
    for report in reports:
        state = "FAILED" if report.failures else "ok"
        line = f"{report.name:<{width}}  {state:<6} {report.comparisons:5d} comparisons"
        line += f"  worst error {report.worst:.2e} = {max(report.worst_ratio, 0):.3f} of tolerance ({report.worst_of})"
        write(line)
        for rule, count in Counter(skipped.rule for skipped in report.skipped).items():
            what = ", ".join(skipped.what for skipped in report.skipped if skipped.rule == rule)
            write(
                f"{'':<{width}}    left out {count}: {rule} ({what if len(what) < 90 else what[:90] + '…'})"
            )
    failed = sum(bool(report.failures) for report in reports)
    write(
        f"{len(reports) - failed} cases agree, {failed} differ; "
        f"{sum(report.comparisons for report in reports)} comparisons, "
        f"{sum(len(report.skipped) for report in reports)} left out by decision"
    )
