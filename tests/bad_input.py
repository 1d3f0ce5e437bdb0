"""Bad input: corrupt a toy world, run a command on it, expect one error message and no partially written files.

These cases apply to every task; `test_bad_input.py` of a task adds more. Some cases must succeed.
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

Corruption = Callable[[Any], object]
Run = Callable[[Any], int]


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@dataclass(frozen=True)
class Case:
    """A command on a corrupted world, its exit status, and a pattern of its error message."""

    name: str
    run: Run
    status: int
    message: str = ""


def train(*changes: str, corrupt: Corruption = lambda world: None, **kwargs: Any) -> Run:
    return lambda world: (corrupt(world), world.train(*changes, **kwargs))[1]


def yaml_of(text: str) -> Run:
    def run(world: CommandWorld) -> int:
        path = world.data / "mine.yaml"
        path.write_text(f"_BASE_: {world.cfg}\n{text}\n")
        return world.train(cfg=path)

    return run


def truncate(path: Path, fraction: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(fraction * path.stat().st_size)])


def checkpoint(write: Callable[[Path], object], command: str) -> Run:
    def run(world: CommandWorld) -> int:
        path = world.data / "x.model"
        write(path)
        return world.evaluate(command, *world.model(path=path))

    return run


def rewrite_zip(name: str, keep: Callable[[str], bool]) -> Corruption:
    def corrupt(world: CommandWorld) -> None:
        source, target = world.data / name, world.data / "new.zip"
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for member in filter(keep, old.namelist()):
                new.writestr(member, old.read(member))
        target.replace(source)

    return corrupt


def other_shapes(path: Path) -> None:
    torch.save({"state_dict": {"vlbert.end_embedding.weight": torch.zeros(1, 7)}}, path)


def block_output(world: CommandWorld) -> None:
    world.out.write_text("a file where a folder should be")


def resume_from_damaged_checkpoints(world: CommandWorld) -> int:
    assert world.train() == OK
    for path in world.checkpoint().parent.glob("*-0000.model"):
        truncate(path)
    return world.train("TRAIN.END_EPOCH=2")


def resume_from_copied_yaml(world: CommandWorld) -> int:
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
        "invalid choice", yaml_of("TRAIN: {OPTIMIZER: Lion}"), USAGE, r"TRAIN.OPTIMIZER: .*Lion.*SGD.*AdamW"
    ),
    Case("inconsistent widths", train("NETWORK.IMAGE_FINAL_DIM=32"), USAGE, "IMAGE_FINAL_DIM.*visual_size"),
    Case("duplicate key", yaml_of("SCALES: [1, 2]\nSCALES: [1, 2]"), USAGE, "SCALES"),
    Case("invalid yaml", yaml_of("TRAIN: ["), USAGE, "mine.yaml"),
    Case("override without value", train("TRAIN.LR"), USAGE, "--set TRAIN.LR"),
    Case("override of an unknown key", train("TRAIN.RATE=1"), USAGE, "TRAIN.RATE: unknown key"),
    Case("missing config", train(cfg=Path("nowhere/x.yaml")), USAGE, "nowhere/x.yaml: "),
    Case("multiplier without match", train("TRAIN.LR_MULT=[[nothing, 2.0]]"), OK),
    Case(
        "overlapping multipliers",
        train("TRAIN.LR_MULT=[[vlbert, 2.0], [encoder, 1.0]]"),
        USAGE,
        "TRAIN.LR_MULT: the parameter vlbert.* matches both",
    ),
]

FILES = [
    Case("missing data folder", train("DATASET.DATASET_PATH=/nowhere"), FAILED, "/nowhere"),
    Case("missing vocabulary", train("NETWORK.BERT_MODEL_NAME=/nowhere"), FAILED, "/nowhere"),
    Case(
        "missing language weights",
        train("NETWORK.BERT_PRETRAINED=/nowhere/bert"),
        FAILED,
        "NETWORK.BERT_PRETRAINED: /nowhere/bert-0000.model: no such file",
    ),
    Case(
        "missing pre-training checkpoint",
        train(flags=("--partial-pretrain", "/nowhere/x.model")),
        FAILED,
        "NETWORK.PARTIAL_PRETRAIN: /nowhere/x.model: no such file",
    ),
    Case("missing relative checkpoint", train("NETWORK.PARTIAL_PRETRAIN=x.model"), FAILED, "x.model"),
    Case(
        "RESUME without its file",
        train("TRAIN.RESUME=true", "TRAIN.BEGIN_EPOCH=1", "TRAIN.END_EPOCH=2"),
        FAILED,
        r"toy\w*-0000.model: no such file",
    ),
    Case("every checkpoint damaged", resume_from_damaged_checkpoints, FAILED, "can be read"),
    Case("yaml copied by the run", resume_from_copied_yaml, OK),
    Case("log folder is a file", train(flags=("--log-dir", __file__)), USAGE, "--log-dir: .*not writable"),
    Case("output folder is a file", train(corrupt=block_output), USAGE, "OUTPUT_PATH: .*not writable"),
]

IMAGE_WEIGHTS = Case(
    "missing image weights",
    train("NETWORK.IMAGE_PRETRAINED=/nowhere/resnet"),
    FAILED,
    "NETWORK.IMAGE_PRETRAINED: /nowhere/resnet-0000.model: no such file",
)


def evaluation_cases(command: str) -> list[Case]:
    """Cases of the checkpoint and the flags of an evaluation command."""

    def case(name: str, write: Callable[[Path], object], message: str) -> Case:
        return Case(name, checkpoint(write, command), FAILED, f"x.model: {message}")

    def evaluate(world: CommandWorld, *flags: str) -> int:
        return world.evaluate(command, *world.model(path=Path("x")), *flags)

    return [
        case("missing checkpoint", lambda path: None, "no such file"),
        case("truncated checkpoint", lambda path: (other_shapes(path), truncate(path)), "truncated"),
        case("text as checkpoint", lambda path: path.write_text("weights"), ".*not a PyTorch file"),
        case(
            "checkpoint of another model",
            other_shapes,
            "does not belong to the configured model; .*missing",
        ),
        case("checkpoint with code", lambda path: torch.save(Evil(), path), "refused"),
        Case("missing GPU", lambda world: evaluate(world, "--gpus", "7"), USAGE, "--gpus 7: "),
        Case(
            "result folder is a file",
            lambda world: (block_output(world), evaluate(world))[1],
            USAGE,
            "--result-path: .*not writable",
        ),
    ]


def check(
    case: Case, world: CommandWorld, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> None:
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
