"""Golden models: outputs, loss, gradients and frozen parameters of whole task models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from common.models.official_names import OfficialNames
from tests.golden.adapter import AnyTask
from tests.golden.adapters import adapter_of, build_task
from tests.golden.harness import Case, Report, statistics, weight
from tests.golden.unit_cases import no_dropout, seed_module

RULE_SEEDED = "the file lists the value that the rule gave, not the one after a training forward"
RULE_UNUSED = "a parameter that no loss reaches is frozen"
RULE_WORDS = "describes option mixes in words; tests/test_cfgs.py and tests/vcr run them"


def build_model(case: Case, task: AnyTask) -> torch.nn.Module:
    """The task's model, seeded by the rule, without dropout."""
    model = task.build_model()
    no_dropout(model)
    seed_module(model, task.state_dict_names, case.document["salt"], case.document["norm_weights"])
    return model.train()


def arguments(case: Case, prefix: str = "input.") -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v.copy() for k, v in case.arrays.items() if k.startswith(prefix)}


def run_model(case: Case, report: Report) -> None:
    adapter, document = adapter_of(case), case.document
    task, arrays = build_task(case, report), arguments(case)
    model, batch = build_model(case, task), adapter.batch(task, arrays)
    compare_entries(case, report, task.state_dict_names.to_official(model.state_dict()))
    outputs = model(batch)
    values = dict.fromkeys(adapter.losses, np.zeros(()))
    if "loss" in document:
        losses = task.losses(outputs, batch)
        loss = task.total(losses)
        report.close("loss", loss.item(), document["loss"], document["suggested_tolerance"]["loss_abs"])
        values |= {name: value.detach().numpy() for name, value in losses.items()}
        loss.backward()
        compare_gradients(case, report, model, task.state_dict_names)
        compare_buffers(case, report, model, task.state_dict_names)
    with torch.no_grad():
        outputs = adapter.everywhere(model, batch, outputs)
    values |= adapter.results(outputs, batch, arrays)
    scalars = {f"train.{name}": value for name, value in document["outputs"]["scalars"].items()}
    compare_outputs(case, report, "train.", values, scalars, adapter.rule_masked)
    report.equal("absent outputs", set(document["outputs"]["none"]) & set(values), set())
    if any(name.startswith("eval.") for name in case.arrays):
        compare_evaluation(case, report, task, batch)


def compare_entries(case: Case, report: Report, state: Mapping[str, torch.Tensor]) -> None:
    """Names, order and shapes of a checkpoint, where the table beside the cases lists them (model README, 1)."""
    table = case.path.with_name("state_dicts.json")
    models = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    if case.path.stem in models:
        expected = [(name, shape) for name, (shape, _) in models[case.path.stem]["state_dict"].items()]
        report.equal("entries", [(name, list(value.shape)) for name, value in state.items()], expected)


def compare_evaluation(case: Case, report: Report, task: AnyTask, batch: Any) -> None:
    """A fresh model in eval mode, and what is predicted with it."""
    adapter, arrays = adapter_of(case), arguments(case)
    model = build_model(case, task).eval()
    with torch.no_grad():
        outputs = model(batch)
    values = adapter.results(outputs, batch, arrays)
    values |= adapter.predictions(task, outputs, batch, case.arrays["eval.label_logits"], arrays)
    compare_outputs(case, report, "eval.", values, {}, adapter.rule_masked)


def compare_outputs(
    case: Case,
    report: Report,
    prefix: str,
    values: Mapping[str, np.ndarray],
    scalars: Mapping[str, float],
    rule_masked: str,
) -> None:
    """Every output that the reference gives; what is masked in ours is left out."""
    allowed = case.document["suggested_tolerance"]["outputs_abs"]
    expected = {name: value for name, value in case.arrays.items() if name.startswith(prefix)}
    for name, value in {**expected, **scalars}.items():
        actual = values[name.removeprefix(prefix)]
        wanted = np.asarray(value)
        masked = np.ma.getmaskarray(actual).reshape(wanted.shape)
        if masked.any():
            report.skip(f"{masked.sum()} numbers of {name}", rule_masked)
        actual = np.ma.getdata(actual).reshape(wanted.shape)
        report.close(name, actual[~masked], wanted[~masked], allowed.get(name, 0.0))


def compare_gradients(case: Case, report: Report, model: torch.nn.Module, names: OfficialNames) -> None:
    document, allowed = case.document, case.document["suggested_tolerance"]
    parameters = {names.official(name): parameter for name, parameter in model.named_parameters()}
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    unused = set(document["parameters_without_gradient"])
    for name in sorted((frozen & unused) - set(document["frozen_parameters"])):
        report.skip(f"{name} is trainable", RULE_UNUSED)
        frozen.remove(name)
    named = {*document["gradients"], *document["frozen_parameters"], *unused}
    report.equal("parameters", set(parameters), named)
    report.equal("frozen parameters", frozen, set(document["frozen_parameters"]))
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
