"""The SLURM scripts on a real SLURM of two nodes."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.scripts.cluster import Cluster, why_not
from tests.scripts.launching import Launch

pytestmark = [pytest.mark.slow, pytest.mark.dist]


@pytest.fixture(scope="module")
def cluster():
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with Cluster(folder) as started:
            yield started
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def launch(cluster, tmp_path):
    result = Launch(tmp_path)
    # Both nodes are this machine, and have no names that resolve.
    result.environ |= {"SLURM_CONF": cluster.environ["SLURM_CONF"], "MASTER_ADDR": "127.0.0.1"}
    result.environ |= {"GPUS_PER_NODE": "2", "CPUS_PER_TASK": "1", "SRUN_ARGS": "--time=10"}
    return result


def lines(output):
    return sorted(line.split() for line in output.splitlines() if line.startswith("up "))


def started(launch, *arguments, **environ):
    """A running job, once both of its processes are up: the script that follows it, and its number."""
    process = launch.start("dist_run_slurm.sh", "part", "toy", *launch.arguments, *arguments, **environ)
    message = process.stderr.readline()
    Cluster.wait(lambda: len(list(launch.out.glob("up-*"))) == 2)
    number = re.search(r"job (\d+), output in \S+/out/slurm/toy-\1\.out", message)[1]
    return process, number


def test_three_processes_on_two_nodes_meet(launch):
    arguments = ("part", "toy", *launch.arguments, 3)
    status, output, errors = launch.run("dist_run_slurm.sh", *arguments, PY_ARGS="--do meet")
    assert status == 0, errors
    found = lines(output)
    assert [line[1:4] for line in found] == [[rank, "3", "012"] for rank in "012"]
    assert len({line[5] for line in found}) == 1  # one port


def test_a_job_without_gpus_in_one_process(launch):
    arguments = ("part", "toy", *launch.arguments, 1)
    status, output, _ = launch.run("nondist_run_slurm.sh", *arguments, SRUN_ARGS="--gres=none")
    assert status == 0
    assert [line[1:3] + line[-2:] for line in lines(output)] == [["-", "-", "False", "out"]]


def test_a_mistake_ends_the_job_with_its_status(cluster, launch):
    arguments = ("part", "toy", *launch.arguments, 2)
    status, output, errors = launch.run("dist_run_slurm.sh", *arguments, PY_ARGS="--do mistake")
    assert status == 2
    assert output.count("error: this is wrong") == 1
    assert "queued again" not in output
    number = re.search(r"job (\d+)", errors)[1]
    assert cluster.job(number)["JobState"] == "FAILED"


def test_what_sbatch_refuses_is_shown(launch):
    status, _, errors = launch.run("dist_run_slurm.sh", "nowhere", "toy", *launch.arguments)
    assert (status, "invalid partition specified: nowhere" in errors) == (1, True)


def test_a_run_that_its_time_ends_is_queued_again_and_followed_to_its_end(cluster, launch):
    # A limit of two minutes: the signal comes at once.
    process, number = started(launch, 2, PY_ARGS="--do wait", GPUS_PER_NODE="1", SRUN_ARGS="--time=2")
    Cluster.wait(lambda: len(list(launch.out.glob("SIGUSR1-*"))) == 2, 90)
    Cluster.wait(lambda: cluster.job(number)["Restarts"] == "1")
    cluster.say("scontrol", "update", f"JobId={number}", "StartTime=now")  # SLURM waits for two minutes
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0
    assert f"job {number}: saved; requeued" in output
    assert [line[1:3] for line in lines(output)] == [["0", "2"], ["0", "2"], ["1", "2"], ["1", "2"]]
    assert sorted(line[6] for line in lines(output)) == ["-", "-", "1", "1"]  # restarts


def test_a_cancelled_run_is_told_and_not_queued_again(cluster, launch):
    process, number = started(launch, 2, PY_ARGS="--do wait")
    cluster.say("scancel", number)
    output, _ = process.communicate(timeout=100)
    assert len(list(launch.out.glob("SIGTERM-*"))) == 2
    assert process.returncode != 0
    assert "queued again" not in output
    assert cluster.job(number)["JobState"] == "CANCELLED"


def test_init_on_a_node(launch):
    status, output, errors = launch.run("init_slurm.sh", "part", "toy")
    assert status == 0, errors
    assert output.startswith("python ")
