"""Runs of a tiny VQA training in processes of their own, which send themselves a signal at a chosen event."""

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
from common.models.pretrained import read_weights
from common.training.trainer import Trainer
from tests.common.distributed.processes import free_port, set_environ
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
FILES = ("toy-0000.model", "toy-0001.model", "toy-best.model", "toy-latest.model")
KILLED = -signal.SIGKILL


class Kill(NamedTuple):
    """A signal for `rank` at the `count`-th occurrence (from 1) of `event`.

    A negative number goes to the process group, which includes the data workers. With `worker`, only the data worker
    that was started last gets the signal.
    """

    event: str
    count: int
    rank: int = 0
    number: int = signal.SIGKILL
    worker: bool = False


class Events:
    """Counts the events of this process and sends the signal of `kill`."""

    def __init__(self, kill: Kill | None, rank: int) -> None:
        self.kill = kill if kill and kill.rank == rank else None
        self.counts = Counter()
        Trainer.train_batch = self.around(Trainer.train_batch, after="batch")
        Path.replace = self.around(Path.replace, before="rename", after="renamed")
        os.link = self.around(os.link, after="link")
        iterate_outputs, save = evaluator.iterate_outputs, torch.save

        def iterate_with_events(*args):
            for value in iterate_outputs(*args):
                self.record("validation")
                yield value

        def save_in_two_halves(state, file, **options):
            if options:  # not a checkpoint, but an object on its way to other ranks
                save(state, file, **options)
                return
            buffer = io.BytesIO()
            save(state, buffer)
            content = buffer.getvalue()
            file.write(content[: len(content) // 2])
            file.flush()
            self.record("write")
            file.write(content[len(content) // 2 :])

        evaluator.iterate_outputs = iterate_with_events
        torch.save = save_in_two_halves

    def record(self, event: str) -> None:
        self.counts[event] += 1
        if self.kill and self.kill[:2] == (event, self.counts[event]):
            pid = os.getpid() if self.kill.number > 0 else 0
            if self.kill.worker:
                pid = max(child.pid for child in multiprocessing.active_children())
            os.kill(pid, abs(self.kill.number))

    def around(self, function, before: str = "", after: str = ""):
        def call(*args):
            if before:
                self.record(before)
            result = function(*args)
            if after:
                self.record(after)
            return result

        return call


def _main(world: World, settings: tuple[str, ...], kill: Kill | None, rank: int, ranks: int, port: int, pipe):
    os.setsid()
    torch.set_num_threads(1)
    events = Events(kill, rank)
    if ranks > 1:
        set_environ(rank, ranks, port)
    with (world.bert / f"printed-{rank}.txt").open("a") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    with contextlib.suppress(BrokenPipeError):
        status = world.train(*SETTINGS, *settings, flags=("--dist",) if ranks > 1 else ())
        pipe.send(events.counts)
    os._exit(status)


def train(
    world: World, *settings: str, kill: Kill | None = None, ranks: int = 1
) -> tuple[list[int], Counter]:
    """Trains; returns the exit status of every rank (a signal is negative) and the event counts of rank 0."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    port = free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        context.Process(target=_main, args=(world, settings, kill, rank, ranks, port, pipes[rank][1]))
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
            limit = min(limit, time.monotonic() + 5)  # a launcher would now end the others
    for process in processes:
        process.kill()
        process.join()
    for rank in range(ranks):  # pytest shows it if the test fails
        print(printed(world, rank)[-2000:])
    counts = Counter()
    with contextlib.suppress(EOFError):
        counts = pipes[0][0].recv()
    return [process.exitcode for process in processes], counts


def folder(world: World) -> Path:
    return world.out / "output/toy/vqa/toy/train2014_train"


def printed(world: World, rank: int = 0) -> str:
    return (world.bert / f"printed-{rank}.txt").read_text()


def position(world: World, name: str = "toy-latest.model") -> tuple[int, int]:
    """Returns epoch and batch at which a run resumes from a checkpoint."""
    state = read_weights(folder(world) / name)
    return state["epoch"], state["batch"]


def assert_same_checkpoints(world: World, expected: World, tolerance: float = 0.0) -> None:
    for name in FILES:
        assert_equal(_state(world, name), _state(expected, name), tolerance, name)


def _state(world: World, name: str):
    state = read_weights(folder(world) / name)
    return {key: value for key, value in state.items() if key not in ("config", "resumed")}  # paths and flags


def assert_equal(actual, expected, tolerance=0.0, where=""):
    """Compares nested states: tensors and floats within the tolerance, everything else exactly."""
    if isinstance(expected, dict | list | tuple):
        assert len(actual) == len(expected), where
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_equal(actual[key], expected[key], tolerance, f"{where}/{key}")
    elif isinstance(expected, torch.Tensor | float):
        torch.testing.assert_close(
            actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{where}: {text}"
        )
    else:
        assert actual == expected, where
