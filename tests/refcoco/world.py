"""A toy world of a few sentences, and the commands of RefCOCO run on it inside this process."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refcoco import predict as predict_command
from refcoco import test as test_command
from refcoco.task import RefCOCOTask
from scripts.make_toy_data import ToyWorld
from tests.world import ROOT, CommandWorld

SMALL = ToyWorld(tasks=("refcoco",), train=12, val=6, test=5, zip=True)


class World(CommandWorld):
    """One copy of the small world, to be spoilt, and the commands on it."""

    task = RefCOCOTask
    cfg = ROOT / "cfgs/refcoco/toy.yaml"
    commands = {"test": test_command.main, "predict": predict_command.main}  # noqa: RUF012 - as declared
    data_folder = "coco"

    @property
    def refs(self) -> Path:
        return self.data / "refcoco+/refs(unc).p"

    @property
    def instances(self) -> Path:
        return self.data / "refcoco+/instances.json"

    @property
    def sizes(self) -> Path:
        return self.data / "annotations/instances_train2014.json"

    @property
    def detections(self) -> Path:
        return self.data / "refcoco+/proposal/res101_coco_minus_refer_notime_dets.json"

    def split(self, name: str) -> list[dict[str, Any]]:
        return [ref for ref in pickle.loads(self.refs.read_bytes()) if name in ref["split"]]

    def image(self) -> Path:
        """The picture of the first training sentence."""
        return self.data / f"train2014/COCO_train2014_{self.split('train')[0]['image_id']:012d}.jpg"

    def edit_refs(self, change: Callable[[list[dict[str, Any]]], object]) -> None:
        refs = pickle.loads(self.refs.read_bytes())
        change(refs)
        self.refs.write_bytes(pickle.dumps(refs, protocol=0))

    def edit(self, path: Path, change: Callable[[Any], object]) -> None:
        """Changes a json file."""
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
