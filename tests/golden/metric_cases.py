"""Golden metrics, in the layouts of the training and of the evaluation area."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.batch import Lengths
from common.training.metrics import (
    Metrics,
    Ratio,
    accuracy,
    cls_accuracy,
    cls_pos_accuracy,
    cls_pos_fraction,
    joint_accuracy,
    loss_meter,
    mvrc_accuracy,
    region_accuracy,
    soft_accuracy,
)
from tests.golden.harness import Case, Report
from vcr.dataset import NUM_CHOICES

RULE_DEAD_METRIC = "the reference never uses this metric"

Outputs = Mapping[str, Tensor]


def _choice_accuracy(outputs: Outputs) -> Ratio:
    logits, labels = outputs["label_logits"], outputs["label"]
    if logits.ndim == 1:  # the choices of all questions in one row, with a mark at each right one
        logits, labels = logits.view(-1, NUM_CHOICES), labels.view(-1, NUM_CHOICES).argmax(1)
    return accuracy(logits, labels)


def _by_label(prefix: str, suffix: str = "") -> Callable[[Outputs], Ratio]:
    return lambda outputs: accuracy(outputs[f"{prefix}_logits{suffix}"], outputs[f"{prefix}_label{suffix}"])


def _region_accuracy(outputs: Outputs) -> Ratio:
    """The reference's boxes are padded; ours are not."""
    logits, labels = outputs["label_logits"], outputs["label"]
    real = labels >= 0
    return region_accuracy(logits[real], labels[real], Lengths.of(real.sum(1).tolist()))


METRICS: dict[str, Callable[[Outputs], Ratio]] = {
    "Accuracy": _choice_accuracy,
    "JointAccuracy": lambda o: joint_accuracy(
        o["answer_label_logits"], o["answer_label"], o["rationale_label_logits"], o["rationale_label"]
    ),
    "SoftAccuracy": lambda o: soft_accuracy(o["label_logits"], o["label"]),
    "RefAccuracy": _region_accuracy,
    "ClsAccuracy": lambda o: cls_accuracy(o["label_logits"], o["label"]),
    "ClsPosAccuracy": lambda o: cls_pos_accuracy(o["label_logits"], o["label"]),
    "ClsPosFraction": lambda o: cls_pos_fraction(o["label"]),
    "RelationshipAccuracy": _by_label("relationship"),
    "MLMAccuracy": _by_label("mlm"),
    "MLMAccuracyWVC": _by_label("mlm", "_wvc"),
    "MLMAccuracyAUX": _by_label("mlm", "_aux"),
    "MVRCAccuracy": lambda o: mvrc_accuracy(o["mvrc_logits"], o["mvrc_label"]),
}
LOSSES = {"AnsLoss": "ans_loss", "CNNRegLoss": "cnn_regularization_loss"}
DEAD = ("PositiveFraction",)


def ratio_of(kind: str, loss: str | None, outputs: Outputs) -> Ratio:
    """What a metric class adds for one step."""
    if kind in METRICS:
        return METRICS[kind](outputs)
    return loss_meter(outputs, loss or LOSSES[kind], next(iter(outputs.values())))


def running(
    kind: str, loss: str | None, updates: Sequence[Outputs]
) -> tuple[list[float], tuple[float, float]]:
    """The value before any update and after each, and the final sum and count."""
    metrics, name = Metrics(), "metric"
    values = [metrics.compute().get(name, math.nan)]
    for outputs in updates:
        metrics.update({name: ratio_of(kind, loss, outputs)})
        values.append(metrics.compute()[name])
    return values, metrics.state_dict()[name]


def padding_can_win(kind: str, updates: Sequence[Outputs]) -> bool:
    """Whether the largest logit of a row is a padded box, which the reference may choose."""
    if kind != "RefAccuracy":
        return False
    return any((o["label"].gather(1, o["label_logits"].argmax(1, keepdim=True)) < 0).any() for o in updates)


def allowed(value: float) -> float:
    """The reference counts in single precision."""
    return 2e-6 * max(1.0, abs(value))


def compare(report: Report, what: str, actual: float, expected: Any) -> None:
    expected = float(expected)
    report.close(what, actual, expected, allowed(0.0 if math.isnan(expected) else expected))


def run_evaluation_metrics(case: Case, report: Report) -> None:
    for number, entry in enumerate(case.document["cases"]):
        what = f"[{number}] {entry['metric']}"
        if entry["metric"] in DEAD:
            report.skip(what, RULE_DEAD_METRIC)
            continue
        updates = [{name: torch.tensor(value) for name, value in u.items()} for u in entry["updates"]]
        values, (total, count) = running(entry["metric"], entry["kwargs"].get("output_name"), updates)
        report.equal(f"{what} before any update", math.isnan(values[0]), entry["initial_is_nan"])
        for place, (actual, expected) in enumerate(zip(values[1:], entry["values"], strict=True)):
            compare(report, f"{what} after {place + 1}", actual, expected)
        compare(report, f"{what} sum", total, entry["sum_metric"])
        compare(report, f"{what} count", count, entry["num_inst"])


def step_outputs(case: Case, data: str) -> list[dict[str, Tensor]]:
    """The outputs of every step, from arrays `<data>.update<i>.<name>`."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in case.arrays.items():
        family, step, name = key.split(".", 2)
        if family == data:
            found.setdefault(step, {})[name] = torch.from_numpy(np.array(value))
    return [found[step] for step in sorted(found, key=lambda step: int(step.removeprefix("update")))]


def run_training_metrics(case: Case, report: Report) -> None:
    kinds: dict[str, list[float]] = {}
    for key, entry in case.document["metrics"].items():
        updates = step_outputs(case, entry["data"])
        if isinstance(entry["name"], list):
            compare_composite(report, key, entry, kinds)
            continue
        if entry["class"] in DEAD:
            report.skip(f"{key} {entry['class']}", RULE_DEAD_METRIC)
            continue
        loss = entry["arguments"][0] if entry["arguments"] else None
        values, _ = running(entry["class"], loss, updates)
        kinds[f"{entry['data']}.{entry['name']}"] = values
        for place, (actual, expected) in enumerate(zip(values, entry["values"], strict=True)):
            compare(report, f"{key} {entry['class']} after {place}", actual, expected)


def compare_composite(report: Report, key: str, entry: Any, kinds: Mapping[str, list[float]]) -> None:
    """Several metrics at once: the last values of each, by name."""
    for kind, name, value in zip(entry["arguments"], entry["name"], entry["values"], strict=True):
        if kind in DEAD:
            report.skip(f"{key} {kind}", RULE_DEAD_METRIC)
        else:
            compare(report, f"{key} {name}", kinds[f"{entry['data']}.{name}"][-1], value)


def _has_metrics(case: Case) -> bool:
    entries = case.document.get("cases") if case.folder == ("eval",) else None
    return bool(entries) and "sum_metric" in entries[0]


RUNNERS = [
    (_has_metrics, run_evaluation_metrics),
    (lambda c: c.folder == ("train",) and "metrics" in c.document, run_training_metrics),
]
