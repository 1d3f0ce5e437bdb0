"""Launch scripts: arguments, ports, signals, the first error and the exit status."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.distributed.launcher import first_to_report, interface_to
from tests.common.distributed.processes import free_port
from tests.scripts.launching import Launch, wait_for
from tests.world import ROOT


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("dist_run_single.sh two P C .", "NUM_PROCESSES is 'two'; it must be an integer, at least 1"),
        ("dist_run_single.sh 0 P C .", "NUM_PROCESSES is '0'"),
        ("dist_run_single.sh 2 lost.py C .", "no such file: lost.py (paths are relative to "),
        ("dist_run_multi.sh 2 2 host 1 P C .", "NODE_RANK is '2'; it must be an integer, between 0 and 1"),
        ("dist_run_multi.sh 2 0 host -1 P C .", "PROCESSES_PER_NODE is '-1'"),
        ("dist_run_multi.sh 2 0 host 1 P lost.yaml .", "no such file: lost.yaml"),
        ("nondist_run.sh P lost.yaml .", "no such file: lost.yaml"),
        ("dist_run_slurm.sh part job P C", "usage: "),
        ("dist_run_slurm.sh part job P C . many", "GPUS is 'many'"),
        ("nondist_run_slurm.sh part job lost.py C .", "no such file: lost.py"),
        ("init_slurm.sh part", "usage: "),
        ("job_slurm.sh", "usage: sbatch "),
        ("MASTER_PORT=http dist_run_single.sh 1 P C .", "MASTER_PORT is 'http'"),
    ],
)
def test_scripts_name_wrong_arguments(launch, command, message):
    files = {"P": launch.program, "C": launch.cfg}
    words = command.split()
    environ = dict([words.pop(0).split("=")]) if "=" in words[0] else {}
    status, _, errors = launch.run(*(files.get(word, word) for word in words), **environ)
    assert status == 2
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_first_to_report_is_true_once_per_attempt(tmp_path):
    paths = [tmp_path / rank / "error.json" for rank in "01"]
    for path in paths:
        path.parent.mkdir()
    environs = [{"TORCHELASTIC_ERROR_FILE": str(path)} for path in paths]
    assert [first_to_report(environs[rank]) for rank in (1, 0, 1)] == [True, False, False]
    assert first_to_report({})
    assert first_to_report({"TORCHELASTIC_ERROR_FILE": "/proc/nowhere/0/error.json"})


def test_interface_to_a_host():
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("no.such.machine.invalid") is None


@pytest.mark.dist
def test_simultaneous_runs_find_free_ports(launch):
    with socket.socket() as default_port:
        default_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        default_port.bind(("", 29500))
        default_port.listen()
        runs = [launch.start("dist_run_single.sh", 2, *launch.arguments, "--do", "meet") for _ in range(2)]
        outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    ports = set()
    for output, _ in outputs:
        lines = sorted(output.splitlines())
        assert [line.split()[:5] for line in lines] == [["up", rank, "2", "01", "127.0.0.1"] for rank in "01"]
        assert all(line.endswith(" True out") for line in lines)
        ports |= {line.split()[5] for line in lines}
    assert len(ports) == 2
    assert launch.leftovers() == []


@pytest.mark.dist
def test_master_port_is_used_or_reported(launch):
    port = str(free_port())
    status, output, _ = launch.run("dist_run_single.sh", 1, *launch.arguments, MASTER_PORT=port)
    assert (status, output.split()[5]) == (0, port)
    with socket.socket() as server:
        server.bind(("", int(port)))
        server.listen()
        status, _, errors = launch.run("dist_run_single.sh", 1, *launch.arguments, MASTER_PORT=port)
    assert status == 1
    assert errors.startswith(f"error: 127.0.0.1:{port} is in use; set MASTER_PORT to a free port")
    assert len(errors.splitlines()) == 1


@pytest.mark.dist
def test_killed_process_is_reported_and_ends_the_others(launch):
    status, _, errors = launch.run("dist_run_single.sh", 2, *launch.arguments, "--do", "die")
    assert status == 137
    assert errors == "error: rank 1 was ended by SIGKILL; the machine may have run out of memory\n"
    assert launch.received_signals() == {"SIGTERM-0"}
    assert launch.leftovers() == []


SECOND_FAILS_FIRST = """
import os, time
from pathlib import Path
from common.cli.run import run

