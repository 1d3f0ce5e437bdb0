"""Marks tests without a mark: `integration` if they use a toy world, `unit` otherwise."""

import pytest

MARKS = ("integration", "dist", "browser", "slow", "gpu")
TOY_WORLD = "drawn"  # the fixture that draws it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if TOY_WORLD in getattr(item, "fixturenames", ()):
            item.add_marker("integration")
        elif not any(item.get_closest_marker(name) for name in MARKS):
            item.add_marker("unit")
