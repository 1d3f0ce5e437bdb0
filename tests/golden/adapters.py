"""What the runner must know of each task: how the reference's padded arguments and outputs become ours, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from common.batch import Batch, Lengths, Sample, Text, TextSequence
from common.config import parse_config
from common.engine.task import Task
from common.modeling.packing import Padding
from refcoco.dataset import UNKNOWN_REGION, RefCOCOBatch
from refcoco.model import RefCOCOOutputs
from refcoco.task import RefCOCOTask
from tests.golden.harness import Case
from vcr.dataset import VCRBatch
from vcr.model import VCROutputs
from vcr.task import VCRTask
from vcr.text import Tokens, assemble_text
from vqa.dataset import VQABatch, assemble_question
from vqa.model import VQAOutputs
from vqa.task import VQATask

AnyTask = Task[Any, Any, Any]
Arrays = Mapping[str, np.ndarray]

HERE = Path(__file__).parent


def joined(sequences: Sequence[Sequence[TextSequence]]) -> Text:
    """The text sequences of each image as a batch holds them."""
    flat = [sequence for of_image in sequences for sequence in of_image]
    return Text(
        per_image=Lengths.of([len(of_image) for of_image in sequences]),
        lengths=Lengths.of([len(sequence) for sequence in flat]),
        ids=torch.from_numpy(np.concatenate([sequence.ids for sequence in flat])),
        types=torch.from_numpy(np.concatenate([sequence.types for sequence in flat])),
        tags=torch.from_numpy(np.concatenate([sequence.tags for sequence in flat])),
    )


def padded(values: Tensor, lengths: Lengths, fill: float) -> np.ndarray:
    """(sum n_i, ...) to (B, longest, ...) with `fill` behind the rows."""
    rows = Padding.of(lengths)
    real = rows.mask()
    out = rows.pad(values.float())
    if real is not None:
        out[~real] = fill
    return out.numpy()


def placed(values: Tensor, real: np.ndarray) -> np.ma.MaskedArray:
    """(K,) values of real boxes in their slots (B, N); the other slots are masked, we have none."""
    out = np.ma.masked_all(real.shape, np.float32)
    out[real] = values.detach().float().numpy()
    return out


def region_features(arrays: Arrays, real: np.ndarray) -> Tensor | None:
    """Precomputed features, which stand behind the coordinates of the boxes."""
    features = arrays["boxes"][real][:, 4:]
    return torch.from_numpy(features) if features.shape[1] else None


def tokens(ids: np.ndarray, tags: np.ndarray) -> Tokens:
    """The valid part of a padded row."""
    valid = ids > 0
    return Tokens(ids[valid].tolist(), tags[valid].tolist(), [0] * int(valid.sum()))


class Adapter(ABC):
    """One task in the terms of the reference.

    Attributes:
        task_class: the task.
        batch_class: its batches.
        data_folder: folder of the fixture that holds its data.
        dataset: `DATASET.DATASET` where a case names none.
        text: name of the argument that holds the text.
        box_padding: value of padded box rows.
        rule_masked: why we have nothing in some slots of an output.
    """

    task_class: ClassVar[type[AnyTask]]
    batch_class: ClassVar[type[Batch]]
    data_folder: ClassVar[str]
    dataset: ClassVar[str]
    text: ClassVar[str]
    box_padding: ClassVar[float] = -2.0
    rule_masked: ClassVar[str] = ""

    # --- Models ---------------------------------------------------------------------------------------------

    def real(self, boxes: np.ndarray) -> np.ndarray:
        """(B, N) bool: which of padded boxes (B, N, ...) are boxes."""
        return boxes[:, :, 0] > -1.5

    @abstractmethod
    def sequences(self, task: AnyTask, arrays: Arrays) -> list[list[TextSequence]]:
        """The sequences of each image from padded texts."""

    @abstractmethod
    def fields(self, arrays: Arrays, real: np.ndarray) -> dict[str, Any]:
        """What the task's batch has beside the common fields."""

    def batch(self, task: AnyTask, arrays: Arrays) -> Any:
        """Our batch from the reference's padded arguments."""
        boxes = arrays["boxes"]
        real = self.real(boxes)
        images = arrays.get("image")
        return self.batch_class(
            record_ids=tuple(str(index) for index in range(len(boxes))),
            index=torch.arange(len(boxes)),
            images=None if images is None else torch.from_numpy(images),
            num_boxes=Lengths.of(real.sum(1).tolist()),
            text=joined(self.sequences(task, arrays)),
            im_info=torch.from_numpy(arrays["im_info"][:, :4]),
            boxes=torch.from_numpy(boxes[real][:, :4]),
            **self.fields(arrays, real),
        )

    @abstractmethod
    def results(self, outputs: Any, batch: Any, arrays: Arrays) -> dict[str, np.ndarray]:
        """Outputs and labels under the reference's names and in its shape; masked where we have none."""

    def predictions(
        self, task: AnyTask, outputs: Any, batch: Any, logits: np.ndarray, arrays: Arrays
    ) -> dict[str, np.ndarray]:
        """What the model gives beside logits in evaluation; `logits` are the reference's."""
        return {}

    def differs(self, metric: str, batches: Sequence[Arrays]) -> bool:
        """Whether a training metric differs on purpose (`rule_masked`) with these padded arguments."""
        return False

    @abstractmethod
    def outputs(self, batch: Any, rows: Tensor) -> Any:
        """Our outputs from stored logits of the records of a batch, longer than needed where boxes differ."""

    # --- Data -----------------------------------------------------------------------------------------------

    def defaults(self, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options that a data case needs beside those that it names; `folder` is the fixture."""
        return {}

    def label(self, batch: Any) -> dict[str, np.ndarray]:
        """The labels of a batch under the reference's names."""
        return {} if batch.label is None else {"label": batch.label.numpy()}

    def batch_arrays(self, task: AnyTask, batch: Any) -> dict[str, np.ndarray]:
        """Boxes, features and labels of a batch under the reference's names; pictures and texts apart."""
        arrays = {
            "boxes": padded(batch.boxes, batch.num_boxes, self.box_padding),
            "im_info": batch.im_info.numpy(),
            **self.label(batch),
        }
        if batch.box_features is not None:
            features = padded(batch.box_features, batch.num_boxes, self.box_padding)
            arrays["box_features"] = features
            arrays["box_features_head"] = features[..., :16]
            arrays["box_features_sum"] = features.sum(-1, dtype=np.float64)
            arrays["box_features_sqsum"] = (features.astype(np.float64) ** 2).sum(-1)
        return arrays

    def sample_texts(
        self, task: AnyTask, dataset: Any, sample: Sample, start: int
    ) -> tuple[dict[str, np.ndarray], list[TextSequence]]:
        """Texts of a sample under the reference's names, and the sequences that the model makes of them."""
        (sequence,) = sample.texts
        empty = self.sequences(task, {self.text: np.zeros((1, 0), np.int64)})[0][0]
        pieces = sequence.ids[1 : len(sequence) - len(empty) + 1]
        return {self.text: pieces}, self.sequences(task, {self.text: pieces[None]})[0]


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
        conditions, choices = dataset.texts(dataset.records[sample.index], start)
        choice = "answer" if task.config.DATASET.TASK == "Q2A" else "rationale"
        texts = {f"question.{i}": text for i, text in enumerate(conditions)}
        texts |= {f"{choice}_choices.{i}": text for i, text in enumerate(choices)}
        if len(conditions) == 1:
            texts["question"] = conditions[0]
        arrays = {n: np.array([t.ids, t.tags, t.align], np.int64).T for n, t in texts.items()}
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
    rule_masked = "B29: padded boxes have no score and are never chosen (design 2)"

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


ADAPTERS: dict[str, Adapter] = {"vcr": VCRAdapter(), "vqa": VQAAdapter(), "refcoco": RefCOCOAdapter()}


def task_name(case: Case) -> str:
    return str(case.document["module"]).split(".")[0]


def adapter_of(case: Case) -> Adapter | None:
    """The adapter of the task that a case's module belongs to; None where it is not built."""
    return ADAPTERS.get(task_name(case))


def build_task(case: Case, **changes: Any) -> AnyTask:
    """The task of a case; its vocabulary is the folder of that name beside the file, or in a sibling area."""
    task_class = ADAPTERS[task_name(case)].task_class
    config = parse_config(task_class.config_class, case.document["config"], case.name)
    name = config.NETWORK.BERT_MODEL_NAME
    folders = [case.path.parent, case.root / "model", case.root / "data" / "fixture", HERE / "model"]
    vocabulary = next((folder / name for folder in folders if (folder / name).is_dir()), None)
    assert vocabulary is not None, f"{case.name}: no folder {name} in any of {list(map(str, folders))}"
    network = config.NETWORK.model_copy(update={"BERT_MODEL_NAME": str(vocabulary), **changes})
    return task_class(config.model_copy(update={"NETWORK": network}))
