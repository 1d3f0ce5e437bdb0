"""Runs that are killed anywhere and started again end as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal

import pytest
import torch

from common.models.pretrained import read_weights
from tests.common.training.test_callbacks import read_events
from tests.survive.runs import EVENTS, Kill, folder, train
from tests.vqa.world import World

FILES = ("toy-0000.model", "toy-0001.model", "toy-best.model", "toy-latest.model")
KILLED = -signal.SIGKILL


def content(world, name):
    state = read_weights(folder(world) / name)
    del state["config"]  # names folders
    del state["resumed"]  # how it was asked for
    return state


def points(world: World, copies) -> dict[str, dict[int, float]]:
    """What tensorboard shows: later files hide what earlier ones have from their first step on."""
    shown: dict[str, dict[int, float]] = {}
    for path in sorted((folder(world) / "tensorboard_logs").iterdir()):
        place = copies / path.name
        place.mkdir(parents=True)
        shutil.copy(path, place)
        for tag, values in read_events(place).items():
            shown.setdefault(tag, {}).update(values)
    return shown


def resumed(new_world, kills, ranks=1):
    """A run that is killed by each of these in turn and then ends."""
    world = new_world("-".join(f"{kill.event}{kill.count}" for kill in kills) + f"-{ranks}")
    for kill in kills:
        statuses, _ = train(world, kill=kill, ranks=ranks)
        assert statuses[kill.rank] == KILLED, "it came to that place"
        assert 0 not in statuses
    assert train(world, ranks=ranks)[0] == [0] * ranks
    assert not list(folder(world).glob(".*")), "nothing to clean up"
    return world


def assert_equal(actual, expected, tolerance=0.0, where=""):
    """Compares nested states: tensors and floats within the tolerance, everything else exactly."""
    if isinstance(expected, dict | list | tuple):
        assert len(actual) == len(expected), where
        keys = expected if isinstance(expected, dict) else range(len(expected))
        for key in keys:
            assert_equal(actual[key], expected[key], tolerance, f"{where}/{key}")
    elif isinstance(expected, torch.Tensor | float):
        torch.testing.assert_close(
            actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{where}: {text}"
        )
    else:
        assert actual == expected, where


def assert_same_end(world, whole, tolerance=0.0):
    for name in FILES:
        assert_equal(content(world, name), content(whole, name), tolerance, name)


def random_kills(counts, number, ranks=1):
    """Moments over all kinds of events, always the same ones; rank 0 writes the files."""
    rng = random.Random(5)
    return [
        Kill(event, rng.randint(1, counts[event]), rng.randrange(ranks if event == "batch" else 1))
        for event in (EVENTS[i % len(EVENTS)] for i in range(number))
    ]


# The first batch of an accumulation group, inside a checkpoint, and in the validation of the second epoch.
@pytest.mark.parametrize(
    "kills", [[Kill("batch", 9)], [Kill("write", 2), Kill("renamed", 2)], [Kill("validation", 2)]]
)
def test_a_killed_run_ends_bit_equal(new_world, whole_run, tmp_path, kills):
    whole, _ = whole_run(1)
    world = resumed(new_world, kills)
    assert_same_end(world, whole)
    assert points(world, tmp_path / "killed") == points(whole, tmp_path / "whole")


@pytest.mark.slow
def test_twenty_killed_runs_end_bit_equal(new_world, whole_run):
    whole, counts = whole_run(1)
    for kill in random_kills(counts, 20):
        assert_same_end(resumed(new_world, [kill]), whole)


def same_on_two(new_world, whole_run, number):
    whole, counts = whole_run(2)
    for kill in random_kills(counts, number, 2):
        assert_same_end(resumed(new_world, [kill], 2), whole, 1e-6)


@pytest.mark.dist
def test_a_killed_rank_ends_the_run_which_then_goes_on(new_world, whole_run):
    same_on_two(new_world, whole_run, 2)


@pytest.mark.slow
@pytest.mark.dist
def test_ten_killed_ranks(new_world, whole_run):
    same_on_two(new_world, whole_run, 10)
