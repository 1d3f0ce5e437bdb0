"""Several processes: start-up from the launcher's environment, devices, and the few collectives that we use.

One process drives one device. With a single process every function here is a cheap no-op.
Sources: train_eval spec, sections 2.2 and 5; `GPUS` as in the design's table of decisions.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from common.errors import UsageError

logger = logging.getLogger(__name__)


ObjectT = TypeVar("ObjectT")


# An empty variable stands for its default; a missing one is an error (spec section 2.2).
_DEFAULTS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "23456", "WORLD_SIZE": "1", "RANK": "0"}


def is_distributed() -> bool:
    """Tells whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Tells whether this process writes the files."""
    return rank() == 0


def barrier() -> None:
    """Waits for all processes."""
    if is_distributed():
        dist.barrier()


def gather_objects(value: ObjectT) -> list[ObjectT]:
    """Returns the value of every rank, in rank order, on every rank."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


class AsyncMax:
    """The largest of one number per rank, known one call late so that no rank ever waits for another.

    The first call returns 0. Collective: every rank makes equally many calls.
    """

    def __init__(self) -> None:
        self._waiting: tuple[dist.Work, torch.Tensor] | None = None

    def __call__(self, value: int) -> int:
        """Returns the largest number of the call before; with a single process, `value`."""
        if not is_distributed():
            return value
        largest = 0
        if self._waiting is not None:
            work, result = self._waiting
            work.wait()
            largest = int(result)
        # On the host, so that the device is not waited for either.
        sent = torch.tensor(value)
        work = dist.all_reduce(sent, dist.ReduceOp.MAX, async_op=True)
        assert work is not None, "asynchronous"
        self._waiting = work, sent
        return largest


