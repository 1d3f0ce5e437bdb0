"""A real SLURM cluster of two nodes on this machine, from Debian's packages slurmctld, slurmd, slurm-client, munge."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.common.distributed.processes import free_port

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
GresTypes=gpu
ReturnToService=2
KillWait=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 Gres=gpu:4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 Gres=gpu:4 State=UNKNOWN
PartitionName=part Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Returns why no cluster can be had here, an empty string where it can."""
    missing = [name for name in (*DAEMONS, "sbatch") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "the daemons of SLURM need root"


class Cluster:
    """The daemons in `folder`, whose path must be short enough for a socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        (folder / "state").mkdir()
        for number in range(4):
            (folder / f"gpu{number}").touch()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        ports = [free_port() for _ in range(3)]
        host = socket.gethostname()
        text = CONFIGURATION.format(folder=folder, ports=ports, host=host)
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-3]\n")
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        options = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        options |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        try:
            self._start(
                "munged", "--force", *(f"--{key}={self.folder / name}" for key, name in options.items())
            )
            self._start("slurmctld", "-c")
            for node in ("n1", "n2"):
                self._start("slurmd", "-c", "-N", node)
            self.wait(lambda: self.say("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.say("scancel", "--user", "root")
        time.sleep(1)
        for path in self.folder.glob("*.pid"):
            os.kill(int(path.read_text()), 15)
        self.wait(lambda: not list(self.folder.glob("*.pid")))

    def _start(self, *command: str) -> None:
        log = (self.folder / "start.log").open("a")
        done = subprocess.run(
            command,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=30,
            check=False,
        )
        log.close()
        assert done.returncode == 0, (self.folder / "start.log").read_text()

    def say(self, *command: str) -> str:
        """Returns what a command of SLURM prints."""
        done = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout

    def job(self, number: int | str) -> dict[str, str]:
        """What SLURM knows of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.say("scontrol", "show", "job", str(number))))

    @staticmethod
    def wait(condition, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.5)
