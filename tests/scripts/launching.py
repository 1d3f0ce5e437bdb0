"""A stand-in for a `train_end2end.py` that starts in a moment, and the launching scripts run on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.world import ROOT

PROGRAM = """
import argparse, os, signal, sys, time
from pathlib import Path
from common.distributed.launcher import first_to_report

parser = argparse.ArgumentParser()
for flag in ("--cfg", "--model-dir", "--do"):
    parser.add_argument(flag)
parser.add_argument("--dist", action="store_true")
args = parser.parse_args()
rank = os.environ.get("RANK", "0")

def end(number, frame):
    (Path(args.model_dir) / f"{signal.Signals(number).name}-{rank}").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, end)
if args.do == "meet":
    import torch.distributed as dist
    dist.init_process_group("gloo")
    everybody = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, rank)
    os.environ["MET"] = "".join(everybody)
    dist.destroy_process_group()
names = ("RANK", "WORLD_SIZE", "MET", "MASTER_ADDR", "MASTER_PORT", "SLURM_RESTART_COUNT")
line = " ".join(os.environ.get(name, "-") for name in names)
# In one piece, that ranks do not mix theirs.
os.write(1, f"up {line} {args.dist} {Path(args.model_dir).name}\\n".encode())
(Path(args.model_dir) / f"up-{rank}").touch()
if args.do == "mistake":
    if first_to_report(os.environ):
        sys.stderr.write("error: this is wrong\\n")
    sys.exit(2)
if args.do == "killed" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
again = "SLURM_RESTART_COUNT" in os.environ
if args.do in ("killed", "wait") and not again:
    time.sleep(120)
"""


class Launch:
    """The scripts, their stand-in and where they write."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM)
        self.cfg = folder / "x.yaml"
        self.cfg.touch()
        self.out = folder / "out"
        self.out.mkdir()
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        path = f"{sys.prefix}/bin:{os.environ['PATH']}"
        self.environ = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "VIRTUAL_ENV": sys.prefix}
        self.environ |= {"TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)}
        self.environ.pop("MASTER_PORT", None)
        self.arguments = (self.program, self.cfg, self.out)

    def start(self, script: str, *arguments: object, prefix: tuple[str, ...] = (), **environ: str):
        """Starts a script of ours; the caller waits for it."""
        return subprocess.Popen(
            [*prefix, str(ROOT / "scripts" / script), *map(str, arguments)],
            env={**self.environ, **environ},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, script: str, *arguments: object, **environ: str) -> tuple[int, str, str]:
        """Returns exit status, output and errors of a script of ours."""
        process = self.start(script, *arguments, **environ)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    def leftovers(self) -> list[str]:
        return [path.name for path in self.temporary.iterdir()]