def launched_by_torchrun() -> bool:
    """Tells whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def slurm_environment(environ: Mapping[str, str], num_gpus: int, first_host: str) -> dict[str, str]:
    """Translates SLURM's variables to those that `init` reads.

    Args:
        environ: the environment of a process that srun started.
        num_gpus: GPUs of this machine.
        first_host: name of the first machine of the job.

    Raises:
        UsageError: a variable is missing.
    """
    missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST") if name not in environ]
    if missing:
        raise UsageError(f"--slurm: {', '.join(missing)} not set; start the command with srun")
    task = int(environ["SLURM_PROCID"])
    return {
        # Two jobs on one machine need different ports, so a given one is respected.
        "MASTER_PORT": environ.get("MASTER_PORT") or "29500",
        "MASTER_ADDR": first_host,
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": str(task % max(num_gpus, 1)),
    }


def apply_slurm(environ: MutableMapping[str, str]) -> None:
    """Fills the launcher's variables of `environ` from those of SLURM (`--slurm`)."""
    first_host = ""
    if nodes := environ.get("SLURM_NODELIST"):
        try:
            hosts = subprocess.run(
                ["scontrol", "show", "hostname", nodes], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise UsageError(f"--slurm: `scontrol show hostname {nodes}` failed: {error}") from error
        first_host = hosts.stdout.splitlines()[0]
    environ.update(slurm_environment(environ, torch.cuda.device_count(), first_host))


def init_distributed(environ: MutableMapping[str, str]) -> torch.device:
    """Joins the process group that the launcher's variables describe and returns this process's device.

    Args:
        environ: `os.environ`; torch reads the addresses from there.

    Raises:
        UsageError: a variable is missing, or there are more processes than GPUs on this machine.
    """
    missing = [name for name in _DEFAULTS if name not in environ]
    if missing:
        raise UsageError(
            f"--dist: {', '.join(missing)} not set; start with torchrun or scripts/dist_run_single.sh, "
            "or add --slurm"
        )
    environ.update({name: default for name, default in _DEFAULTS.items() if not environ[name]})
    local_rank = int(environ.get("LOCAL_RANK") or 0)
    if not torch.cuda.is_available():
        _rendezvous("gloo", environ)
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"LOCAL_RANK {local_rank}: this machine has {torch.cuda.device_count()} GPU(s); "
            "start no more processes than that"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    # Objects travel through gloo, tensors through nccl.
    _rendezvous("cpu:gloo,cuda:nccl", environ)
    return device


def _rendezvous(backend: str, environ: Mapping[str, str]) -> None:
    place = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    attempt = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        if attempt == "0" or environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            dist.init_process_group(backend)
            return
        # torchrun's store still has the addresses of the processes before the restart.
        store = PrefixStore(f"attempt/{attempt}", TCPStore(*place, is_master=False))
        rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except dist.DistNetworkError as error:
        raise UsageError(
            f"MASTER_ADDR {place[0]}, MASTER_PORT {place[1]}: the processes cannot meet there; choose another port, "
            f"the same for all ({str(error).splitlines()[0]})"
        ) from error


def cleanup() -> None:
    """Leaves the process group."""
    if is_distributed():
        # A model in a reference cycle would keep the group, whose threads end the process when they outlive it.
        gc.collect()
        dist.destroy_process_group()


def choose_gpus(flag: Sequence[int] | None, listed: Sequence[int], available: int) -> tuple[int, ...]:
    """Decides which GPUs a command uses; none means the CPU.

    Args:
        flag: value of `--gpus`, None without it; -1 asks for the CPU.
        listed: `GPUS` of the yaml file.
        available: GPUs of this machine.

    Raises:
        UsageError: `--gpus` names a GPU that does not exist.
    """
    if flag is not None:
        if list(flag) == [-1]:
            return ()
        for gpu in flag:
            if not 0 <= gpu < available:
                has = f"0 to {available - 1}" if available else "none; leave the flag out to run on the CPU"
                raise UsageError(f"--gpus {gpu}: no such GPU on this machine, which has {has}")
        return tuple(dict.fromkeys(flag))
    usable = tuple(gpu for gpu in dict.fromkeys(listed) if 0 <= gpu < available)
    if len(usable) < len(listed):
        using = f"using GPU {', '.join(map(str, usable))}" if usable else "running on the CPU"
        logger.warning(
            "GPUS %s: this machine has %d of them; %s", ",".join(map(str, listed)), len(usable), using
        )
    return usable


def torchrun_command(
    gpus: Sequence[int], argv: Sequence[str], environ: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Builds the command and environment that run `argv` once per GPU.

    Args:
        gpus: at least two GPU numbers, counted within what is visible now.
        argv: script and arguments of the running command.
        environ: its environment.
    """
    visible = [entry for entry in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    chosen = [visible[gpu] if visible else str(gpu) for gpu in gpus]
    command = [
        sys.executable,
        "-m",
        "common.distributed.launcher",
        "--standalone",
        "--local_addr=127.0.0.1",
        f"--nproc_per_node={len(gpus)}",
        *argv,
    ]
    return command, {**environ, "CUDA_VISIBLE_DEVICES": ",".join(chosen)}


def setup_device(
    *, dist_flag: bool, slurm: bool, gpus_flag: Sequence[int] | None, gpus_listed: str
) -> torch.device:
    """Decides how this command runs: on one device, as one of several processes, or anew with one per GPU.

    Args:
        dist_flag: `--dist`; processes that torchrun started need no flag.
        slurm: `--slurm`.
        gpus_flag: value of `--gpus`, None without it.
        gpus_listed: `GPUS` of the yaml file: comma-separated numbers, "cpu" or "".

    Returns:
        The device of this process. Does not return where the command is started anew.
    """
    if slurm:
        apply_slurm(os.environ)
    if dist_flag or launched_by_torchrun():
        return init_distributed(os.environ)
    listed = [int(gpu) for gpu in gpus_listed.split(",") if gpu.isdigit()]
    gpus = choose_gpus(gpus_flag, listed, torch.cuda.device_count())
    if len(gpus) > 1:
        command, environ = torchrun_command(gpus, sys.argv, os.environ)
        logger.info("GPUS %s: starting %d processes", ",".join(map(str, gpus)), len(gpus))
        os.execve(command[0], command, environ)
    if not gpus:
        return torch.device("cpu")
    device = torch.device("cuda", gpus[0])
    torch.cuda.set_device(device)
    return device


def wrap_ddp(model: nn.Module) -> nn.Module:
    """Makes backward passes average the gradients of all processes; initial values come from rank 0.

    With a single process it returns `model` itself.
    """
    if not is_distributed():
        return model
    norms = [module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)]
    # Only batch norms that train have statistics to share; torch has renamed the option.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: any(norm.training for norm in norms)}
    # Gradients that lie in the buckets save 4 bytes per parameter.
    options["gradient_as_bucket_view"] = True
    # Batches are moved before, so no device is named.
    return DistributedDataParallel(model, **options)


def broadcast_buffers(model: nn.Module) -> None:
    """Gives every process the buffers of rank 0, so that all evaluate the model that is saved."""
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the network inside `wrap`."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def no_sync(model: nn.Module, active: bool) -> AbstractContextManager[Any]:
    """While `active`, gradients stay local: only the last micro batch of an update is reduced."""
    return model.no_sync() if active and isinstance(model, DistributedDataParallel) else nullcontext()
