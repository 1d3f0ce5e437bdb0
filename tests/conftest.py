"""Marks every test without another mark as `unit`."""

import pytest

NOT_UNIT = ("integration", "dist", "browser", "slow", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(name) for name in NOT_UNIT):
            item.add_marker("unit")
