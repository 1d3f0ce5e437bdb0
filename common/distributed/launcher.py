"""`torchrun` as our scripts use it: `python -m common.distributed.launcher [torchrun's options] SCRIPT [arguments]`.

It takes torchrun's options and starts the same processes with the same environment. It differs in how a run ends:
the exit status is that of the process that failed first instead of always 1, without torchrun's own account of it;
signals reach the processes, which decide when to end; and nothing is left in the folder for temporary files.
Source: train_eval spec, section 2.3.
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

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


# What each signal becomes: the processes need not know that a terminal was closed.
_FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
}


_INTERRUPT_STATUS = 128 + signal.SIGINT


_STOPPED = (os.EX_TEMPFAIL, _INTERRUPT_STATUS)


_SIOCGIFADDR = 0x8915


def first_to_report(environ: Mapping[str, str]) -> bool:
    """Tells whether no other process of this machine has yet reported what ends the run.

    A process asks before it reports an error and before it leaves the process group, so that what follows from
    its end on other ranks comes second. Always true for processes that torchrun did not start.
    """
    own = environ.get("TORCHELASTIC_ERROR_FILE")
    if not own:
        return True
    # torchrun gives every process a folder of its own in one folder per start of them all.
    try:
        (Path(own).parents[1] / "reported").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True  # rather twice than never
    return True


def interface_to(host: str) -> str | None:
    """Returns the name of the network interface through which this machine reaches `host`, None if unknown.

    Gloo would take the one that the machine's own name resolves to, which is often the loopback.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
        except OSError:
            return None
        address = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None


def launch(argv: Sequence[str]) -> int:
    """Runs the processes that `argv` asks for and returns the exit status.

    The status is that of the process that failed first. One that a signal killed has 128 and the signal's number,
    unless the signal was passed on by us before the process could take it: then it is 75 (130 for SIGINT), as if
    it had.
    """
    asked: list[int] = []
    folder = tempfile.TemporaryDirectory(prefix="launch-")
    _forward_signals(asked, folder)  # first of all: imports take seconds
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _never_restart_what_was_stopped(asked)
    args = torchrun.get_args_parser().parse_args(argv)
    if (
        args.nnodes != "1"
        and "GLOO_SOCKET_IFNAME" not in os.environ
        and (name := interface_to(args.master_addr))
    ):
        os.environ["GLOO_SOCKET_IFNAME"] = name
    logging.disable(logging.ERROR)  # torchrun's account of how it stops the processes
    with folder, ThreadPoolExecutor(1) as pool:
        args.log_dir = args.log_dir or folder.name
        try:
            # In another thread torchrun leaves the signals to us.
            pool.submit(torchrun.run, args).result()
        except ChildFailedError as error:
            return _status(error, asked)
        except (OSError, RuntimeError, ValueError) as error:
            place = f"{args.master_addr}:{args.master_port}"
            sys.stderr.write(f"error: {_explain(error, place)}\n")
            return 1
    return 0


def _forward_signals(asked: list[int], folder: tempfile.TemporaryDirectory[str]) -> None:
    """Passes signals on to the processes and notes them in `asked`; without processes, ends this one."""

    def forward(number: int, frame: FrameType | None) -> None:
        sent = _FORWARDED[signal.Signals(number)]
        asked.append(sent)
        children = _children()
        for pid in children:
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                continue
        if not children:  # the machines have not met yet, and torchrun would wait for them
            folder.cleanup()
            os._exit(_stopped_status(asked))

    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, forward)


def _never_restart_what_was_stopped(asked: Sequence[int]) -> None:
    """Lets `--max-restarts` answer failures only."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    monitor = LocalElasticAgent._monitor_workers

    def watched(agent: Any, group: Any) -> Any:
        result = monitor(agent, group)
        if asked or any(failure.exitcode in _STOPPED for failure in result.failures.values()):
            agent._remaining_restarts = 0
        return result

    LocalElasticAgent._monitor_workers = watched  # type: ignore[method-assign]


def _children() -> list[int]:
    """Returns the processes that this one has started; torchrun does not tell."""
    children = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = entry.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it has just ended
        if int(parent) == os.getpid():
            children.append(int(entry.parent.name))
    return children


def _stopped_status(asked: Sequence[int]) -> int:
    return _INTERRUPT_STATUS if signal.SIGINT in asked else os.EX_TEMPFAIL


def _status(error: ChildFailedError, asked: Sequence[int]) -> int:
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return failure.exitcode
    number = signal.Signals(-failure.exitcode)
    if number in asked:
        return _stopped_status(asked)
    hint = "; the machine may have run out of memory" if number == signal.SIGKILL else ""
    sys.stderr.write(f"error: rank {rank} was ended by {number.name}{hint}\n")
    return 128 + number


def _explain(error: Exception, place: str) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "EADDRINUSE" in str(error):
        return f"{place} is in use; set MASTER_PORT to a free port, the same on all machines ({text})"
    return f"the processes did not start: {text} (machine of rank 0: {place}, the same for all machines)"


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1:]))
