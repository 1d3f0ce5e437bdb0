"""The workloads of `workloads.json`: models of full size with random weights, and random batches of fixed row lengths.

Nothing is read from `data/` or `model/`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from common.batch import Batch, TextSequence
from common.config.schema import load_config
from common.data.collate import collate
from common.data.masking import truncated_lengths
from common.training.task import Task
from pretrain.config import PretrainConfig
from pretrain.dataset import PretrainBatch, PretrainSample
from pretrain.model import ResNetVLBERTForPretraining
from pretrain.task import PretrainTask
from refcoco.config import RefCOCOConfig
from refcoco.dataset import RefCOCOBatch, RefCOCOSample
from refcoco.model import ResNetVLBERT as RefCOCOModel
from refcoco.task import RefCOCOTask
from vcr.config import VCRConfig
from vcr.dataset import VCRBatch, VCRSample
from vcr.model import ResNetVLBERT as VCRModel
from vcr.task import VCRTask
from vqa.config import VQAConfig
from vqa.dataset import VQABatch, VQASample
from vqa.model import ResNetVLBERT as VQAModel
from vqa.task import VQATask

ROOT = Path(__file__).resolve().parent.parent
WORKLOADS: dict[str, Any] = json.loads((ROOT / "benchmarks/workloads.json").read_text(encoding="utf-8"))

Workload = Mapping[str, Any]


class Case(NamedTuple):
    """Task, model and batch of a benchmark step."""

    task: Task[Any, Any, Any]
    model: nn.Module
    batch: Batch


class RandomInputs:
    """Draws random samples.

    Args:
        vocab_size: number of word pieces.
    """

    def __init__(self, vocab_size: int) -> None:
        self.rng = np.random.default_rng(0)
        self.vocab_size = vocab_size

    def boxes(self, width: int, height: int, count: int) -> torch.Tensor:
        """Returns (count + 1, 4) float32: the whole image, then random boxes inside it."""
        corners = self.rng.uniform(0, 1, (count, 2, 2)) * (width - 1, height - 1)
        corners.sort(axis=1)
        whole = [[0, 0, width - 1, height - 1]]
        return torch.from_numpy(np.concatenate([whole, corners.reshape(count, 4)])).float()

    def text(self, lengths: Sequence[int], num_boxes: int = 1) -> TextSequence:
        """Returns `[CLS] ... [SEP] ... [SEP]`, texts of these lengths with random words and box tags."""
        size = sum(lengths) + len(lengths) + 1
        return TextSequence(
            ids=self.rng.integers(1, self.vocab_size, size),
            types=(np.arange(size) >= lengths[0] + 2).astype(np.int64),
            tags=self.rng.integers(0, num_boxes, size),
        )

    def fields(self, index: int, size: tuple[int, int], count: int, *, pixels: bool) -> dict[str, Any]:
        """Returns the fields that all samples have, for an image of (width, height) with `count` boxes."""
        width, height = size
        image = self.rng.integers(0, 256, (3, height, width), dtype=np.uint8) if pixels else None
        return {
            "index": index,
            "record_id": str(index),
            "image": None if image is None else torch.from_numpy(image),
            "padded_size": (height, width),
            "im_info": torch.tensor([width, height, 1.0, 1.0]),
            "boxes": self.boxes(width, height, count),
        }


def vcr_case(workload: Workload) -> Case:
    """Pixels, padded to a fixed size; four answers per question."""
    config = load_config(VCRConfig, ROOT / "cfgs" / workload["cfg"])
    inputs, mask = RandomInputs(config.NETWORK.VLBERT.vocab_size), config.DATASET.MASK_SIZE
    samples = []
    for index, (size, count) in enumerate(zip(workload["images"], workload["objects"], strict=True)):
        question = workload["question_tokens"][index]
        answers = workload["answer_tokens"][index]
        fields = inputs.fields(index, size, count, pixels=True)
        fields["padded_size"] = (config.SCALES[0], config.SCALES[1])
        samples.append(
            VCRSample(
                **fields,
                texts=tuple(inputs.text((question, answer), count + 1) for answer in answers),
                box_classes=torch.from_numpy(inputs.rng.integers(0, 81, count + 1)),
                box_masks=torch.from_numpy(inputs.rng.integers(0, 2, (count + 1, mask, mask)).astype(bool)),
                label=torch.tensor(index % 4),
            )
        )
    # `task.build_model` would read a vocabulary to get the ids of [CLS] and [SEP].
    model = VCRModel.from_config(config, special_ids=(101, 102))
    return Case(VCRTask(config), model, collate(samples, VCRBatch))


def vqa_case(workload: Workload) -> Case:
    """Precomputed features, one question per image."""
    config = load_config(VQAConfig, ROOT / "cfgs" / workload["cfg"])
    inputs = RandomInputs(config.NETWORK.VLBERT.vocab_size)
    rows = zip(workload["question_tokens"], workload["regions"], strict=True)
    samples = [
        VQASample(
            **inputs.fields(index, (1000, 600), count, pixels=False),
            texts=(inputs.text((question, 1)),),
            box_features=torch.from_numpy(inputs.rng.random((count + 1, 2048), dtype=np.float32)),
            label=torch.from_numpy(inputs.rng.random(config.DATASET.ANSWER_VOCAB_SIZE, dtype=np.float32)),
        )
        for index, (question, count) in enumerate(rows)
    ]
    return Case(VQATask(config), VQAModel.from_config(config), collate(samples, VQABatch))


def refcoco_case(workload: Workload) -> Case:
    """Pixels, one expression per image."""
    config = load_config(RefCOCOConfig, ROOT / "cfgs" / workload["cfg"])
    inputs = RandomInputs(config.NETWORK.VLBERT.vocab_size)
    rows = zip(workload["images"], workload["regions"], workload["expression_tokens"], strict=True)
    samples = [
        RefCOCOSample(
            **inputs.fields(index, size, count, pixels=True),
            texts=(inputs.text((words,)),),
            label=torch.from_numpy(inputs.rng.integers(0, 2, count + 1)).float(),
            ref_id=torch.tensor(index),
            sent_id=torch.tensor(index),
            target=torch.zeros(4),
            target_region=torch.tensor(1),
        )
        for index, (size, count, words) in enumerate(rows)
    ]
    return Case(RefCOCOTask(config), RefCOCOModel.from_config(config), collate(samples, RefCOCOBatch))


def pretrain_case(workload: Workload) -> Case:
    """Captions with pixels or precomputed features, followed by texts of a corpus."""
    config = load_config(PretrainConfig, ROOT / "cfgs" / workload["cfg"])
    inputs = RandomInputs(config.NETWORK.VLBERT.vocab_size)
    rows = [
        truncated_lengths(words, regions + 1, config.datasets[0].SEQ_LEN)
        for words, regions in zip(workload["caption_tokens"], workload["regions"], strict=True)
    ] + [(words, 0) for words in workload["corpus_tokens"]]
    samples = [
        _pretrain_sample(workload, inputs, index, config.NETWORK.VLBERT.visual_region_classes, *row)
        for index, row in enumerate(rows)
    ]
    model = ResNetVLBERTForPretraining.from_config(config)
    return Case(PretrainTask(config), model, collate(samples, PretrainBatch))


def _pretrain_sample(
    workload: Workload, inputs: RandomInputs, index: int, classes: int, words: int, boxes: int
) -> PretrainSample:
    """Returns a caption of `words` tokens with `boxes` boxes, including the whole image; a text alone if 0."""
    sizes, label_fraction = workload.get("images"), workload["label_fraction"]
    size = sizes[index] if sizes and boxes else (1000, 600)
    fields = inputs.fields(index, size, max(boxes - 1, 0), pixels=bool(sizes and boxes))
    fields["boxes"] = fields["boxes"][:boxes]
    token_index, region_index = (1 + torch.arange(round(label_fraction * count)) for count in (words, boxes))
    text = inputs.text((words - 2,))
    return PretrainSample(
        **fields,
        texts=(dataclasses.replace(text, types=np.zeros_like(text.types), tags=np.zeros_like(text.tags)),),
        box_features=None if sizes else torch.from_numpy(inputs.rng.random((boxes, 2048), dtype=np.float32)),
        relationship=torch.ones(int(boxes > 0), dtype=torch.int64),
        masked_token_index=token_index,
        word_labels=torch.from_numpy(text.ids)[token_index],
        masked_region_index=region_index,
        region_labels=torch.full((len(region_index), classes), 1 / classes),
        masked_regions=torch.isin(torch.arange(boxes), region_index),
        masked_pixel_boxes=fields["boxes"][region_index].long() if sizes else None,
    )


CASES: dict[str, Callable[[Workload], Case]] = {
    "vcr": vcr_case,
    "vqa": vqa_case,
    "refcoco": refcoco_case,
    "pretrain": pretrain_case,
}
"""Builds the case of a workload, by task."""
