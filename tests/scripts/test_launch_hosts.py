"""Training on two machines: network namespaces with an address each, joined by a virtual cable."""

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
from tests.scripts.launching import Launch, wait_for
from tests.vqa.world import SMALL, World
from tests.world import ROOT, draw, run_command

pytestmark = pytest.mark.dist

SETTINGS = ["TRAIN.BATCH_IMAGES=2", "TRAIN.GRAD_ACCUMULATE_STEPS=2", "TRAIN.END_EPOCH=2"]


def ip(arguments):
    return subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def hosts():
    """Names of two network namespaces with the addresses 10.77.0.1 and 10.77.0.2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and `ip` (Debian package iproute2)")
    names = [f"host{number}-{os.getpid()}" for number in (1, 2)]
    created = []
    try:
        for name in names:
            try:
                ip(f"netns add {name}")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"this machine cannot create network namespaces: {error.stderr}")
            created.append(name)
        ip(f"link add cable netns {names[0]} type veth peer name cable netns {names[1]}")
        for number, name in enumerate(names, 1):
            ip(f"-n {name} address add 10.77.0.{number}/24 dev cable")
            for device in ("lo", "cable"):
                ip(f"-n {name} link set {device} up")
        yield names
    finally:
        for name in created:
            ip(f"netns delete {name}")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(draw(tmp_path_factory.mktemp("drawn") / "toy", SMALL), tmp_path_factory.mktemp("hosts"))


def weights(world, name):
    (path,) = (world.out / name).rglob("toy-0001.model")
    state = read_weights(path)["state_dict"]
    return {key.removeprefix("module."): value for key, value in state.items()}


def host_command(hosts, rank, world, out, settings):
    """Returns the command that starts `rank` on its host."""
    script = [ROOT / "scripts/dist_run_multi.sh", 2, rank, "10.77.0.1", 1, "vqa/train_end2end.py"]
    command = ["ip", "netns", "exec", hosts[rank], *script, world.cfg, out, *world.settings(settings)]
    return list(map(str, command))


def test_two_machines_match_plain_torchrun_on_one_machine(hosts, world):
    def run(rank):
        return run_command(*host_command(hosts, rank, world, world.out / "two", SETTINGS))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, (0, 1))
    assert ("Train-" in first, "Train-" in second) == (True, False)  # only rank 0 logs
    torchrun = ["python", "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "vqa.train_end2end"]
    run_command(*torchrun, "--cfg", world.cfg, "--model-dir", world.out / "one", *world.settings(SETTINGS))
    torch.testing.assert_close(weights(world, "two"), weights(world, "one"), rtol=0, atol=0)


# 45 s is the default.
@pytest.mark.parametrize("seconds", [10, pytest.param(45, marks=pytest.mark.slow)])
def test_a_lost_machine_ends_the_run(hosts, world, tmp_path, seconds):
    settings = [*SETTINGS[:2], "TRAIN.END_EPOCH=1000", "VAL_FREQUENT=1000", f"STALL_SECONDS={seconds}"]
    environ = Launch(tmp_path).environ
    runs = []
    for rank in (0, 1):
        command = host_command(hosts, rank, world, tmp_path / "out", settings)
        with (tmp_path / f"{rank}.out").open("w") as out, (tmp_path / f"{rank}.err").open("w") as errors:
            runs.append(subprocess.Popen(command, env=environ, stdout=out, stderr=errors))
    try:
        wait_for(
            lambda: "Epoch[2]" in (tmp_path / "0.out").read_text(),
            message=(tmp_path / "0.err").read_text,
        )
        ip(f"-n {hosts[1]} link set cable down")
        cut = time.monotonic()
        assert [run.wait(60) for run in runs] == [1, 1]
        assert seconds < time.monotonic() - cut < 60
    finally:
        for host, run in zip(hosts, runs, strict=True):
            for pid in ip(f"netns pids {host}").split():  # the ranks too, which would train on
                os.kill(int(pid), signal.SIGKILL)
            run.wait()
        ip(f"-n {hosts[1]} link set cable up")
    head = f"error: no progress for more than {seconds} s (STALL_SECONDS): "
    for rank, stalled in enumerate(("rank 1 stalled after", "the process that keeps the store")):
        lines = (tmp_path / f"{rank}.err").read_text().splitlines()
        # One line of the script, perhaps warnings of torch, and the error.
        assert [line for line in lines if "[c10d] The hostname" not in line][1:] == lines[-1:]
        assert lines[-1].startswith(head + stalled)
