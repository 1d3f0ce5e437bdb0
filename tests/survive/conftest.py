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
    """Creates worlds with output folders of their own."""
    indices = itertools.count()
    return lambda: World(drawn, tmp_path / f"world-{next(indices)}")


@pytest.fixture
def world(new_world):
    return new_world()


@pytest.fixture(scope="session")
def complete_run(drawn, tmp_path_factory):
    """Returns a function `ranks -> (world, event counts)` of an uninterrupted run; each number of ranks runs once."""

    @functools.cache
    def run(ranks):
        world = World(drawn, tmp_path_factory.mktemp(f"complete-{ranks}"))
        statuses, counts = train(world, ranks=ranks)
        assert statuses == [0] * ranks
        return world, counts

    return run
