"""The adapters of all tasks, and the task of a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.batch import Sample, TextSequence
from common.config.schema import parse_config
from refcoco.dataset import UNKNOWN_REGION, RefCOCOBatch
from refcoco.model import RefCOCOOutputs
from refcoco.task import RefCOCOTask
from tests.golden.adapter import Adapter, AnyTask, Arrays, padded, placed, region_features
from tests.golden.harness import Case, Report
from tests.golden.pretrain_adapter import PretrainAdapter
from vcr.dataset import VCRBatch
from vcr.model import VCROutputs
from vcr.task import VCRTask
from vcr.text import Tokens, assemble_text
from vqa.dataset import VQABatch, assemble_question
from vqa.model import VQAOutputs
from vqa.task import VQATask

HERE = Path(__file__).parent


def tokens(ids: np.ndarray, tags: np.ndarray) -> Tokens:
    """The valid part of a padded row."""
    valid = ids > 0
    return Tokens(ids[valid].tolist(), tags[valid].tolist())


class VCRAdapter(Adapter):
    """Four choices; boxes with score and class."""

    task_class, batch_class = VCRTask, VCRBatch
    data_folder = dataset = "vcr"
    text = "question"
    box_padding = -1.0

    def real(self, boxes: np.ndarray) -> np.ndarray:
        return boxes[:, :, 3] > -0.5

    def _assembled(
        self, task: AnyTask, conditions: Sequence[Tokens], choices: Sequence[Tokens]
    ) -> list[TextSequence]:
        network, tokenizer = task.config.NETWORK, task.tokenizer
        options = {"answer_first": network.ANSWER_FIRST, "one_sentence": network.QA_ONE_SENT}
        special = {"cls_id": tokenizer.cls_id, "sep_id": tokenizer.sep_id}
        return [assemble_text(c, choice, **special, **options) for c in conditions for choice in choices]

    def sequences(self, task: AnyTask, arrays: Arrays) -> list[list[TextSequence]]:
        question = arrays["question"]
        conditions = question[:, None] if question.ndim == 3 else question
        (choices,) = (value for name, value in arrays.items() if name.endswith("_choices"))

        def rows(texts: np.ndarray) -> list[Tokens]:
            return [tokens(text[:, 0], text[:, 1]) for text in texts]

        return [
            self._assembled(task, rows(of_image), rows(choice))
            for of_image, choice in zip(conditions, choices, strict=True)
        ]

    def fields(self, arrays: Arrays, real: np.ndarray) -> dict[str, Any]:
        label = arrays.get("answer_label")
        return {
            "box_classes": torch.from_numpy(arrays["boxes"][real][:, 5]).long(),
            "box_masks": torch.from_numpy(arrays["masks"][real]),
            "label": None if label is None else torch.from_numpy(label),
        }

    def results(self, outputs: Any, batch: Any, arrays: Arrays) -> dict[str, np.ndarray]:
        found = {"label_logits": outputs.logits.detach().numpy()}
        if batch.label is not None:
            one_hot = torch.nn.functional.one_hot(batch.label, outputs.logits.shape[1])
            found |= {"label": batch.label.numpy(), "positive_fraction": one_hot.float().mean().numpy()}
        return found

    def outputs(self, batch: Any, rows: Tensor) -> VCROutputs:
        return VCROutputs(rows.flatten(1))

    def defaults(self, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        # The mask of an object must have the size of the region head's map.
        return {"NETWORK.IMAGE_C5_DILATED": options.get("DATASET.MASK_SIZE", 14) == 14}

    def batch_arrays(self, task: AnyTask, batch: Any) -> dict[str, np.ndarray]:
        arrays = super().batch_arrays(task, batch)
        label = arrays.pop("label", None)
        choice = "answer" if task.config.DATASET.TASK == "Q2A" else "rationale"
        boxes = torch.cat([batch.boxes, batch.box_classes[:, None].float()], dim=1)
        return arrays | {
            "boxes": padded(boxes, batch.num_boxes, self.box_padding),
            "masks": padded(batch.box_masks, batch.num_boxes, self.box_padding),
            "im_info": torch.cat([batch.im_info, batch.index[:, None]], dim=1).numpy(),
            **({} if label is None else {f"{choice}_label": label}),
        }

    def sample_texts(
        self, task: AnyTask, dataset: Any, sample: Sample, start: int
    ) -> tuple[dict[str, np.ndarray], list[TextSequence]]:
        conditions, choices = dataset.preprocessor.texts(dataset.records[sample.index], start)
        choice = "answer" if task.config.DATASET.TASK == "Q2A" else "rationale"
        texts = {f"question.{i}": text for i, text in enumerate(conditions)}
        texts |= {f"{choice}_choices.{i}": text for i, text in enumerate(choices)}
        if len(conditions) == 1:
            texts["question"] = conditions[0]
        arrays = {n: np.array([t.ids, t.tags], np.int64).T for n, t in texts.items()}
        return arrays, self._assembled(task, conditions, choices)


class VQAAdapter(Adapter):
    """A question, and a score for every answer of the vocabulary."""

    task_class, batch_class = VQATask, VQABatch
    data_folder, dataset = "coco", "vqa"
    text = "question"

    def sequences(self, task: AnyTask, arrays: Arrays) -> list[list[TextSequence]]:
        return [[assemble_question(row[row > 0].tolist(), task.tokenizer)] for row in arrays[self.text]]

    def fields(self, arrays: Arrays, real: np.ndarray) -> dict[str, Any]:
        label = arrays.get("label")
        return {
            "box_features": region_features(arrays, real),
            "label": None if label is None else torch.from_numpy(label),
        }

    def results(self, outputs: Any, batch: Any, arrays: Arrays) -> dict[str, np.ndarray]:
        return {"label_logits": outputs.logits.detach().numpy(), **self.label(batch)}

    def outputs(self, batch: Any, rows: Tensor) -> VQAOutputs:
        return VQAOutputs(rows)

    def defaults(self, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        (own,) = (folder / self.data_folder / "vqa").glob("answers*.txt")
        file = Path(options.get("DATASET.ANSWER_VOCAB_FILE", own))
        lines = file.read_text(encoding="utf-8").splitlines()
        return {
            "DATASET.ANSWER_VOCAB_FILE": str(file),
            "DATASET.ANSWER_VOCAB_SIZE": sum(bool(line.strip()) for line in lines),
            "NETWORK.ENABLE_CNN_REG_LOSS": False,
        }


class RefCOCOAdapter(Adapter):
    """Boxes of a picture, scored one by one."""

    task_class, batch_class = RefCOCOTask, RefCOCOBatch
    data_folder, dataset = "coco", "refcoco+"
    text = "expression"
    rule_masked = "padded boxes have no score and are never chosen"

    def sequences(self, task: AnyTask, arrays: Arrays) -> list[list[TextSequence]]:
        cls_id, sep_id = task.tokenizer.cls_id, task.tokenizer.sep_id
        rows = [np.array([cls_id, *row[row > 0], sep_id]) for row in arrays[self.text]]
        return [[TextSequence(ids, np.zeros_like(ids), np.zeros_like(ids))] for ids in rows]

    def fields(self, arrays: Arrays, real: np.ndarray) -> dict[str, Any]:
        count = len(real)
        return {
            "box_features": region_features(arrays, real),
            "label": torch.from_numpy(arrays["label"][real]) if "label" in arrays else None,
            "ref_id": torch.arange(count),
            "sent_id": torch.arange(count),
            "target": torch.zeros(count, 4),
            "target_region": torch.full((count,), UNKNOWN_REGION),
        }

    def results(self, outputs: Any, batch: Any, arrays: Arrays) -> dict[str, np.ndarray]:
        real = self.real(arrays["boxes"])
        found: dict[str, np.ndarray] = {"label_logits": placed(outputs.logits, real)}
        return found if batch.label is None else found | {"label": placed(batch.label, real)}

    def predictions(
        self, task: AnyTask, outputs: Any, batch: Any, logits: np.ndarray, arrays: Arrays
    ) -> dict[str, np.ndarray]:
        boxes = np.array([record["box"] for record in task.predictions(outputs, batch)])
        chosen = np.take_along_axis(self.real(arrays["boxes"]), logits.argmax(1)[:, None], 1)
        return {"pred_boxes": np.ma.masked_array(boxes, np.broadcast_to(~chosen, boxes.shape))}

    def differs(self, metric: str, batches: Sequence[Arrays]) -> bool:
        return metric == "RefAcc" and not all(self.real(arrays["boxes"]).all() for arrays in batches)

    def outputs(self, batch: Any, rows: Tensor) -> RefCOCOOutputs:
        return RefCOCOOutputs(rows[batch.num_boxes.rows(), batch.num_boxes.positions()])

    def label(self, batch: Any) -> dict[str, np.ndarray]:
        return {} if batch.label is None else {"label": padded(batch.label, batch.num_boxes, -1)}


ADAPTERS: dict[str, Adapter] = {
    "pretrain": PretrainAdapter(),
    "refcoco": RefCOCOAdapter(),
    "vcr": VCRAdapter(),
    "vqa": VQAAdapter(),
}


def adapter_of(case: Case) -> Adapter:
    """The adapter of the task that a case's module belongs to."""
    return ADAPTERS[str(case.document["module"]).split(".")[0]]


def build_task(case: Case, report: Report | None = None) -> AnyTask:
    """The task of a case; its vocabulary is the folder of that name beside the file, or in a sibling area.

    Args:
        case: its document has the configuration.
        report: is told what differs from it.
    """
    adapter = adapter_of(case)
    config = parse_config(adapter.task_class.config_class, case.document["config"], case.name)
    name = config.NETWORK.BERT_MODEL_NAME
    folders = [case.path.parent, case.root / "model", case.root / "data" / "fixture", HERE / "model"]
    vocabulary = next((folder / name for folder in folders if (folder / name).is_dir()), None)
    assert vocabulary is not None, f"{case.name}: no folder {name} in any of {list(map(str, folders))}"
    changes = adapter.network_changes(config)
    if report is not None:
        for key in changes:
            report.skip(f"NETWORK.{key} as configured", adapter.rule_changed)
    network = config.NETWORK.model_copy(update={"BERT_MODEL_NAME": str(vocabulary), **changes})
    return adapter.task_class(config.model_copy(update={"NETWORK": network}))
