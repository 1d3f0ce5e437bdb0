"""A toy world of a few questions, and the commands of VCR run on it inside this process."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.engine.main import run, train_net, train_parser
from scripts.make_toy_data import ToyWorld, make_toy_data
from vcr import test as test_command
from vcr import val as val_command
from vcr.task import VCRTask

ROOT = Path(__file__).parents[2]
CFGS = {"Q2A": ROOT / "cfgs/vcr/toy_q2a.yaml", "QA2R": ROOT / "cfgs/vcr/toy_qa2r.yaml"}
SMALL = ToyWorld(tasks=("vcr",), train=12, val=6, test=5, zip=True)
TINY = [
    "NUM_WORKERS_PER_GPU=0",
    "NETWORK.IMAGE_WIDTH=4",
    "NETWORK.IMAGE_FINAL_DIM=16",
    "NETWORK.VLBERT.visual_size=16",
    "NETWORK.VLBERT.hidden_size=16",
    "NETWORK.VLBERT.intermediate_size=16",
    "NETWORK.VLBERT.num_hidden_layers=1",
    "SCALES=[64, 64]",  # one canvas for both orientations, so that batches do not matter
    "TRAIN.BATCH_IMAGES=4",
    "TRAIN.END_EPOCH=1",
    "TRAIN.WARMUP_STEPS=1",
]


def draw(folder: Path) -> Path:
    make_toy_data(folder, SMALL)
    return folder


class World:
    """One copy of the small world, to be spoilt, and the commands on it.

    Attributes:
        data: folder of the VCR files.
        out: where runs write.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        shutil.copytree(source, folder / "toy")
        self.data = folder / "toy" / "vcr"
        self.bert = folder / "toy" / "bert"
        self.out = folder / "out"
        self.images = self.data / "vcr1images"

    def settings(self, changes: list[str]) -> list[str]:
        paths = [f"DATASET.DATASET_PATH={self.data}", f"NETWORK.BERT_MODEL_NAME={self.bert}"]
        return [part for value in [*TINY, *paths, *changes] for part in ("--set", value)]

    def train(
        self, *changes: str, flags: tuple[str, ...] = (), part: str = "Q2A", cfg: Path | None = None
    ) -> int:
        argv = [
            "--cfg",
            str(cfg or CFGS[part]),
            "--model-dir",
            str(self.out),
            *flags,
            *self.settings(list(changes)),
        ]
        return run(lambda: train_net(train_parser("").parse_args(argv), VCRTask))

    def evaluate(self, command: str, *flags: str, changes: tuple[str, ...] = ()) -> int:
        main: Callable[[], None] = {"val": val_command.main, "test": test_command.main}[command]
        argv = [command, "--result-path", str(self.out / "results"), *flags, *self.settings(list(changes))]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv)
            return run(main)

    def checkpoint(self, part: str = "Q2A") -> Path:
        name = "toy_a" if part == "Q2A" else "toy_r"
        return self.out / "output/toy/vcr" / CFGS[part].stem / "vcr1images_train" / f"{name}-best.model"

    def model(self, part: str, path: Path | None = None) -> tuple[str, ...]:
        letter = "a" if part == "Q2A" else "r"
        return (f"--{letter}-cfg", str(CFGS[part]), f"--{letter}-ckpt", str(path or self.checkpoint(part)))

    def edit(self, split: str, line: int, change: Callable[[dict], object]) -> None:
        """Changes one record of an annotation file."""
        path = self.data / f"{split}.jsonl"
        lines = path.read_text().splitlines()
        record = json.loads(lines[line])
        change(record)
        lines[line] = json.dumps(record)
        path.write_text("\n".join(lines) + "\n")

    def record(self, split: str, line: int = 0) -> dict:
        return json.loads((self.data / f"{split}.jsonl").read_text().splitlines()[line])

    def image(self, split: str = "train", line: int = 0) -> Path:
        return self.images / self.record(split, line)["img_fn"]

    def metadata(self, split: str = "train", line: int = 0) -> Path:
        return self.images / self.record(split, line)["metadata_fn"]

    def edit_metadata(self, change: Callable[[dict], object]) -> None:
        path = self.metadata()
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def leftovers(self) -> list[str]:
        """Checkpoints, results and temporary files that a run has written."""
        kept = (".log", ".yaml", ".py")
        return [path.name for path in self.out.rglob("*") if path.is_file() and path.suffix not in kept]
