"""A toy world of a few captions and texts, and the commands of pre-training run on it inside this process."""

from __future__ import annotations

from pathlib import Path

from pretrain import val as val_command
from pretrain.task import PretrainTask
from scripts.make_toy_data import ToyWorld
from tests.world import ROOT, TINY, TINY_PIXELS, CommandWorld

SMALL = ToyWorld(tasks=("pretrain",), train=26, val=14, test=2, zip=True)


class World(CommandWorld):
    """One copy of the small world, to be spoilt, and the commands on it."""

    task = PretrainTask
    cfg = ROOT / "cfgs/pretrain/toy_prec.yaml"
    commands = {"val": val_command.main}  # noqa: RUF012 - as declared
    data_folder = "conceptual-captions"
    tiny = [  # noqa: RUF012 - as declared
        *(value for value in TINY if "BATCH_IMAGES" not in value),
        *TINY_PIXELS,
        "TRAIN.BATCH_IMAGES=[4,2]",
        "VAL.BATCH_IMAGES=[4,3]",
        "NETWORK.VLBERT.num_attention_heads=2",
    ]

    @property
    def corpus(self) -> Path:
        """Folder of the texts."""
        return self.data.parent / "en_corpus"

    def settings(self, changes: list[str]) -> list[str]:
        texts = f"{self.corpus}/wiki.doc+{self.corpus}/bc1g.doc"
        values = [
            *self.tiny,
            f"DATASET.0.DATASET_PATH={self.data}",
            f"DATASET.1.TRAIN_ANNOTATION_FILE={texts}",
            f"DATASET.1.VAL_ANNOTATION_FILE={texts}",
            f"NETWORK.BERT_MODEL_NAME={self.bert}",
            *changes,
        ]
        return [part for value in values for part in ("--set", value)]
