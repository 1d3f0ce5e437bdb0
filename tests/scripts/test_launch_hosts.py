"""Two machines, each a network namespace with an address of its own, train as one machine does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from common.models.pretrained import read_weights
from tests.scripts.launching import Launch
from tests.vqa.world import SMALL, World
from tests.world import ROOT, draw, run_command

pytestmark = pytest.mark.dist


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def hosts():
    """Names of two namespaces joined by a cable; their addresses end in 1 and 2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and `ip` (Debian package iproute2)")
    names = [f"host{number}-{os.getpid()}" for number in (1, 2)]
    made = []
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"this machine makes no network namespaces: {error.stderr}")
            made.append(name)
        ip(
            "link",
            "add",
            "cable",
            "netns",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            names[1],
        )
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in made:
            ip("netns", "delete", name)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(draw(tmp_path_factory.mktemp("drawn") / "toy", SMALL), tmp_path_factory.mktemp("hosts"))


SETTINGS = ["TRAIN.BATCH_IMAGES=2", "TRAIN.GRAD_ACCUMULATE_STEPS=2", "TRAIN.END_EPOCH=2"]


def weights(world, name):
    (path,) = (world.out / name).rglob("toy-0001.model")
    state = read_weights(path)["state_dict"]
    return {key.removeprefix("module."): value for key, value in state.items()}


def on_one_machine(world):
    """Weights of two processes that plain torchrun starts, by module."""
    flags = ["--cfg", world.cfg, "--model-dir", world.out / "one", *world.settings(SETTINGS)]
    torchrun = ["python", "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "vqa.train_end2end"]
    run_command(*torchrun, *flags)
    return weights(world, "one")


def test_two_machines_train_like_one_with_two_processes(hosts, world):
    def run(rank):
        script = [ROOT / "scripts/dist_run_multi.sh", 2, rank, "10.77.0.1", 1, "vqa/train_end2end.py"]
        flags = [world.cfg, world.out / "two", *world.settings(SETTINGS)]
        return run_command("ip", "netns", "exec", hosts[rank], *script, *flags)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, (0, 1))
    assert ("Train-" in first, "Train-" in second) == (True, False)  # one of them says what happens
    torch.testing.assert_close(weights(world, "two"), on_one_machine(world), rtol=0, atol=0)


# The second is the default.
@pytest.mark.parametrize("seconds", [10, pytest.param(45, marks=pytest.mark.slow)])
def test_a_machine_that_vanishes_ends_the_others(hosts, world, tmp_path, seconds):
    settings = [*SETTINGS[:2], "TRAIN.END_EPOCH=1000", "VAL_FREQUENT=1000", f"STALL_SECONDS={seconds}"]
    environment = Launch(tmp_path).environ
    runs = []
    for rank, host in enumerate(hosts):
        script = [ROOT / "scripts/dist_run_multi.sh", 2, rank, "10.77.0.1", 1, "vqa/train_end2end.py"]
        command = [
            "ip",
            "netns",
            "exec",
            host,
            *script,
            world.cfg,
            tmp_path / "out",
            *world.settings(settings),
        ]
        with (tmp_path / f"{rank}.out").open("w") as out, (tmp_path / f"{rank}.err").open("w") as errors:
            runs.append(subprocess.Popen(list(map(str, command)), env=environment, stdout=out, stderr=errors))
    try:
        end = time.monotonic() + 60
        while "Epoch[2]" not in (tmp_path / "0.out").read_text():
            assert time.monotonic() < end, (tmp_path / "0.err").read_text()
            time.sleep(0.2)
        ip("-n", hosts[1], "link", "set", "cable", "down")
        cut = time.monotonic()
        assert [run.wait(60) for run in runs] == [1, 1]
        assert seconds < time.monotonic() - cut < 60
    finally:
        for host, run in zip(hosts, runs, strict=True):
            for pid in ip("netns", "pids", host).split():  # the ranks as well, which would train on
                os.kill(int(pid), signal.SIGKILL)
            run.wait()
        ip("-n", hosts[1], "link", "set", "cable", "up")
    head = f"error: no progress for more than {seconds} s (STALL_SECONDS): "
    for rank, says in enumerate(("rank 1 stalled after", "the process that keeps the store")):
        lines = (tmp_path / f"{rank}.err").read_text().splitlines()
        assert [line for line in lines if "[c10d] The hostname" not in line][1:] == lines[-1:]
        assert lines[-1].startswith(head + says)


def test_two_processes_train_like_one_with_the_double_batch(world, tmp_path):
    # Dropout, of which the feature extractor has some whatever the settings, differs between processes.
    program = tmp_path / "without_dropout.py"
    program.write_text(
        "import runpy, torch\n"
        "torch.nn.Dropout.forward = lambda self, values: values\n"
        "runpy.run_module('vqa.train_end2end', run_name='__main__')\n"
    )
    for name, script, batch in (("wide", ["dist_run_single.sh", 2], 2), ("narrow", ["nondist_run.sh"], 4)):
        settings = world.settings([f"TRAIN.BATCH_IMAGES={batch}", *SETTINGS[1:]])
        run_command(
            ROOT / "scripts" / script[0], *script[1:], program, world.cfg, world.out / name, *settings
        )
    wide, narrow = weights(world, "wide"), weights(world, "narrow")
    torch.testing.assert_close(wide, narrow, rtol=0, atol=1e-5)
