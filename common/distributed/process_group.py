"""Process group: device and rank of this process, DDP, and the few collectives in use.

One process drives one device. Without a process group every function here is a cheap no-op. "Collective" in a
docstring means that all ranks must call the function, in the same order relative to other collectives.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from common.errors import UsageError

logger = logging.getLogger(__name__)

ObjectT = TypeVar("ObjectT")

# As in the reference, a variable that is set but empty has this value. A variable that is not set is an error.
_ENVIRON_DEFAULTS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "23456", "WORLD_SIZE": "1", "RANK": "0"}


def is_distributed() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this is rank 0, which writes all files."""
    return rank() == 0


def barrier() -> None:
    """Waits until all ranks get here. Collective."""
    if is_distributed():
        dist.barrier()


def gather_objects(value: ObjectT) -> list[ObjectT]:
    """Returns the values of all ranks in rank order, on every rank. Collective.

    `gather_objects(value)[0]` lets rank 0 decide. Files may look different from other ranks, for example on a shared
    file system with a cache, and ranks that decide differently wait for each other forever.
    """
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


class AsyncMax:
    """Maximum of one number per rank, one call late, so that no rank waits for another."""

    def __init__(self) -> None:
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def __call__(self, value: int) -> int:
        """Returns the maximum of the previous call, 0 in the first one. Collective; returns `value` without a group."""
        if not is_distributed():
            return value
        maximum = 0
        if self._pending is not None:
            work, result = self._pending
            work.wait()
            maximum = int(result)
        # A CPU tensor goes through gloo: reading the result does not synchronize with the GPU.
        tensor = torch.tensor(value)
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)
        assert work is not None, "async_op returns a handle"
        self._pending = work, tensor
        return maximum


def setup_device(
    *, dist_flag: bool, slurm: bool, gpus_flag: Sequence[int] | None, gpus_listed: str
) -> torch.device:
    """Selects the device of this process and joins the process group, if there are several processes.

    If the command was started once but is to use several GPUs, it is replaced by a launcher that starts it again in
    one process per GPU; then this function does not return.

    Args:
        dist_flag: `--dist`; not needed if torchrun started this process.
        slurm: `--slurm`.
        gpus_flag: value of `--gpus`; None without the flag.
        gpus_listed: `GPUS` of the yaml file: comma-separated numbers, "cpu" or "".
    """
    if slurm:
        os.environ.update(slurm_environment(os.environ, torch.cuda.device_count()))
    if dist_flag or (dist.is_available() and dist.is_torchelastic_launched()):
        return init_distributed(os.environ)
    listed = [int(gpu) for gpu in gpus_listed.split(",") if gpu.isdigit()]
    gpus = choose_gpus(gpus_flag, listed, torch.cuda.device_count())
    if len(gpus) > 1:
        _restart_with_torchrun(gpus)
    if not gpus:
        return torch.device("cpu")
    device = torch.device("cuda", gpus[0])
    torch.cuda.set_device(device)
    return device


def choose_gpus(flag: Sequence[int] | None, listed: Sequence[int], available: int) -> tuple[int, ...]:
    """Selects the GPUs of a command; none means the CPU.

    Args:
        flag: value of `--gpus`, -1 for the CPU; None without the flag.
        listed: `GPUS` of the yaml file.
        available: number of GPUs of this machine.

    Raises:
        UsageError: `--gpus` names a GPU that does not exist. For `GPUS`, which is shared between machines, that is
            only a warning.
    """
    if flag is not None:
        if list(flag) == [-1]:
            return ()
        for gpu in flag:
            if not 0 <= gpu < available:
                known = f"0 to {available - 1}" if available else "none; omit the flag to run on the CPU"
                raise UsageError(f"--gpus {gpu}: no such GPU; this machine has {known}")
        return tuple(dict.fromkeys(flag))
    usable = tuple(gpu for gpu in dict.fromkeys(listed) if 0 <= gpu < available)
    if len(usable) < len(listed):
        requested = ",".join(map(str, listed))
        if usable:
            logger.warning(
                "GPUS=%s requested, but only some exist; using GPU %s", requested, ", ".join(map(str, usable))
            )
        else:
            logger.warning(
                "GPUS=%s requested, but no such CUDA device is available; running on the CPU", requested
            )
    return usable


def _restart_with_torchrun(gpus: Sequence[int]) -> NoReturn:
    """Replaces this process by a launcher that runs the same command once per GPU."""
    logger.info("GPUS=%s: starting %d processes", ",".join(map(str, gpus)), len(gpus))
    # GPU numbers count within the devices that are visible now.
    visible = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    devices = ",".join(visible[gpu] if visible else str(gpu) for gpu in gpus)
    command = [
        sys.executable,
        *("-m", "common.distributed.launcher", "--standalone", "--local_addr=127.0.0.1"),
        *(f"--nproc_per_node={len(gpus)}", *sys.argv),
    ]
    os.execve(command[0], command, {**os.environ, "CUDA_VISIBLE_DEVICES": devices})


