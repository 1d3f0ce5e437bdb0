"""The launch scripts, run on a stub of `train_end2end.py` that starts quickly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.world import ROOT

STUB = """
import argparse, os, signal, sys, time
from pathlib import Path
from common.distributed.launcher import first_to_report

parser = argparse.ArgumentParser()
for flag in ("--cfg", "--model-dir", "--do"):
    parser.add_argument(flag)
parser.add_argument("--dist", action="store_true")
args = parser.parse_args()
rank = os.environ.get("RANK", "0")

def stop(number, frame):
    (Path(args.model_dir) / f"{signal.Signals(number).name}-{rank}").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, stop)
if args.do == "meet":
    import torch.distributed as dist
    dist.init_process_group("gloo")
    ranks = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, rank)
    os.environ["MET"] = "".join(ranks)
    dist.destroy_process_group()
names = ("RANK", "WORLD_SIZE", "MET", "MASTER_ADDR", "MASTER_PORT", "SLURM_RESTART_COUNT")
line = " ".join(os.environ.get(name, "-") for name in names)
# One write, so that the lines of two ranks do not mix.
os.write(1, f"up {line} {args.dist} {Path(args.model_dir).name}\\n".encode())
(Path(args.model_dir) / f"up-{rank}").touch()
if args.do == "fail":
    if first_to_report(os.environ):
        sys.stderr.write("error: this is wrong\\n")
    sys.exit(2)
if args.do == "die" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if args.do in ("die", "wait") and "SLURM_RESTART_COUNT" not in os.environ:
    time.sleep(120)
"""


class Launch:
    """Runs launch scripts in a folder of their own.

    Attributes:
        program: the stub.
        out: its `--model-dir`.
        arguments: program, configuration and output folder, as every script takes them.
        environ: environment of the scripts.
    """

    def __init__(self, folder: Path) -> None:
        self.program, self.cfg = folder / "program.py", folder / "x.yaml"
        self.out, self._temporary = folder / "out", folder / "temporary"
        self.program.write_text(STUB)
        self.cfg.touch()
        self.out.mkdir()
        self._temporary.mkdir()
        self.arguments = (self.program, self.cfg, self.out)
        self.environ = {key: value for key, value in os.environ.items() if key != "MASTER_PORT"}
        self.environ |= {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "VIRTUAL_ENV": sys.prefix}
        self.environ |= {"TMPDIR": str(self._temporary), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(self, script: str, *arguments: object, prefix: tuple[str, ...] = (), **environ: str):
        """Starts a script and returns its process."""
        return subprocess.Popen(
            [*prefix, str(ROOT / "scripts" / script), *map(str, arguments)],
            env={**self.environ, **environ},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, script: str, *arguments: object, **environ: str) -> tuple[int, str, str]:
        """Runs a script and returns its exit status, stdout and stderr."""
        process = self.start(script, *arguments, **environ)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    def wait_until_up(self, ranks: int = 2) -> None:
        wait_for(lambda: len(list(self.out.glob("up-*"))) == ranks)

    def received_signals(self) -> set[str]:
        """Returns `{signal}-{rank}` for every signal that a process has received."""
        return {path.name for path in self.out.glob("SIG*")}

    def leftovers(self) -> list[str]:
        """Returns the temporary files that are left."""
        return [path.name for path in self._temporary.iterdir()]


def wait_for(condition, seconds: float = 60, interval: float = 0.1, message=lambda: "") -> None:
    """Polls until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message()
        time.sleep(interval)