def main():
    if os.environ["RANK"] == "0":
        while not (Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1] / "reported").exists():
            time.sleep(0.01)
        raise RuntimeError("connection closed by peer")
    raise ZeroDivisionError("the cause")

raise SystemExit(run(main))
"""


@pytest.mark.dist
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--do-tset"], 2, "error: unrecognized arguments: --do-tset; see train_end2end.py --help\n"),
        (
            ["--set", "NETWORK.BERT_MODEL_NAME=lost"],
            1,
            "error: lost: no such directory; NETWORK.BERT_MODEL_NAME",
        ),
    ],
)
def test_error_of_all_processes_is_reported_once(launch, arguments, status, message):
    command = (2, "vqa/train_end2end.py", ROOT / "cfgs/vqa/toy.yaml", launch.out, *arguments)
    code, _, errors = launch.run("dist_run_single.sh", *command)
    assert code == status
    assert errors.startswith(message)
    assert len(errors.splitlines()) == 1
    assert launch.leftovers() == []


@pytest.mark.dist
def test_only_the_first_traceback_is_shown(launch):
    launch.program.write_text(SECOND_FAILS_FIRST)
    code, _, errors = launch.run("dist_run_single.sh", 2, *launch.arguments)
    assert code == 1
    assert errors.startswith("Traceback (most recent call last):\n")
    assert errors.endswith("\nZeroDivisionError: the cause\n")
    assert "peer" not in errors


@pytest.mark.dist
@pytest.mark.parametrize(("sent", "received"), [("SIGUSR1", "SIGUSR1"), ("SIGHUP", "SIGTERM")])
def test_signals_are_forwarded_and_the_processes_decide(launch, sent, received):
    terminal = ("env", "--default-signal=HUP")  # the tests may run under nohup
    process = launch.start("dist_run_single.sh", 2, *launch.arguments, "--do", "wait", prefix=terminal)
    launch.wait_until_up()
    process.send_signal(signal.Signals[sent])
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, "")
    assert launch.received_signals() == {f"{received}-0", f"{received}-1"}
    assert launch.leftovers() == []


@pytest.mark.dist
def test_stopped_processes_are_not_restarted(launch):
    torchrun = ["--standalone", "--local_addr=127.0.0.1", "--max-restarts=2", "--nproc_per_node=2"]
    command = [sys.executable, "-m", "common.distributed.launcher", *torchrun, launch.program]
    flags = ["--do", "wait", "--model-dir", launch.out]
    process = subprocess.Popen([*map(str, command + flags)], env=launch.environ, cwd=ROOT)
    launch.wait_until_up()
    for path in launch.out.glob("up-*"):
        path.unlink()
    process.terminate()
    assert process.wait(60) == 75
    assert launch.received_signals() == {"SIGTERM-0", "SIGTERM-1"}
    assert not list(launch.out.glob("up-*"))


@pytest.mark.dist
def test_launcher_can_be_stopped_before_it_imports_torch(launch):
    process = launch.start("dist_run_single.sh", 2, *launch.arguments)
    proc = Path("/proc", str(process.pid))

    def handles_sigterm():
        (line,) = (line for line in (proc / "status").read_text().splitlines() if line.startswith("SigCgt"))
        return int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1

    wait_for(lambda: "common.distributed.launcher" in (proc / "cmdline").read_text(), interval=0.01)
    wait_for(handles_sigterm, interval=0.001)
    process.terminate()
    assert "libtorch" not in (proc / "maps").read_text()
    process.communicate(timeout=60)
    assert (process.returncode, launch.leftovers()) == (75, [])


@pytest.mark.dist
def test_launcher_can_be_stopped_while_it_waits_for_other_machines(launch):
    process = launch.start("dist_run_multi.sh", 2, 0, "127.0.0.1", 1, *launch.arguments)
    line = process.stderr.readline()
    assert line.startswith("dist_run_multi.sh: node 0 of 2, rendezvous at 127.0.0.1:2")
    port = int(line.rpartition(":")[2])

    def accepts_connections():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(accepts_connections)
    process.terminate()
    process.communicate(timeout=60)
    assert (process.returncode, launch.leftovers()) == (75, [])
