"""Runs of a tiny VQA training in processes of their own, which kill themselves at a chosen moment."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from common.evaluation import evaluator
from common.training.trainer import Trainer
from tests.common.distributed.processes import free_port
from tests.vqa.world import World

SETTINGS = (
    "CHECKPOINT_STEPS=2",
    "LOG_FREQUENT=3",
    "STALL_SECONDS=20",
    "TRAIN.END_EPOCH=2",
    "TRAIN.GRAD_ACCUMULATE_STEPS=2",
    "NETWORK.VLBERT.hidden_dropout_prob=0.1",
)
EVENTS = ("batch", "validation", "write", "rename", "renamed", "link")


class Kill(NamedTuple):
    """The `count`-th time (from 1) that rank `rank` comes to `event`, it gets a signal; below 0, so do its workers.

    With `worker`, only the worker that it has started last gets it.
    """

    event: str
    count: int
    rank: int = 0
    number: int = signal.SIGKILL
    worker: bool = False


class Hooks:
    """Counts the events of this process."""

    def __init__(self, kill: Kill | None, rank: int) -> None:
        self.kill = kill if kill and kill.rank == rank else None
        self.counts = Counter()
        Trainer._micro_step = self.after("batch", Trainer._micro_step)
        outputs = evaluator.iterate_outputs

        def validation(*args):
            for value in outputs(*args):
                self.come("validation")
                yield value

        evaluator.iterate_outputs = validation
        torch.save = self.half_written(torch.save)
        Path.replace = self.after("renamed", self.before("rename", Path.replace))
        os.link = self.after("link", os.link)

    def come(self, event: str) -> None:
        self.counts[event] += 1
        if self.kill and self.kill[:2] == (event, self.counts[event]):
            process = os.getpid() if self.kill.number > 0 else 0
            if self.kill.worker:
                process = max(multiprocessing.active_children(), key=lambda child: child._identity).pid
            os.kill(process, abs(self.kill.number))

    def before(self, event, function):
        def call(*args):
            self.come(event)
            return function(*args)

        return call

    def after(self, event, function):
        def call(*args):
            result = function(*args)
            self.come(event)
            return result

        return call

    def half_written(self, save):
        def call(state, file, **options):
            if options:  # an object on its way to other ranks
                save(state, file, **options)
                return
            whole = io.BytesIO()
            save(state, whole)
            half = len(whole.getvalue()) // 2
            file.write(whole.getvalue()[:half])
            file.flush()
            self.come("write")
            file.write(whole.getvalue()[half:])

        return call


def _run(
    world: World, settings: tuple[str, ...], kill: Kill | None, rank: int, ranks: int, port: int, out
) -> None:
    os.setsid()
    torch.set_num_threads(1)
    hooks = Hooks(kill, rank)
    flags: tuple[str, ...] = ()
    if ranks > 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(ranks), RANK=str(rank)
        )
        flags = ("--dist",)
    with (world.bert / f"printed-{rank}.txt").open("a") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    with contextlib.suppress(BrokenPipeError):
        status = world.train(*SETTINGS, *settings, flags=flags)
        out.send(hooks.counts)
    os._exit(status)


def train(
    world: World, *settings: str, kill: Kill | None = None, ranks: int = 1
) -> tuple[list[int], Counter]:
    """Runs a training; returns the exit status of every rank (a signal is negative) and rank 0's events."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    port = free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        context.Process(target=_run, args=(world, settings, kill, rank, ranks, port, pipes[rank][1]))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    limit = time.monotonic() + 120
    while time.monotonic() < limit and any(process.is_alive() for process in processes):
        multiprocessing.connection.wait([p.sentinel for p in processes if p.is_alive()], 1)
        if any(process.exitcode is not None for process in processes):
            limit = min(limit, time.monotonic() + 5)  # then a launcher would end the others
    for process in processes:
        process.kill()
        process.join()
    statuses = [process.exitcode for process in processes]
    for rank in range(ranks):  # pytest shows it where a test fails
        print(printed(world, rank)[-2000:])
    counts = Counter()
    with contextlib.suppress(EOFError):
        counts = pipes[0][0].recv()
    return statuses, counts


def folder(world: World) -> Path:
    return world.out / "output/toy/vqa/toy/train2014_train"


def printed(world: World, rank: int = 0) -> str:
    return (world.bert / f"printed-{rank}.txt").read_text()
