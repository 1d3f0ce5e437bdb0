"""The launching scripts on a stand-in for training: arguments, ports, signals, first error and exit status."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.distributed.launcher import first_to_report, interface_to
from tests.common.distributed.processes import free_port
from tests.scripts.launching import Launch
from tests.world import ROOT


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "dist_run_single.sh",
            "two P C .",
            "NUM_PROCESSES is 'two'; it must be an integer, at least 1",
        ),
        ("dist_run_single.sh", "0 P C .", "NUM_PROCESSES is '0'"),
        ("dist_run_single.sh", "2 lost.py C .", "no such file: lost.py (paths are relative to "),
        ("dist_run_multi.sh", "2 2 host 1 P C .", "NODE_RANK is '2'; it must be an integer, between 0 and 1"),
        ("dist_run_multi.sh", "2 0 host -1 P C .", "PROCESSES_PER_NODE is '-1'"),
        ("dist_run_multi.sh", "2 0 host 1 P lost.yaml .", "no such file: lost.yaml"),
        ("nondist_run.sh", "P lost.yaml .", "no such file: lost.yaml"),
        ("dist_run_slurm.sh", "part job P C", "usage: "),
        ("dist_run_slurm.sh", "part job P C . many", "GPUS is 'many'"),
        ("nondist_run_slurm.sh", "part job lost.py C .", "no such file: lost.py"),
        ("init_slurm.sh", "part", "usage: "),
        ("job_slurm.sh", "", "usage: sbatch "),
    ],
)
def test_wrong_arguments_are_named(launch, script, arguments, message):
    places = {"P": launch.program, "C": launch.cfg}
    status, _, errors = launch.run(script, *(places.get(word, word) for word in arguments.split()))
    assert status == 2
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_the_first_to_fail_reports(tmp_path):
    places = [tmp_path / rank / "error.json" for rank in "01"]
    for place in places:
        place.parent.mkdir()
    environs = [{"TORCHELASTIC_ERROR_FILE": str(place)} for place in places]
    assert [first_to_report(environs[rank]) for rank in (1, 0, 1)] == [True, False, False]
    assert first_to_report({})
    assert first_to_report({"TORCHELASTIC_ERROR_FILE": "/proc/nowhere/0/error.json"})


def test_the_interface_to_a_machine():
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.machine.invalid") is None


@pytest.mark.dist
def test_two_runs_at_once_find_ports(launch):
    with socket.socket() as taken:  # the port that torchrun and the reference start with
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("", 29500))
        taken.listen()
        first, second = (
            launch.start("dist_run_single.sh", 2, *launch.arguments, "--do", "meet") for _ in "ab"
        )
        outputs = [process.communicate(timeout=120) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    ports = set()
    for output, _ in outputs:
        lines = sorted(output.splitlines())
        assert [line.split()[:5] for line in lines] == [["up", rank, "2", "01", "127.0.0.1"] for rank in "01"]
        assert all(line.endswith(" True out") for line in lines)
        ports |= {line.split()[5] for line in lines}
    assert len(ports) == 2
    assert launch.leftovers() == []


@pytest.mark.dist
def test_a_given_port_is_used_or_named(launch):
    port = str(free_port())
    status, output, _ = launch.run("dist_run_single.sh", 1, *launch.arguments, MASTER_PORT=port)
    assert (status, output.split()[5]) == (0, port)
    with socket.socket() as taken:
        taken.bind(("", int(port)))
        taken.listen()
        status, _, errors = launch.run("dist_run_single.sh", 1, *launch.arguments, MASTER_PORT=port)
    assert status == 1
    assert errors.startswith(f"error: 127.0.0.1:{port} is in use; set MASTER_PORT to a free port")
    assert len(errors.splitlines()) == 1
    status, _, errors = launch.run("dist_run_single.sh", 1, *launch.arguments, MASTER_PORT="http")
    assert (status, "MASTER_PORT is 'http'" in errors) == (2, True)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("what", "status", "message"),
    [
        ("mistake", 2, "error: this is wrong\n"),
        ("killed", 137, "error: rank 1 was ended by SIGKILL; the machine may have run out of memory\n"),
    ],
)
def test_a_failure_is_said_once_and_ends_all(launch, what, status, message):
    assert launch.run("dist_run_single.sh", 2, *launch.arguments, "--do", what)[::2] == (status, message)
    assert launch.leftovers() == []
    # Nobody waits for the one that is gone.
    assert (launch.out / "SIGTERM-0").exists() == (what == "killed")


@pytest.mark.dist
@pytest.mark.parametrize(
    ("sent", "received"), [("SIGUSR1", "SIGUSR1"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGTERM")]
)
def test_processes_decide_how_a_signal_ends_them(launch, sent, received):
    terminal = ("env", "--default-signal=HUP")  # these tests may run under nohup
    process = launch.start("dist_run_single.sh", 2, *launch.arguments, "--do", "wait", prefix=terminal)
    wait_for(lambda: len(list(launch.out.glob("up-*"))) == 2)
    process.send_signal(signal.Signals[sent])
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, "")
    assert {path.name for path in launch.out.glob("SIG*")} == {f"{received}-0", f"{received}-1"}
    assert launch.leftovers() == []


@pytest.mark.dist
def test_what_a_signal_has_stopped_is_not_started_again(launch):
    torchrun = [
        "-m",
        "common.distributed.launcher",
        "--standalone",
        "--local_addr=127.0.0.1",
        "--max-restarts=2",
    ]
    command = [sys.executable, *torchrun, "--nproc_per_node=2", launch.program, "--do", "wait"]
    flags = ["--model-dir", str(launch.out)]
    process = subprocess.Popen([*map(str, command), *flags], env=launch.environ, cwd=ROOT)
    wait_for(lambda: len(list(launch.out.glob("up-*"))) == 2)
    for path in launch.out.glob("up-*"):
        path.unlink()
    process.terminate()
    assert process.wait(60) == 75
    assert not list(launch.out.glob("up-*"))


@pytest.mark.dist
def test_a_launcher_can_be_stopped_before_it_has_imported_anything(launch):
    process = launch.start("dist_run_single.sh", 2, *launch.arguments)
    proc = Path("/proc", str(process.pid))
    wait_for(lambda: "common.distributed.launcher" in (proc / "cmdline").read_text(), 0.01)
    wait_for(lambda: caught(proc) >> (signal.SIGTERM - 1) & 1, 0.001)
    process.terminate()
    assert "libtorch" not in (proc / "maps").read_text()
    process.communicate(timeout=60)
    assert (process.returncode, launch.leftovers()) == (75, [])


def caught(proc):
    """The mask of the signals that a process takes."""
    (line,) = (line for line in (proc / "status").read_text().splitlines() if line.startswith("SigCgt"))
    return int(line.split()[1], 16)


@pytest.mark.dist
def test_a_machine_that_waits_for_others_can_be_stopped(launch):
    process = launch.start("dist_run_multi.sh", 2, 0, "127.0.0.1", 1, *launch.arguments)
    line = process.stderr.readline()
    assert line.startswith("dist_run_multi.sh: node 0 of 2, rendezvous at 127.0.0.1:2")
    port = int(line.rpartition(":")[2])
    wait_for(lambda: answers(port))
    process.terminate()
    process.communicate(timeout=60)
    assert (process.returncode, launch.leftovers()) == (75, [])


def wait_for(condition, pause=0.1):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
