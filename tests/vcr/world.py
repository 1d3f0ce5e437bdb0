"""A toy world of a few questions, and the commands of VCR run on it inside this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from scripts.make_toy_data import ToyWorld
from tests.world import ROOT, CommandWorld
from vcr import predict as predict_command
from vcr import test as test_command
from vcr import val as val_command
from vcr.task import VCRTask

CFGS = {"Q2A": ROOT / "cfgs/vcr/toy_q2a.yaml", "QA2R": ROOT / "cfgs/vcr/toy_qa2r.yaml"}
SMALL = ToyWorld(tasks=("vcr",), train=12, val=6, test=5, zip=True)


class World(CommandWorld):
    """One copy of the small world, to be spoilt, and the commands on it."""

    task = VCRTask
    cfg = CFGS["Q2A"]
    commands = {  # noqa: RUF012 - as declared
        "val": val_command.main,
        "test": test_command.main,
        "predict": predict_command.main,
    }
    data_folder = "vcr"

    @property
    def images(self) -> Path:
        return self.data / "vcr1images"

    def checkpoint(self, part: str = "Q2A") -> Path:
        name = "toy_a" if part == "Q2A" else "toy_r"
        return self.out / "output/toy/vcr" / CFGS[part].stem / "vcr1images_train" / f"{name}-best.model"

    def model(self, part: str = "Q2A", path: Path | None = None) -> tuple[str, ...]:
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