def slurm_environment(environ: Mapping[str, str], num_gpus: int) -> dict[str, str]:
    """Translates the variables of srun to those that `init_distributed` reads.

    Args:
        environ: environment of a process that srun started.
        num_gpus: number of GPUs of this machine.

    Raises:
        UsageError: a variable is missing, or `scontrol` fails.
    """
    missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST") if name not in environ]
    if missing:
        raise UsageError(f"--slurm: {', '.join(missing)} not set; start the command with srun")
    nodes = environ["SLURM_NODELIST"]  # compressed, such as n[1-2]
    command = ["scontrol", "show", "hostname", nodes]
    try:
        hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"--slurm: `{' '.join(command)}` failed: {error}") from error
    return {
        # Two jobs on one machine need different ports, so a port that is set takes precedence.
        "MASTER_PORT": environ.get("MASTER_PORT") or "29500",
        "MASTER_ADDR": hosts[0],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": str(int(environ["SLURM_PROCID"]) % max(num_gpus, 1)),
    }


def init_distributed(environ: MutableMapping[str, str]) -> torch.device:
    """Joins the process group that the environment variables of torchrun describe. Collective.

    Args:
        environ: `os.environ`, which torch reads as well.

    Returns:
        The device of this process: the GPU of its local rank, or the CPU if there is no GPU.

    Raises:
        UsageError: a variable is missing, this machine has fewer GPUs than processes, or the processes cannot connect.
    """
    missing = [name for name in _ENVIRON_DEFAULTS if name not in environ]
    if missing:
        raise UsageError(
            f"--dist: {', '.join(missing)} not set; start with torchrun or scripts/dist_run_single.sh, "
            "or add --slurm"
        )
    environ.update({name: default for name, default in _ENVIRON_DEFAULTS.items() if not environ[name]})
    device, backend = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        local_rank, num_gpus = int(environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise UsageError(
                f"LOCAL_RANK {local_rank}: this machine has {num_gpus} GPU(s); start no more processes than that"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        # Objects and flags are CPU tensors and go through gloo. They would wait for the GPU otherwise.
        backend = "cpu:gloo,cuda:nccl"
    _rendezvous(backend, environ)
    return device


def _rendezvous(backend: str, environ: Mapping[str, str]) -> None:
    host, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    attempt = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        if attempt == "0" or environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            dist.init_process_group(backend)
            return
        # torchrun keeps its store across restarts. Without a new prefix, ranks would connect to the addresses that
        # the processes of the previous attempt have left there.
        store = PrefixStore(f"attempt/{attempt}", TCPStore(host, port, is_master=False))
        dist.init_process_group(
            backend, store=store, rank=int(environ["RANK"]), world_size=int(environ["WORLD_SIZE"])
        )
    except dist.DistNetworkError as error:
        raise UsageError(
            f"MASTER_ADDR {host}, MASTER_PORT {port}: the processes cannot connect; choose another port, the same for "
            f"all ({str(error).splitlines()[0]})"
        ) from error


def cleanup() -> None:
    """Destroys the process group."""
    if is_distributed():
        # A DDP model in a reference cycle keeps the group alive. Threads of a group that outlive the interpreter
        # abort the process.
        gc.collect()
        dist.destroy_process_group()


def wrap_ddp(model: nn.Module) -> nn.Module:
    """Wraps a model in DDP and copies the values of rank 0 to all ranks. Collective; no-op without a process group."""
    if not is_distributed():
        return model
    # In training mode, since a frozen batch norm stays in evaluation mode even then.
    norms = [module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)]
    # No `device_ids`: the trainer moves the batches. Gradients as views of the buckets save 4 bytes per parameter.
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # Buffers are the same on all ranks from here on, except for running statistics that are trained. An attribute,
    # since torch 2.13 has renamed the argument.
    wrapped.broadcast_buffers = any(norm.training for norm in norms)
    return wrapped


def broadcast_buffers(model: nn.Module) -> None:
    """Copies the buffers of rank 0 to all ranks, so that all evaluate the model that is saved. Collective."""
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model without DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def no_sync(model: nn.Module, active: bool) -> AbstractContextManager[Any]:
    """While `active`, backward passes accumulate gradients locally; only the last one of a step reduces them."""
    return model.no_sync() if active and isinstance(model, DistributedDataParallel) else nullcontext()
