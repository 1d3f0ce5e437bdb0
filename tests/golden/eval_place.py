"""Where golden evaluations run: the real commands, in a temporary folder, with stored logits for the network."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from common.config.schema import ExperimentConfig, dump_config
from tests.golden.adapter import AnyTask
from tests.golden.adapters import ADAPTERS
from tests.golden.harness import LogLines

CPU = torch.device("cpu")
CHECKPOINT = "checkpoint"


class Stub(nn.Module):
    """Returns stored logits of the records of a batch.

    Args:
        task: whose outputs they become.
        logits: of all records, in dataset order.
    """

    def __init__(self, task: AnyTask, logits: np.ndarray) -> None:
        super().__init__()
        self.adapter, self.logits = ADAPTERS[task.name], torch.from_numpy(logits)

    def forward(self, batch: Any, **_: Any) -> Any:
        return self.adapter.outputs(batch, self.logits[batch.index.cpu()])


@contextlib.contextmanager
def entered(
    configs: Mapping[str, ExperimentConfig], logits: Callable[[AnyTask], np.ndarray]
) -> Iterator[Path]:
    """A temporary current folder with configurations of these names and a checkpoint.

    Args:
        configs: by file name.
        logits: what the network of a task says.
    """
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, config in configs.items():
                Path(name).write_text(dump_config(config), encoding="utf-8")
            torch.save({}, CHECKPOINT)
            stub = patch(
                "common.evaluation.checkpoints.load_model",
                lambda task, *_: Stub(task, logits(task)).eval(),
            )
            with stub:
                yield Path(folder).resolve()
        finally:
            os.chdir(before)


def command(main: Any, arguments: Sequence[str], *loggers: str) -> tuple[list[str], list[str]]:
    """Runs an entry point; returns its printed lines and the lines of these loggers."""
    printed, logs = io.StringIO(), [LogLines(name) for name in loggers]
    with contextlib.ExitStack() as stack:
        for log in logs:
            stack.enter_context(log)
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(patch.object(sys, "argv", ["", *arguments]))
        main()
    return printed.getvalue().splitlines(), [line for log in logs for line in log.lines]


def name_before(names: Sequence[str], suffix: str) -> str | None:
    """What comes before a suffix in the only name that has it."""
    found = [Path(name).name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return found[0] if found else None
