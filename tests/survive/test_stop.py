"""How a run ends on signals, damaged files and full disks, and what it leaves."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time

import pytest
import torch

from tests.survive.runs import KILLED, Kill, assert_same_checkpoints, folder, position, printed, train

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("number", "status", "settings"),
    [
        (signal.SIGTERM, 75, ["CHECKPOINT_STEPS=0"]),
        (signal.SIGUSR1, 75, []),
        (signal.SIGINT, 130, []),
        # A run that would start from the beginning must not be requeued.
        (signal.SIGTERM, 143, ["TRAIN.AUTO_RESUME=false"]),
        # The process group includes the data workers, which must survive to the end of the step.
        (-signal.SIGTERM, 75, ["NUM_WORKERS_PER_GPU=1"]),
    ],
)
def test_signal_saves_at_the_end_of_the_step(world, number, status, settings):
    # The third batch is the first of an accumulation group of two.
    assert train(world, *settings, kill=Kill("batch", 3, number=number))[0] == [status]
    assert position(world) == (0, 4)
    assert f"stopped by {signal.Signals(abs(number)).name}" in printed(world)
    assert ("with TRAIN.AUTO_RESUME=true" in printed(world)) == ("TRAIN.AUTO_RESUME=false" in settings)


def test_stopped_run_ends_like_an_uninterrupted_run(world, complete_run):
    for kill in (Kill("batch", 2), Kill("validation", 1), Kill("batch", 3)):
        assert train(world, kill=kill._replace(number=signal.SIGTERM))[0] == [75]
    assert train(world)[0] == [0]
    assert_same_checkpoints(world, complete_run(1)[0])


def test_stopped_run_with_resume_continues_its_epoch(world, complete_run):
    assert train(world)[0] == [0]
    settings = ("TRAIN.RESUME=true", "TRAIN.BEGIN_EPOCH=1")
    for batch in (3, 5):
        assert train(world, *settings, kill=Kill("batch", batch, number=signal.SIGTERM))[0] == [75]
    assert position(world) == (1, 10)
    assert train(world, *settings)[0] == [0]
    assert_same_checkpoints(world, complete_run(1)[0])


def test_signal_interrupts_the_validation(world):
    kill = Kill("validation", 1, number=signal.SIGTERM)
    statuses, counts = train(world, "VAL.BATCH_IMAGES=1", kill=kill)
    assert (statuses, counts["validation"]) == ([75], 1)
    assert position(world) == (0, 12)


@pytest.mark.dist
def test_signal_to_one_rank_stops_all_ranks_in_the_same_step(world, complete_run):
    assert train(world, kill=Kill("batch", 2, 1, signal.SIGTERM), ranks=2)[0] == [75, 75]
    assert position(world) == (0, 4)  # rank 0 learns of the signal one step late
    assert train(world, kill=Kill("validation", 1, 1, signal.SIGTERM), ranks=2)[0] == [75, 75]
    assert train(world, ranks=2)[0] == [0, 0]
    assert_same_checkpoints(world, complete_run(2)[0], tolerance=1e-6)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("event", "ranks", "data"),
    [
        ("batch", 1, "training"),
        pytest.param("validation", 1, "validation", marks=pytest.mark.slow),
        pytest.param("batch", 2, "training", marks=pytest.mark.slow),
    ],
)
def test_killed_data_worker_is_reported(world, event, ranks, data):
    settings = ("NUM_WORKERS_PER_GPU=1", "VAL.BATCH_IMAGES=1")
    started = time.monotonic()
    assert train(world, *settings, kill=Kill(event, 2, worker=True), ranks=ranks)[0][0] == 1
    assert time.monotonic() - started < 25
    errors = [line for line in printed(world).splitlines() if line.startswith(("error:", "Traceback"))]
    assert len(errors) == 1
    assert re.match(rf"error: .* {data} data \(pid \d+\) ended with SIGKILL;", errors[0])


@pytest.mark.dist
@pytest.mark.parametrize(
    ("frozen", "stalled"),
    [(1, "rank 1 stalled after updating the metrics"), (0, "the process that keeps the store")],
)
def test_frozen_rank_ends_the_others(world, frozen, stalled):
    kill = Kill("batch", 5, frozen, signal.SIGSTOP)
    statuses, _ = train(world, "STALL_SECONDS=2", kill=kill, ranks=2)
    assert statuses[1 - frozen] == 1
    assert f"no progress for more than 2 s (STALL_SECONDS): {stalled}" in printed(world, 1 - frozen)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_bit, lambda path: path.write_bytes(path.read_bytes()[:1000])])
def test_damaged_checkpoint_is_skipped(world, complete_run, damage):
    assert train(world, kill=Kill("batch", 11))[0] == [KILLED]
    assert (position(world), position(world, "toy-previous.model")) == ((0, 8), (0, 4))
    damage(folder(world) / "toy-latest.model")
    # If the run is killed before its first checkpoint, it must still have the file that it resumed from.
    assert train(world, kill=Kill("write", 1))[0] == [KILLED]
    assert train(world)[0] == [0]
    assert "toy-latest.model: " in printed(world)
    assert "toy-previous.model" in printed(world)
    assert_same_checkpoints(world, complete_run(1)[0])


def test_unsuitable_checkpoint_is_an_error(world):
    assert train(world, kill=Kill("batch", 6))[0] == [KILLED]
    assert train(world, "NETWORK.VLBERT.intermediate_size=8")[0] == [1]
    assert "toy-latest.model: shapes differ from the configured model" in printed(world)
    assert position(world) == (0, 4)
    torch.save({"word_embeddings.weight": torch.zeros(2, 2)}, folder(world) / "toy-latest.model")
    assert train(world)[0] == [1]
    assert "toy-latest.model: not the state of a training run: it has no position; remove it" in printed(
        world
    )


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


def test_full_disk_keeps_the_last_good_checkpoint(world, complete_run, small_disk):
    expected, _ = complete_run(1)
    size = (folder(expected) / "toy-latest.model").stat().st_size
    world.out = small_disk / "out"
    folder(world).mkdir(parents=True)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(16 * 2**20 - int(2.5 * size)))
    assert train(world)[0] == [1]
    assert "cannot write the checkpoint: " in printed(world)
    assert "No space left" in printed(world)
    assert not list(folder(world).glob(".*"))
    position(world)  # readable
    filler.unlink()
    assert train(world)[0] == [0]
    assert_same_checkpoints(world, expected)


def test_read_only_folder_is_reported_first(world, small_disk):
    world.out = small_disk / "out"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert train(world)[0] == [2]
    errors = [line for line in printed(world).splitlines() if "error" in line or "Traceback" in line]
    assert errors == [
        f"error: OUTPUT_PATH: {folder(world)}: not writable: Read-only file system; choose another or use "
        "--model-dir"
    ]


@pytest.mark.dist
def test_dry_run_changes_nothing(new_world):
    worlds = []
    for when in ("never", "always"):
        worlds.append(new_world())
        settings = (f"TRAIN.DRY_RUN={when}", "TRAIN.MAX_TOKENS=50")
        assert train(worlds[-1], *settings, ranks=2)[0] == [0, 0]
    assert "dry run: a batch of" in printed(worlds[1])
    assert_same_checkpoints(worlds[1], worlds[0])
