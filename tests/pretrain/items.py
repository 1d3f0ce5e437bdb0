"""Tiny data of pre-training written by hand, and a generator whose draws are known."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.config.schema import parse_config
from common.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from pretrain.captions import CaptionDataset, CocoCaptionDataset
from pretrain.config import PretrainConfig
from pretrain.corpus import CorpusDataset

VOCAB = [*SPECIAL_TOKENS, "a", "red", "dog", "cat", "umbrella", "##s", "the", ".", "[unused0]"]
CLASSES = 4
KEPT, HIDDEN, LABELLED = 0.5, 0.0, 0.14
"""Draws for a word or region: left alone; hidden; not hidden, but to be restored."""


class Draws:
    """Repeats given draws."""

    def __init__(self, *draws: float, numbers: tuple[int, ...] = ()) -> None:
        self.draws, self.numbers = list(draws), list(numbers)

    def random(self) -> float:
        return self.draws.pop(0)

    def randrange(self, stop: int) -> int:
        number = self.numbers.pop(0)
        assert number < stop
        return number

    @property
    def used_up(self) -> bool:
        return self.draws == self.numbers == []


def encoded(values: object) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


class Items:
    """A folder with two captions of Conceptual Captions, the same of COCO, and a text."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("bert", "annotations", "val_image", "val_frcnn", "val2017"):
            (root / folder).mkdir()
        (root / "bert/vocab.txt").write_text("\n".join(VOCAB))
        self.tokenizer = Tokenizer.from_directory(root / "bert")
        pixels = np.zeros((10, 20, 3), np.uint8)
        pixels[:, :7, 0] = 200
        for name in ("val_image/1.jpg", "val_image/2.jpg", "val2017/1.jpg", "val2017/2.jpg"):
            Image.fromarray(pixels).save(root / name, quality=100)
        self.records = [
            {"image": "val_image.zip@/1.jpg", "caption": ["A", "dog."], "frcnn": "val_frcnn.0.zip@/1.json"},
            {
                "image": "val_image.zip@/2.jpg",
                "caption": ["red", "umbrellas"],
                "frcnn": "val_frcnn.zip@/2.json",
            },
        ]
        # Surest: the background of the third region, then the second; of equal ones the first in the file.
        self.regions = {
            "num_boxes": 4,
            "image_w": 20,
            "image_h": 10,
            "boxes": encoded([[2, 2, 9, 5], [-4, 1, 30, 5], [0, 0, 4, 4], [3, 3, 6, 6]]),
            "features": encoded([[row] * 2048 for row in (1, 2, 6, 3)]),
            "classes": encoded(
                [[0.25, 0.5, 0.25, 0], [0, 0, 0.375, 0.625], [0.75, 0.25, 0, 0], [0, 0.5, 0, 0.5]]
            ),
        }
        self.coco: dict[str, Any] = {
            "images": [{"id": n, "width": 20, "height": 10, "file_name": f"{n}.jpg"} for n in (2, 3, 1)],
            "annotations": [
                {"id": 7, "image_id": 2, "category_id": 90, "bbox": [2, 2, 8, 4]},
                {"id": 5, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "iscrowd": 1},
                {"id": 6, "image_id": 2, "category_id": 3, "bbox": [4.5, 1, 0.5, 5]},
            ],
            "categories": [{"id": 3}, {"id": 90}],
        }
        self.coco_captions = [
            {"id": 1, "image_id": 2, "caption": "A red dog."},
            {"id": 2, "image_id": 2, "caption": "A cat."},
            {"id": 3, "image_id": 1, "caption": "The cat."},
        ]

    def files(self) -> None:
        (self.root / "val_frcnn.json").write_text("\n".join(map(json.dumps, self.records)))
        for number in (1, 2):
            (self.root / f"val_frcnn/{number}.json").write_text(json.dumps(self.regions))
        captions = {"annotations": self.coco_captions}
        (self.root / "annotations/instances_val2017.json").write_text(json.dumps(self.coco))
        (self.root / "annotations/captions_val2017.json").write_text(json.dumps(captions))

    def config(
        self, name: str, split: str = "train", flip: float = 0, network: dict | None = None, **data: Any
    ) -> PretrainConfig:
        values = {
            "SCALES": [20, 50],
            "RNG_SEED": 5,
            "DATASET": {
                "DATASET": name,
                "DATASET_PATH": str(self.root),
                f"{split.upper()}_IMAGE_SET": "val",
                **data,
            },
            "NETWORK": {
                "IMAGE_FEAT_PRECOMPUTED": True,
                "WITH_REL_LOSS": False,
                "VLBERT": {"visual_region_classes": CLASSES},
                **(network or {}),
            },
            split.upper(): {"FLIP_PROB": flip},
        }
        return parse_config(PretrainConfig, values, "test")

    def captions(self, split: str = "train", **changes: Any) -> CaptionDataset:
        self.files()
        config = self.config("conceptual_captions", split, **changes)
        return CaptionDataset(config, config.DATASET, split, self.tokenizer)

    def coco_set(self, network: dict | None = None, **changes: Any) -> CocoCaptionDataset:
        self.files()
        network = {
            "IMAGE_FEAT_PRECOMPUTED": False,
            "VLBERT": {"visual_region_classes": 81},
            **(network or {}),
        }
        config = self.config("coco_captions", network=network, **changes)
        return CocoCaptionDataset(config, config.DATASET, "train", self.tokenizer)

    def corpus(self, *texts: str, split: str = "train", **changes: Any) -> CorpusDataset:
        paths = [self.root / f"text{number}.doc" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        files = {f"{split.upper()}_ANNOTATION_FILE": "+".join(map(str, paths))}
        config = self.config("general_corpus", split, **{**files, **changes})
        return CorpusDataset(config, config.DATASET, split, self.tokenizer, 0)


def words(sample: Any) -> str:
    (text,) = sample.texts
    assert not text.types.any()
    assert not text.tags.any()
    return " ".join(VOCAB[number] for number in text.ids)


def restored(sample: Any) -> dict[int, str]:
    """What is to be restored at which place of the text."""
    labels = [VOCAB[number] for number in sample.word_labels]
    return dict(zip(sample.masked_token_index.tolist(), labels, strict=True))
