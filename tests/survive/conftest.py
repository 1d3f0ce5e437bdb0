from __future__ import annotations

import functools
import itertools

import pytest

from scripts.make_toy_data import ToyWorld
from tests.survive.runs import train
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


@pytest.fixture(scope="session")
def whole_run(drawn, tmp_path_factory):
    """Returns the world of a run on so many ranks that nothing stopped, and its events; each is run once."""

    @functools.cache
    def run(ranks):
        world = World(drawn, tmp_path_factory.mktemp(f"whole-{ranks}"))
        statuses, counts = train(world, ranks=ranks)
        assert statuses == [0] * ranks
        return world, counts

    return run
