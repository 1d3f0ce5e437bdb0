from __future__ import annotations

import itertools

import pytest

from scripts.make_toy_data import ToyWorld
from tests.vqa.world import World
from tests.world import draw


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("drawn") / "toy", ToyWorld(tasks=("vqa",), train=12, val=6, test=2))


@pytest.fixture
def new_world(drawn, tmp_path):
    """Makes worlds with folders of their own."""
    numbers = itertools.count()
    return lambda name: World(drawn, tmp_path / f"{name}-{next(numbers)}")


@pytest.fixture
def world(new_world):
    return new_world("world")
