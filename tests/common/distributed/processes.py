"""Runs functions in several gloo processes."""

from __future__ import annotations

import os
import socket

import torch
import torch.multiprocessing

from common.distributed import process_group as distributed


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def set_environ(rank, world_size, port, **more):
    """Sets the variables that torchrun sets."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(world_size))
    os.environ.update(RANK=str(rank), CUDA_VISIBLE_DEVICES="", **more)


def _main(rank, function, world_size, port, folder):
    set_environ(rank, world_size, port)
    torch.set_num_threads(1)
    assert distributed.init_distributed(os.environ) == torch.device("cpu")
    torch.save(function(), folder / f"{rank}.pt")
    distributed.cleanup()


def run_distributed(function, folder, world_size=2):
    """Returns the result of `function()`, importable by name, on every rank."""
    torch.multiprocessing.spawn(_main, (function, world_size, free_port(), folder), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
