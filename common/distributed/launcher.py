"""`torchrun` as the scripts use it: `python -m common.distributed.launcher [torchrun options] SCRIPT [arguments]`.

It takes the options of torchrun and starts the same processes with the same environment, but

- exits with the status of the process that failed first, where torchrun always exits with 1 and prints a report;
- forwards signals to the processes and lets them decide when to end;
- leaves nothing in the folder for temporary files.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from common.errors import INTERRUPT_STATUS, REQUEUE_STATUS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# Signals and what the processes receive for them. A closed terminal (SIGHUP) is an ordinary end.
_FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
}

_SIOCGIFADDR = 0x8915  # ioctl that reads the address of a network interface


def first_to_report(environ: Mapping[str, str]) -> bool:
    """Claims the report of an error and returns whether no other process of this machine has claimed it before.

    A process calls this before it reports an error and before it leaves the process group. Errors that its end causes
    on other ranks therefore come second. Always true for processes that torchrun did not start.
    """
    error_file = environ.get("TORCHELASTIC_ERROR_FILE")
    if not error_file:
        return True
    # torchrun creates one folder per attempt, with a folder for each process in it.
    try:
        (Path(error_file).parents[1] / "reported").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True  # better to report twice than not at all
    return True


def interface_to(host: str) -> str | None:
    """Returns the network interface through which this machine reaches `host`; None if unknown.

    By default gloo takes the interface that the own host name resolves to, which is often the loopback.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # chooses a route, but sends nothing
        except OSError:
            return None
        address = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # no address
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None


def launch(argv: Sequence[str]) -> int:
    """Runs the processes that `argv` describes and returns the exit status.

    The status is that of the process that failed first. For a process that a signal killed it is 128 plus the number
    of the signal; but if the launcher had forwarded this signal, so that the process was killed before it could
    handle it, it is 75 (130 for SIGINT), as if the process had handled it.
    """
    received: list[int] = []
    log_dir = tempfile.TemporaryDirectory(prefix="launch-")
    _forward_signals(received, log_dir)  # before the imports, which take seconds
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _disable_restarts_after_signals(received)
    args = torchrun.get_args_parser().parse_args(argv)
    if (
        args.nnodes != "1"
        and "GLOO_SOCKET_IFNAME" not in os.environ
        and (name := interface_to(args.master_addr))
    ):
        os.environ["GLOO_SOCKET_IFNAME"] = name
    logging.disable(logging.ERROR)  # torchrun's report of how it stops the processes
    with log_dir, ThreadPoolExecutor(1) as pool:
        args.log_dir = args.log_dir or log_dir.name
        try:
            # torchrun installs its own signal handlers if it runs in the main thread.
            pool.submit(torchrun.run, args).result()
        except ChildFailedError as error:
            return _exit_status(error, received)
        except (OSError, RuntimeError, ValueError) as error:
            address = f"{args.master_addr}:{args.master_port}"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if "EADDRINUSE" in str(error):
                hint = "set MASTER_PORT to a free port, the same on all machines"
                message = f"{address} is in use; {hint} ({reason})"
            else:
                hint = f"machine of rank 0: {address}, the same for all machines"
                message = f"the processes did not start: {reason} ({hint})"
            sys.stderr.write(f"error: {message}\n")
            return 1
    return 0


def _forward_signals(received: list[int], log_dir: tempfile.TemporaryDirectory[str]) -> None:
    """Forwards signals to the processes and records them in `received`; exits if there are no processes yet."""

    def forward(number: int, frame: FrameType | None) -> None:
        forwarded = _FORWARDED[signal.Signals(number)]
        received.append(forwarded)
        children = _child_pids()
        for pid in children:
            try:
                os.kill(pid, forwarded)
            except ProcessLookupError:
                continue
        if not children:
            # Still in the rendezvous of several machines, in which torchrun would go on waiting.
            log_dir.cleanup()
            os._exit(_stopped_status(received))

    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP under nohup
            signal.signal(number, forward)


def _disable_restarts_after_signals(received: Sequence[int]) -> None:
    """Makes `--max-restarts` apply to failures only, not to runs that a signal has stopped."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    monitor = LocalElasticAgent._monitor_workers

    def monitor_without_restarts(agent: Any, group: Any) -> Any:
        result = monitor(agent, group)
        stopped = (REQUEUE_STATUS, INTERRUPT_STATUS)
        if received or any(failure.exitcode in stopped for failure in result.failures.values()):
            agent._remaining_restarts = 0
        return result

    LocalElasticAgent._monitor_workers = monitor_without_restarts  # type: ignore[method-assign]


def _child_pids() -> list[int]:
    """Returns the child processes of this process, which torchrun does not expose."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name of the command, in parentheses, may contain anything.
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has ended in the meantime
        if int(parent) == os.getpid():
            children.append(int(stat.parent.name))
    return children


def _stopped_status(received: Sequence[int]) -> int:
    return INTERRUPT_STATUS if signal.SIGINT in received else REQUEUE_STATUS


def _exit_status(error: ChildFailedError, received: Sequence[int]) -> int:
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return failure.exitcode
    number = signal.Signals(-failure.exitcode)
    if number in received:
        return _stopped_status(received)
    hint = "; the machine may have run out of memory" if number == signal.SIGKILL else ""
    sys.stderr.write(f"error: rank {rank} was ended by {number.name}{hint}\n")
    return 128 + number


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
