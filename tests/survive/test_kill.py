"""Runs that are killed anywhere and started again end exactly like uninterrupted runs."""

from __future__ import annotations

import random
import shutil

import pytest

from tests.common.training.test_callbacks import read_events
from tests.survive.runs import EVENTS, KILLED, Kill, assert_same_checkpoints, folder, train
from tests.vqa.world import World

pytestmark = pytest.mark.integration


def tensorboard_points(world: World, copies) -> dict[str, dict[int, float]]:
    """Returns the points that TensorBoard shows: a later file hides those of earlier files from its first step on."""
    points: dict[str, dict[int, float]] = {}
    for path in sorted((folder(world) / "tensorboard_logs").iterdir()):
        copy = copies / path.name
        copy.mkdir(parents=True)
        shutil.copy(path, copy)
        for tag, values in read_events(copy).items():
            points.setdefault(tag, {}).update(values)
    return points


def killed_run(world: World, kills, ranks=1) -> World:
    """Trains until each of `kills` in turn, then to the end."""
    for kill in kills:
        statuses, _ = train(world, kill=kill, ranks=ranks)
        assert statuses[kill.rank] == KILLED, "the event occurs"
        assert 0 not in statuses
    assert train(world, ranks=ranks)[0] == [0] * ranks
    assert not list(folder(world).glob(".*")), "no temporary files"
    return world


def random_kills(counts, number, ranks=1):
    """Returns reproducible random kills over all kinds of events. Only rank 0 writes files."""
    rng = random.Random(5)
    return [
        Kill(event, rng.randint(1, counts[event]), rng.randrange(ranks if event == "batch" else 1))
        for event in (EVENTS[i % len(EVENTS)] for i in range(number))
    ]


# The first batch of an accumulation group; inside a checkpoint, twice; the validation of the second epoch.
@pytest.mark.parametrize(
    "kills", [[Kill("batch", 9)], [Kill("write", 2), Kill("renamed", 2)], [Kill("validation", 2)]]
)
def test_killed_run_ends_bit_equal(world, complete_run, tmp_path, kills):
    expected, _ = complete_run(1)
    killed_run(world, kills)
    assert_same_checkpoints(world, expected)
    points = tensorboard_points(world, tmp_path / "killed")
    assert points == tensorboard_points(expected, tmp_path / "expected")


@pytest.mark.slow
def test_twenty_killed_runs_end_bit_equal(new_world, complete_run):
    expected, counts = complete_run(1)
    for kill in random_kills(counts, 20):
        assert_same_checkpoints(killed_run(new_world(), [kill]), expected)


@pytest.mark.dist
@pytest.mark.parametrize("number", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_rank_ends_the_run_which_then_resumes(new_world, complete_run, number):
    expected, counts = complete_run(2)
    for kill in random_kills(counts, number, ranks=2):
        assert_same_checkpoints(killed_run(new_world(), [kill], ranks=2), expected, tolerance=1e-6)
