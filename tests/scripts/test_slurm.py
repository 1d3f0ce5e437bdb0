"""The SLURM scripts on a real SLURM of two nodes."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.scripts.cluster import Cluster, reason_to_skip
from tests.scripts.launching import Launch, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.dist]


@pytest.fixture(scope="module")
def cluster():
    if reason := reason_to_skip():
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
    # Both nodes are this machine. Their names do not resolve.
    result.environ |= {"SLURM_CONF": cluster.environ["SLURM_CONF"], "MASTER_ADDR": "127.0.0.1"}
    result.environ |= {"GPUS_PER_NODE": "2", "CPUS_PER_TASK": "1", "SRUN_ARGS": "--time=10"}
    return result


def run(launch, script, processes, **environ):
    """Runs a script to the end and returns status, the fields of the stub's lines, stdout and stderr."""
    arguments = ("part", "toy", *launch.arguments, processes)
    status, output, errors = launch.run(script, *arguments, **environ)
    return status, fields(output), output, errors


def fields(output):
    return sorted(line.split() for line in output.splitlines() if line.startswith("up "))


def start_job(launch, **environ):
    """Starts a job of two processes; returns the script that follows it and the job id, once both processes run."""
    arguments = ("part", "toy", *launch.arguments, 2)
    process = launch.start("dist_run_slurm.sh", *arguments, PY_ARGS="--do wait", **environ)
    message = process.stderr.readline()
    launch.wait_until_up()
    return process, re.search(r"job (\d+), output in \S+/out/slurm/toy-\1\.out", message)[1]


def test_processes_on_two_nodes_connect(launch):
    status, lines, _, errors = run(launch, "dist_run_slurm.sh", 3, PY_ARGS="--do meet")
    assert status == 0, errors
    assert [line[1:4] for line in lines] == [[rank, "3", "012"] for rank in "012"]
    assert len({line[5] for line in lines}) == 1  # one port


def test_nondist_job_runs_one_process_without_gpus(launch):
    status, lines, _, _ = run(launch, "nondist_run_slurm.sh", 1, SRUN_ARGS="--gres=none")
    assert status == 0
    assert [line[1:3] + line[-2:] for line in lines] == [["-", "-", "False", "out"]]


def test_failed_job_keeps_its_status(cluster, launch):
    status, _, output, errors = run(launch, "dist_run_slurm.sh", 2, PY_ARGS="--do fail")
    assert status == 2
    assert output.count("error: this is wrong") == 1
    assert "requeued" not in output
    job_id = re.search(r"job (\d+)", errors)[1]
    assert cluster.job(job_id)["JobState"] == "FAILED"


def test_sbatch_errors_are_shown(launch):
    status, _, errors = launch.run("dist_run_slurm.sh", "nowhere", "toy", *launch.arguments)
    assert (status, "invalid partition specified: nowhere" in errors) == (1, True)


def test_job_at_its_time_limit_is_requeued_and_followed_to_its_end(cluster, launch):
    # The signal comes two minutes before the limit, which is at once.
    process, job_id = start_job(launch, GPUS_PER_NODE="1", SRUN_ARGS="--time=2")
    wait_for(lambda: launch.received_signals() == {"SIGUSR1-0", "SIGUSR1-1"}, 90)
    wait_for(lambda: cluster.job(job_id)["Restarts"] == "1")
    cluster.output("scontrol", "update", f"JobId={job_id}", "StartTime=now")  # instead of two minutes later
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0
    assert f"job {job_id}: saved; requeued" in output
    assert [line[1:3] for line in fields(output)] == [["0", "2"], ["0", "2"], ["1", "2"], ["1", "2"]]
    assert sorted(line[6] for line in fields(output)) == ["-", "-", "1", "1"]  # restarts


def test_cancelled_job_receives_a_signal_and_is_not_requeued(cluster, launch):
    process, job_id = start_job(launch)
    cluster.output("scancel", job_id)
    output, _ = process.communicate(timeout=100)
    assert launch.received_signals() == {"SIGTERM-0", "SIGTERM-1"}
    assert process.returncode != 0
    assert "requeued" not in output
    assert cluster.job(job_id)["JobState"] == "CANCELLED"


def test_init_runs_on_a_node(launch):
    status, output, errors = launch.run("init_slurm.sh", "part", "toy")
    assert status == 0, errors
    assert output.startswith("python ")
