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


def _enter(rank, function, world_size, port, folder):
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(world_size),
        RANK=str(rank),
        CUDA_VISIBLE_DEVICES="",
    )
    torch.set_num_threads(1)
    assert distributed.init_distributed(os.environ) == torch.device("cpu")
    torch.save(function(), folder / f"{rank}.pt")
    distributed.cleanup()


def run_distributed(function, folder, world_size=2):
    """Returns what `function()`, importable by name, returns on every rank."""
    torch.multiprocessing.spawn(_enter, (function, world_size, free_port(), folder), nprocs=world_size)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
