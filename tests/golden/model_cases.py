"""Golden models: outputs, loss, gradients and frozen parameters of whole task models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from common.batch import Lengths, Text
from common.config import parse_config
from common.data.tokenization import Tokenizer
from common.modeling.official_names import OfficialNames
from tests.golden.harness import Case, Report, statistics, weight
from tests.golden.unit_cases import no_dropout, seed_module, tokens
from vcr.config import VCRConfig
from vcr.dataset import VCRBatch
from vcr.task import VCRTask
from vcr.text import assemble_text

BUILT = {"vcr": (VCRTask, VCRConfig)}
RULE_SEEDED = "the file lists the value that the rule gave, not the one after a training forward"
RULE_WORDS = "describes option mixes in words; tests/test_cfgs.py and tests/vcr run them"


def task_name(case: Case) -> str:
    return str(case.document["module"]).split(".")[0]


def build_task(case: Case, **changes: Any) -> VCRTask:
    """The task of a case; its vocabulary is the folder of that name beside the file, or in a sibling area."""
    task_class, schema = BUILT[task_name(case)]
    config = parse_config(schema, case.document["config"], case.name)
    name = config.NETWORK.BERT_MODEL_NAME
    folders = [case.path.parent / name, *(case.root / area / name for area in ("model", "data/fixture"))]
    vocabulary = next(folder for folder in folders if folder.is_dir())
    network = config.NETWORK.model_copy(update={"BERT_MODEL_NAME": str(vocabulary), **changes})
    return task_class(config.model_copy(update={"NETWORK": network}))


def build_model(case: Case, task: VCRTask, salt: str | None = None) -> torch.nn.Module:
    """The task's model, seeded by the rule, without dropout."""
    model = task.build_model()
    no_dropout(model)
    salt = case.document["salt"] if salt is None else salt
    seed_module(model, task.names, salt, case.document["norm_weights"])
    return model.train()


def vcr_batch(task: VCRTask, arrays: dict[str, np.ndarray]) -> VCRBatch:
    """Our batch from the reference's padded arguments."""
    network = task.config.NETWORK
    boxes = arrays["boxes"]
    real = boxes[:, :, 3] > -0.5
    flat = torch.from_numpy(boxes[real])
    sequences = []
    special = special_ids(task)
    for question, choices in zip(arrays["question"], arrays["answer_choices"], strict=True):
        sequences += [
            assemble_text(
                tokens(question[:, 0], question[:, 1]),
                tokens(choice[:, 0], choice[:, 1]),
                cls_id=special[0],
                sep_id=special[1],
                answer_first=network.ANSWER_FIRST,
                one_sentence=network.QA_ONE_SENT,
            )
            for choice in choices
        ]
    count = len(boxes)
    label = arrays.get("answer_label")
    return VCRBatch(
        record_ids=tuple(str(index) for index in range(count)),
        index=torch.arange(count),
        images=torch.from_numpy(arrays["image"]) if "image" in arrays else None,
        num_boxes=Lengths.of(real.sum(1).tolist()),
        text=Text(
            per_image=Lengths.of([arrays["answer_choices"].shape[1]] * count),
            lengths=Lengths.of([len(sequence) for sequence in sequences]),
            ids=torch.from_numpy(np.concatenate([sequence.ids for sequence in sequences])),
            types=torch.from_numpy(np.concatenate([sequence.types for sequence in sequences])),
            tags=torch.from_numpy(np.concatenate([sequence.tags for sequence in sequences])),
        ),
        im_info=torch.from_numpy(arrays["im_info"][:, :4]),
        boxes=flat[:, :4],
        box_classes=flat[:, 5].long(),
        box_masks=torch.from_numpy(arrays["masks"][real]),
        label=None if label is None else torch.from_numpy(label),
    )


def special_ids(task: VCRTask) -> tuple[int, int]:
    tokenizer = Tokenizer.from_directory(task.config.NETWORK.BERT_MODEL_NAME)
    return tokenizer.cls_id, tokenizer.sep_id


def arguments(case: Case, prefix: str = "input.") -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v.copy() for k, v in case.arrays.items() if k.startswith(prefix)}


