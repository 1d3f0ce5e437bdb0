"""A toy world of a few questions, and the commands of VQA run on it inside this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from scripts.make_toy_data import ToyWorld
from tests.world import ROOT, TINY, CommandWorld
from vqa import predict as predict_command
from vqa import test as test_command
from vqa import val as val_command
from vqa.task import VQATask

SMALL = ToyWorld(tasks=("vqa",), train=12, val=12, test=11, zip=True)


class World(CommandWorld):
    """One copy of the small world, to be spoilt, and the commands on it."""

    task = VQATask
    cfg = ROOT / "cfgs/vqa/toy.yaml"
    commands = {  # noqa: RUF012 - as declared
        "val": val_command.main,
        "test": test_command.main,
        "predict": predict_command.main,
    }
    data_folder = "coco"
    tiny = TINY

    def settings(self, changes: list[str]) -> list[str]:
        return super().settings([f"DATASET.ANSWER_VOCAB_FILE={self.answers}", *changes])

    @property
    def answers(self) -> Path:
        return self.data / "vqa/answers_vqa.txt"

    def questions(self, split: str = "train2014") -> Path:
        return self.data / f"vqa/v2_OpenEnded_mscoco_{split}_questions.json"

    def annotations(self, split: str = "train2014") -> Path:
        return self.data / f"vqa/v2_mscoco_{split}_annotations.json"

    def regions(self) -> Path:
        """The region file of the first picture for training."""
        image = self.records(self.questions())[0]["image_id"]
        return (
            self.data / "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome" / f"{image}.json"
        )

    def records(self, path: Path) -> list[dict]:
        (records,) = (value for value in json.loads(path.read_text()).values() if isinstance(value, list))
        return records

    def edit(self, path: Path, change: Callable[[list[dict]], object]) -> None:
        """Changes the records of a questions or annotations file."""
        content = json.loads(path.read_text())
        (records,) = (value for value in content.values() if isinstance(value, list))
        change(records)
        path.write_text(json.dumps(content))

    def edit_regions(self, change: Callable[[dict], object]) -> None:
        path = self.regions()
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
