"""Cases of bad input: spoil a small world, run a real command on it, see one clear message and nothing half-written.

Here is what concerns every task; a task's `test_bad_input.py` adds its own cases. Cases that need no error are cases
too: the run must end well.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from common.models.pretrained import read_weights
from tests.world import CommandWorld

OK, FAILED, USAGE = 0, 1, 2

Spoil = Callable[[Any], object]
Run = Callable[[Any], int]


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@dataclass(frozen=True)
class Case:
    """Spoils a world, runs a command, and says how it must end."""

    name: str
    run: Run
    status: int
    message: str = ""


def train(*changes: str, spoil: Spoil | None = None, **kwargs: Any) -> Run:
    def run(world: CommandWorld) -> int:
        if spoil:
            spoil(world)
        return world.train(*changes, **kwargs)

    return run


def yaml_of(text: str) -> Run:
    def run(world: CommandWorld) -> int:
        path = world.data / "mine.yaml"
        path.write_text(f"_BASE_: {world.cfg}\n{text}\n")
        return world.train(cfg=path)

    return run


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def checkpoint(write: Callable[[Path], object], command: str) -> Run:
    def run(world: CommandWorld) -> int:
        path = world.data / "x.model"
        write(path)
        return world.evaluate(command, *world.model(path=path))

    return run


def trained_then(spoil: Spoil, **kwargs: Any) -> Run:
    def run(world: CommandWorld) -> int:
        assert world.train() == OK
        spoil(world)
        return world.train("TRAIN.END_EPOCH=2", **kwargs)

    return run


def rewrite_zip(name: str, keep: Callable[[str], bool]) -> Spoil:
    def spoil(world: CommandWorld) -> None:
        source, target = world.data / name, world.data / "new.zip"
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for member in filter(keep, old.namelist()):
                new.writestr(member, old.read(member))
        target.replace(source)

    return spoil


def other_shapes(path: Path) -> None:
    torch.save({"state_dict": {"vlbert.end_embedding.weight": torch.zeros(1, 7)}}, path)


def blocked(world: CommandWorld) -> None:
    world.out.write_text("a file where a folder should be")


def damage_every_checkpoint(world: CommandWorld) -> None:
    for path in world.checkpoint().parent.glob("*-0000.model"):
        cut(path)


def own_copy(world: CommandWorld) -> int:
    assert world.train() == OK
    return world.train(cfg=world.checkpoint().with_name(world.cfg.name))


CONFIGURATION = [
    Case("wrong type", yaml_of("VAL: {FLIP_PROB: many}"), USAGE, r"mine.yaml: VAL.FLIP_PROB: .*many"),
    Case(
        "unknown key",
        yaml_of("NETWORK: {CLASSIFIER_DROPOU: 0.1}"),
        USAGE,
        r"mine.yaml: NETWORK.CLASSIFIER_DROPOU: .*did you mean CLASSIFIER_DROPOUT\?",
    ),
    Case(
        "value not allowed",
        yaml_of("TRAIN: {OPTIMIZER: Lion}"),
        USAGE,
        r"TRAIN.OPTIMIZER: .*Lion.*SGD.*AdamW",
    ),
    Case("widths that differ", train("NETWORK.IMAGE_FINAL_DIM=32"), USAGE, "IMAGE_FINAL_DIM.*visual_size"),
    Case("a key twice", yaml_of("SCALES: [1, 2]\nSCALES: [1, 2]"), USAGE, "SCALES"),
    Case("not yaml", yaml_of("TRAIN: ["), USAGE, "mine.yaml"),
    Case("override without value", train("TRAIN.LR"), USAGE, "--set TRAIN.LR"),
    Case("override of an unknown key", train("TRAIN.RATE=1"), USAGE, "TRAIN.RATE: unknown key"),
    Case(
        "missing config",
        train(cfg=Path("nowhere/x.yaml")),
        USAGE,
        "nowhere/x.yaml.*no such file|nowhere/x.yaml: ",
    ),
    Case("multiplier that matches nothing", train("TRAIN.LR_MULT=[[nothing, 2.0]]"), OK),
    Case(
        "multipliers that overlap",
        train("TRAIN.LR_MULT=[[vlbert, 2.0], [encoder, 1.0]]"),
        USAGE,
        "TRAIN.LR_MULT: the parameter vlbert.* matches both",
    ),
]

FILES = [
    Case("missing data folder", train("DATASET.DATASET_PATH=/nowhere"), FAILED, "/nowhere"),
    Case(
        "missing vocabulary",
        train("NETWORK.BERT_MODEL_NAME=/nowhere"),
        FAILED,
        "/nowhere.*vocab.txt|/nowhere",
    ),
    Case(
        "missing language weights",
        train("NETWORK.BERT_PRETRAINED=/nowhere/bert"),
        FAILED,
        "NETWORK.BERT_PRETRAINED: /nowhere/bert-0000.model: no such file",
    ),
    Case(
        "missing pre-training",
        train(flags=("--partial-pretrain", "/nowhere/x.model")),
        FAILED,
        "NETWORK.PARTIAL_PRETRAIN: /nowhere/x.model: no such file",
    ),
    Case("pre-training without a common name", train("NETWORK.PARTIAL_PRETRAIN=x.model"), FAILED, "x.model"),
    Case(
        "RESUME without its file",
        train("TRAIN.RESUME=true", "TRAIN.BEGIN_EPOCH=1", "TRAIN.END_EPOCH=2"),
        FAILED,
        r"toy\w*-0000.model: no such file",
    ),
    Case("every checkpoint damaged", trained_then(damage_every_checkpoint), FAILED, "can be read"),
    Case("started from its own copy", own_copy, OK),
    Case(
        "unwritable log folder",
        train(flags=("--log-dir", __file__)),
        USAGE,
        "--log-dir: .*not writable",
    ),
    Case("unwritable output folder", train(spoil=blocked), USAGE, "OUTPUT_PATH: .*not writable"),
]

IMAGE_WEIGHTS = Case(
    "missing image weights",
    train("NETWORK.IMAGE_PRETRAINED=/nowhere/resnet"),
    FAILED,
    "NETWORK.IMAGE_PRETRAINED: /nowhere/resnet-0000.model: no such file",
)


def evaluation_cases(command: str) -> list[Case]:
    """What can be wrong with the checkpoint and the flags of a command."""
    return [
        Case("missing checkpoint", checkpoint(lambda path: None, command), FAILED, "x.model: no such file"),
        Case(
            "truncated checkpoint",
            checkpoint(lambda path: (other_shapes(path), cut(path)), command),
            FAILED,
            "x.model: truncated",
        ),
        Case(
            "text as checkpoint",
            checkpoint(lambda path: path.write_text("weights"), command),
            FAILED,
            "x.model: .*not a PyTorch file",
        ),
        Case(
            "checkpoint of another model",
            checkpoint(other_shapes, command),
            FAILED,
            "x.model: does not belong to the configured model; .*missing",
        ),
        Case(
            "checkpoint that runs code",
            checkpoint(lambda path: torch.save(Evil(), path), command),
            FAILED,
            "x.model: refused",
        ),
        Case(
            "GPU that is not there",
            lambda world: world.evaluate(command, *world.model(path=Path("x")), "--gpus", "7"),
            USAGE,
            "--gpus 7: no such GPU",
        ),
        Case(
            "unwritable results",
            lambda world: (blocked(world), world.evaluate(command, *world.model(path=Path("x"))))[1],
            USAGE,
            "--result-path: .*not writable",
        ),
    ]


def check(
    case: Case, world: CommandWorld, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> None:
    """Runs a case."""
    patch.setattr(torch.cuda, "device_count", lambda: 0)
    before = set(world.leftovers()) if world.out.exists() else set()
    status = case.run(world)
    error = capsys.readouterr().err
    assert status == case.status, error
    if case.status == OK:
        read_weights(world.checkpoint())
        return
    assert re.search(case.message, error, re.DOTALL), error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    if world.out.is_dir() and "damaged" not in case.name:
        left = [name for name in world.leftovers() if not name.startswith("events.")]
        assert set(left) <= before | {"pretrained.txt"}