def run_model(case: Case, report: Report) -> None:
    if task_name(case) not in BUILT:
        report.not_built(task_name(case))
        return
    document, task = case.document, build_task(case)
    model = build_model(case, task)
    batch = vcr_batch(task, arguments(case))
    outputs = model(batch)
    losses = task.losses(outputs, batch)
    loss = task.total(losses)
    allowed = document["suggested_tolerance"]
    report.close("loss", loss.item(), document["loss"], allowed["loss_abs"])
    values = {**losses, "label_logits": outputs.logits, "label": batch.label}
    fraction = torch.nn.functional.one_hot(batch.label, outputs.logits.shape[1]).float().mean()
    values["positive_fraction"] = fraction
    expected = {k: v for k, v in case.arrays.items() if k.startswith("train.")}
    expected.update({f"train.{k}": v for k, v in document["outputs"]["scalars"].items()})
    for name, value in expected.items():
        actual = values[name.removeprefix("train.")].detach().numpy().reshape(np.shape(value))
        report.close(name, actual, value, allowed["outputs_abs"].get(name, 0.0))
    loss.backward()
    compare_gradients(case, report, model, task.names)
    compare_buffers(case, report, model, task.names)
    model = build_model(case, task).eval()
    with torch.no_grad():
        logits = model(batch).logits.numpy()
    name = "eval.label_logits"
    report.close(name, logits, case.arrays[name], allowed["outputs_abs"][name])


def compare_gradients(case: Case, report: Report, model: torch.nn.Module, names: OfficialNames) -> None:
    document, allowed = case.document, case.document["suggested_tolerance"]
    parameters = {names.official(name): parameter for name, parameter in model.named_parameters()}
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    report.equal("frozen parameters", frozen, set(document["frozen_parameters"]))
    unused = set(document["parameters_without_gradient"])
    for name, expected in document["gradients"].items():
        gradient = parameters[name].grad
        if gradient is None:
            report.failures.append(f"{name} has no gradient")
            continue
        norm, _, probe = statistics(name, gradient.numpy(), document["salt"])
        image = "backbone." in name or "roi_head_feature_extractor." in name
        relative = allowed["gradient_rel_image" if image else "gradient_rel"]
        if name in document["noise_gradients"]:
            report.close(f"noise gradient {name}", norm, 0.0, 1e-4 * document["total_grad_norm"])
            continue
        report.close(f"gradient norm of {name}", norm, expected[0], relative * expected[0])
        report.close(f"gradient probe of {name}", probe, expected[2], relative * expected[0])
    for name in unused & set(parameters):
        gradient = parameters[name].grad
        report.close(f"no gradient of {name}", 0.0 if gradient is None else gradient.abs().max(), 0.0, 0.0)


def compare_buffers(case: Case, report: Report, model: torch.nn.Module, names: OfficialNames) -> None:
    salt, norms = case.document["salt"], frozenset(case.document["norm_weights"])
    buffers = {names.official(name): buffer.numpy() for name, buffer in model.named_buffers()}
    for name, expected in case.document.get("buffers_after_train_forward", {}).items():
        if name not in buffers or name.endswith("num_batches_tracked"):
            continue  # an alias, or a counter without influence
        seeded = statistics(name, weight(name, buffers[name].shape, salt, norms), salt)
        if np.allclose(seeded, expected, rtol=1e-6):
            report.skip(f"buffer {name}", RULE_SEEDED)
            continue
        actual = statistics(name, buffers[name], salt)
        report.close(f"buffer {name}", actual[0], expected[0], 1e-4 * max(expected[0], 1e-6))
        report.close(f"probe of buffer {name}", actual[2], expected[2], 1e-3 * max(expected[0], 1e-6))


def run_words(case: Case, report: Report) -> None:
    report.skip(f"{len(case.document['rows'])} option mixes", RULE_WORDS)


RUNNERS = [
    (lambda c: c.folder == ("model",) and "module" in c.document and "args" in c.document, run_model),
    (lambda c: c.folder == ("model",) and "rows" in c.document, run_words),
]
