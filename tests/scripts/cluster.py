"""A real SLURM cluster of two nodes on this machine (Debian: slurmctld, slurmd, slurm-client, munge)."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.common.distributed.processes import free_port
from tests.scripts.launching import wait_for

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch")
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


def reason_to_skip() -> str:
    """Returns why no cluster can run here, or an empty string."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "the SLURM daemons need root"


class Cluster:
    """Runs the daemons in `folder`, whose path must be short enough for a socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        (folder / "state").mkdir()
        for index in range(4):
            (folder / f"gpu{index}").touch()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        ports = [free_port() for _ in range(3)]
        text = CONFIGURATION.format(folder=folder, ports=ports, host=socket.gethostname())
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-3]\n")
        self.environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def __enter__(self) -> Cluster:
        options = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        options |= {"log-file": "munged.log", "seed-file": "munged.seed"}
        flags = [f"--{option}={self.folder / name}" for option, name in options.items()]
        try:
            self._start("munged", "--force", *flags)
            self._start("slurmctld", "-c")
            for node in ("n1", "n2"):
                self._start("slurmd", "-c", "-N", node)
            wait_for(lambda: self.output("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.output("scancel", "--user", "root")
        time.sleep(1)
        for path in self.folder.glob("*.pid"):
            os.kill(int(path.read_text()), 15)
        wait_for(lambda: not list(self.folder.glob("*.pid")))

    def _start(self, *command: str) -> None:
        with (self.folder / "start.log").open("a") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            done = subprocess.run(command, env=self.environ, timeout=30, check=False, **streams)
        assert done.returncode == 0, (self.folder / "start.log").read_text()

    def output(self, *command: str) -> str:
        """Returns the output of a SLURM command, whatever its status."""
        options = {"env": self.environ, "timeout": 60, "text": True}
        return subprocess.run(command, check=False, capture_output=True, **options).stdout

    def job(self, job_id: int | str) -> dict[str, str]:
        """Returns the properties of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.output("scontrol", "show", "job", str(job_id))))
