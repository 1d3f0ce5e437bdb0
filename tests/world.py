"""A small toy world that tests may modify, and the commands of a task on it, run in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import vl_bert
from common.cli.run import run
from common.cli.train import train_net, train_parser
from common.config.fields import Split
from common.config.schema import load_config
from common.evaluation.checkpoints import load_model
from common.training.task import build_dataloader
from scripts.make_toy_data import ToyWorld, make_toy_data

ROOT = Path(__file__).parents[1]
TINY = [
    "NUM_WORKERS_PER_GPU=0",
    "NETWORK.IMAGE_FINAL_DIM=16",
    "NETWORK.VLBERT.visual_size=16",
    "NETWORK.VLBERT.hidden_size=16",
    "NETWORK.VLBERT.intermediate_size=16",
    "NETWORK.VLBERT.num_hidden_layers=1",
    "TRAIN.BATCH_IMAGES=4",
    "TRAIN.END_EPOCH=1",
    "TRAIN.WARMUP_STEPS=1",
]
# Makes the predictions of a model differ that has hardly been trained.
WIDE_INIT = "NETWORK.VLBERT.initializer_range=0.5"
TINY_PIXELS = [
    "NETWORK.IMAGE_WIDTH=4",
    "NETWORK.PARTIAL_PRETRAIN=",  # no toy detector
    "NETWORK.IMAGE_FROZEN_BACKBONE_STAGES=[]",
    "SCALES=[64, 64]",  # the same padded size for both orientations, so that results do not depend on the batch
]


def draw(folder: Path, world: ToyWorld) -> Path:
    make_toy_data(folder, world)
    return folder


def run_command(*command: object) -> str:
    """Runs a subprocess in the environment of these tests and returns its output."""
    path = f"{sys.prefix}/bin:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "VIRTUAL_ENV": sys.prefix}
    argv = [str(part) for part in command]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class CommandWorld:
    """A copy of a toy world, and the commands of a task on it; each task has a subclass.

    Attributes:
        task: the task.
        cfg: its toy configuration.
        commands: `main` of every command except training, by name.
        data_folder: folder of its data below the toy world.
        tiny: overrides for a tiny model.
        data: path of the copied data folder.
        out: output folder of runs.
    """

    task: ClassVar[type[Any]]
    cfg: ClassVar[Path]
    commands: ClassVar[dict[str, Callable[[], None]]]
    data_folder: ClassVar[str]
    tiny: ClassVar[list[str]] = [*TINY, *TINY_PIXELS]

    def __init__(self, source: Path, folder: Path) -> None:
        shutil.copytree(source, folder / "toy")
        self.data = folder / "toy" / self.data_folder
        self.bert = folder / "toy" / "bert"
        self.out = folder / "out"

    def settings(self, changes: list[str]) -> list[str]:
        paths = [f"DATASET.DATASET_PATH={self.data}", f"NETWORK.BERT_MODEL_NAME={self.bert}"]
        return [part for value in [*self.tiny, *paths, *changes] for part in ("--set", value)]

    def train(self, *changes: str, flags: tuple[str, ...] = (), cfg: Path | None = None) -> int:
        argv = ["--cfg", str(cfg or self.cfg), "--model-dir", str(self.out), *flags]
        argv += self.settings(list(changes))
        with self.working_directory():
            return run(lambda: train_net(train_parser("").parse_args(argv), self.task))

    def evaluate(self, command: str, *flags: str, changes: tuple[str, ...] = ()) -> int:
        return self.command(command, "--result-path", str(self.out / "results"), *flags, changes=changes)

    def command(self, name: str, *flags: str, changes: tuple[str, ...] = ()) -> int:
        argv = [name, *flags, *self.settings(list(changes))]
        with self.working_directory() as patch:
            patch.setattr(sys, "argv", argv)
            return run(self.commands[name])

    @contextmanager
    def working_directory(self) -> Iterator[pytest.MonkeyPatch]:
        """Runs commands in the folder of this world, so that they never find what a former run left in ./output."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.out.parent)
            yield patch

    def checkpoint(self) -> Path:
        """The best checkpoint of a training run."""
        return next((self.out / "output/toy").rglob("*_train")) / "toy-best.model"

    def model(self, path: Path | None = None) -> tuple[str, ...]:
        return ("--cfg", str(self.cfg), "--ckpt", str(path or self.checkpoint()))

    def loaded(self) -> Any:
        return vl_bert.load(self.cfg, self.checkpoint(), "cpu", overrides=self.overrides())

    def overrides(self, *changes: str) -> list[str]:
        """Overrides for functions that take them as a list."""
        return self.settings(list(changes))[1::2]

    def scored(self, cfg: Path, checkpoint: Path, split: Split, *changes: str) -> list[tuple[Any, Any]]:
        """Batches of a split with the outputs of the model."""
        task = self.task(load_config(self.task.config_class, cfg, self.overrides(*changes)))
        model = load_model(task, checkpoint, torch.device("cpu"))
        with torch.inference_mode():
            return [(batch, model(batch)) for batch in build_dataloader(task, split)]

    def leftovers(self) -> list[str]:
        """Names of checkpoints, results and temporary files in the output folder."""
        ignored = (".log", ".yaml", ".py")
        return [path.name for path in self.out.rglob("*") if path.is_file() and path.suffix not in ignored]
