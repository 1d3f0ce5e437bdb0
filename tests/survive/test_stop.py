"""Signals, damaged files, full disks and bad numbers: how a run ends, and what it leaves."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time

import pytest
import torch

from common.models.pretrained import read_weights
from tests.survive.runs import Kill, folder, printed, train
from tests.survive.test_kill import KILLED, assert_same_end


def place(world, name="toy-latest.model"):
    state = read_weights(folder(world) / name)
    return state["epoch"], state["batch"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_saves_at_the_end_of_the_update(world, number, status):
    # Without CHECKPOINT_STEPS as well; the third batch is the first of a group of two.
    assert train(world, "CHECKPOINT_STEPS=0", kill=Kill("batch", 3, number=number))[0] == [status]
    assert place(world) == (0, 4)
    assert f"stopped by {number.name}" in printed(world)


def test_a_stopped_run_ends_like_any_other(new_world, whole_run):
    whole, _ = whole_run(1)
    world = new_world("stopped")
    for kill in (Kill("batch", 2), Kill("validation", 1), Kill("batch", 3)):
        assert train(world, kill=kill._replace(number=signal.SIGTERM))[0] == [75]
    assert train(world)[0] == [0]
    assert_same_end(world, whole)


def test_a_resumed_epoch_is_gone_on_with(new_world, whole_run):
    whole, _ = whole_run(1)
    world = new_world("resumed")
    assert train(world)[0] == [0]
    again = ("TRAIN.RESUME=true", "TRAIN.BEGIN_EPOCH=1")
    for batch in (3, 5):
        assert train(world, *again, kill=Kill("batch", batch, number=signal.SIGTERM))[0] == [75]
    assert place(world) == (1, 10)
    assert train(world, *again)[0] == [0]
    assert_same_end(world, whole)


def test_a_run_that_never_goes_on_is_not_to_be_queued_again(world):
    kill = Kill("batch", 3, number=signal.SIGTERM)
    assert train(world, "TRAIN.AUTO_RESUME=false", kill=kill)[0] == [143]
    assert "toy-latest.model; started again with TRAIN.AUTO_RESUME=true, the run goes on" in printed(world)


def test_a_signal_in_the_validation_does_not_wait_for_its_end(world):
    kill = Kill("validation", 1, number=signal.SIGTERM)
    statuses, counts = train(world, "VAL.BATCH_IMAGES=1", kill=kill)
    assert (statuses, counts["validation"]) == ([75], 1)
    assert place(world) == (0, 12)


@pytest.mark.dist
def test_a_signal_to_one_rank_stops_all_of_them_at_one_place(new_world, whole_run):
    whole, _ = whole_run(2)
    world = new_world("stopped")
    assert train(world, kill=Kill("batch", 2, 1, signal.SIGTERM), ranks=2)[0] == [75, 75]
    # Rank 0 learns of it one update late.
    assert place(world) == (0, 4)
    assert train(world, kill=Kill("validation", 1, 1, signal.SIGTERM), ranks=2)[0] == [75, 75]
    assert train(world, ranks=2)[0] == [0, 0]
    assert_same_end(world, whole, 1e-6)


def test_workers_outlive_a_signal_to_the_whole_group(world):
    kill = Kill("batch", 3, number=-signal.SIGTERM)
    assert train(world, "NUM_WORKERS_PER_GPU=1", kill=kill)[0] == [75]
    assert place(world) == (0, 4)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("event", "ranks", "data"),
    [
        ("batch", 1, "training"),
        pytest.param("validation", 1, "validation", marks=pytest.mark.slow),
        pytest.param("batch", 2, "training", marks=pytest.mark.slow),
    ],
)
def test_a_killed_worker_ends_the_run_with_its_name(world, event, ranks, data):
    kill = Kill(event, 2, worker=True)
    settings = ("NUM_WORKERS_PER_GPU=1", "VAL.BATCH_IMAGES=1")
    started = time.monotonic()
    assert train(world, *settings, kill=kill, ranks=ranks)[0][0] == 1
    assert time.monotonic() - started < 25
    errors = [line for line in printed(world).splitlines() if line.startswith(("error:", "Traceback"))]
    assert len(errors) == 1
    assert re.match(
        rf"error: a process that reads the {data} data \(pid \d+\) ended with SIGKILL;", errors[0]
    )


@pytest.mark.dist
@pytest.mark.parametrize(
    ("frozen", "says"),
    [
        (1, "no progress for more than 2 s (STALL_SECONDS): rank 1 stalled after the metrics of a batch"),
        (0, "no progress for more than 2 s (STALL_SECONDS): the process that keeps the store"),
    ],
)
def test_a_frozen_rank_ends_the_others(world, frozen, says):
    kill = Kill("batch", 5, frozen, signal.SIGSTOP)
    statuses, _ = train(world, "STALL_SECONDS=2", kill=kill, ranks=2)
    assert statuses[1 - frozen] == 1
    assert says in printed(world, 1 - frozen)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not a checkpoint"),
    ],
)
def test_a_damaged_state_is_passed_over(new_world, whole_run, spoil):
    whole, _ = whole_run(1)
    world = new_world("damaged")
    assert train(world, kill=Kill("batch", 11))[0] == [KILLED]
    assert (place(world), place(world, "toy-previous.model")) == ((0, 8), (0, 4))
    spoil(folder(world) / "toy-latest.model")
    # Killed again before anything is written, it must not lose the file that it goes on from.
    assert train(world, kill=Kill("write", 1))[0] == [KILLED]
    assert train(world)[0] == [0]
    assert "toy-latest.model: " in printed(world)
    assert "toy-previous.model" in printed(world)
    assert_same_end(world, whole)


def test_a_state_of_another_model_is_an_error(world):
    assert train(world, kill=Kill("batch", 6))[0] == [KILLED]
    assert train(world, "NETWORK.VLBERT.intermediate_size=8")[0] == [1]
    assert "toy-latest.model: " in printed(world)
    assert "shapes differ from the configured model" in printed(world)
    assert place(world) == (0, 4)


def test_a_foreign_file_in_place_of_the_state_is_an_error(world):
    assert train(world, kill=Kill("batch", 6))[0] == [KILLED]
    torch.save({"word_embeddings.weight": torch.zeros(2, 2)}, folder(world) / "toy-latest.model")
    assert train(world)[0] == [1]
    assert "toy-latest.model: not the state of a training run: it has no position; remove it" in printed(
        world
    )
    (folder(world) / "toy-latest.model").unlink()
    assert train(world)[0] == [0]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_good_state(new_world, whole_run, small_disk):
    whole, _ = whole_run(1)
    world = new_world("full")
    size = (folder(whole) / "toy-latest.model").stat().st_size
    world.out = small_disk / "out"
    folder(world).mkdir(parents=True)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(16 * 2**20 - int(2.5 * size)))
    assert train(world)[0] == [1]
    assert "cannot write the checkpoint: " in printed(world)
    assert "No space left" in printed(world)
    assert not list(folder(world).glob(".*"))
    place(world)
    filler.unlink()
    assert train(world)[0] == [0]
    assert_same_end(world, whole)


def test_a_read_only_folder_is_said_before_anything_is_read(world, small_disk):
    world.out = small_disk / "out"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert train(world)[0] == [2]
    errors = [line for line in printed(world).splitlines() if "error" in line or "Traceback" in line]
    assert errors == [
        f"error: OUTPUT_PATH: {folder(world)}: not writable: Read-only file system; choose another or use "
        "--model-dir"
    ]


@pytest.mark.dist
def test_a_dry_run_changes_nothing(new_world):
    worlds = []
    for when in ("never", "always"):
        worlds.append(new_world(when))
        settings = (f"TRAIN.DRY_RUN={when}", "TRAIN.MAX_TOKENS=50")
        assert train(worlds[-1], *settings, ranks=2)[0] == [0, 0]
    assert "dry run: a batch of" in printed(worlds[1])
    assert_same_end(worlds[1], worlds[0])
