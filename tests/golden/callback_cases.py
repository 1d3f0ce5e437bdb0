"""Golden callbacks, through the real trainer: checkpoints, validation, tensorboard.

The inputs of the reference's runs are not in the files: a scripted task has the given losses and gradient norms.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tensorboardX.proto.event_pb2 import Event
from torch import Tensor, nn

from common.config.schema import ExperimentConfig, parse_config
from common.training.callbacks import Callback, Checkpointing, TensorBoard, ValidationMonitor
from common.training.metrics import Ratio
from common.training.optim import Schedule
from common.training.task import Task
from common.training.trainer import Trainer
from tests.common.training.toy import toy_batch
from tests.golden.harness import Case, LogLines, Report, unwrapped
from tests.golden.train_cases import RULE_GROUPS, RULE_UNDIVIDED

RULE_INPUTS = "the inputs of the run, which decide this value, are not in the file"
RULE_BEST = "the best checkpoint does not depend on CHECKPOINT_FREQUENT"
RULE_WRAPPED = "one process has no wrapper: names start with 'module.' when several train"

TOTAL_NORM = "grad-para/Total-Norm"


class Scripted(nn.Module):
    """Two layers' worth of parameters whose only use is to receive a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(2, 1)
        nn.init.constant_(self.lin.weight, 0.5)
        nn.init.constant_(self.lin.bias, 0.25)

    def forward(self, batch: Any) -> Tensor:
        return self.lin.weight.sum()


class ScriptedTask(Task):
    """Step k has the given loss, gradient norm and running accuracy.

    Args:
        losses: of every micro step.
        norms: gradient norm of every micro step.
        accuracies: running values after every micro step.
        batches: micro steps of an epoch, after which running values start anew.
    """

    name = "scripted"
    config_class = ExperimentConfig
    best_metric = "Acc"

    def __init__(
        self,
        config: ExperimentConfig,
        losses: Sequence[float],
        norms: Sequence[float],
        accuracies: Sequence[float],
        batches: int,
    ) -> None:
        super().__init__(config)
        self._losses, self._norms, self._accuracies = losses, norms, accuracies
        self._batches, self._step = batches, -1

    def label_counts(self, batch: Any) -> dict[str, Any]:
        return {}

    def losses(self, outputs: Tensor, batch: Any) -> dict[str, Tensor]:
        self._step += 1
        gradient = self._norms[self._step] / math.sqrt(2)  # two equal entries
        return {"ans_loss": self._losses[self._step] + gradient * (outputs - outputs.detach())}

    def metrics(self, outputs: Tensor, batch: Any, split: str) -> dict[str, Ratio]:
        done = self._step % self._batches
        before = self._accuracies[self._step - 1] * done if done else 0.0
        added = self._accuracies[self._step] * (done + 1) - before
        return {"Acc": Ratio(torch.tensor(added, dtype=torch.float64), torch.tensor(1))}

    def build_dataset(self, split: str) -> Any:
        raise AssertionError("the batches are given")

    def build_model(self) -> nn.Module:
        return Scripted()

    def load_pretrained(self, model: nn.Module) -> None:
        raise AssertionError("nothing is loaded")

    def predictions(self, outputs: Any, batch: Any) -> list[dict[str, Any]]:
        raise AssertionError("nothing is predicted")

    def result_file(self, folder: Path, name: str) -> Path:
        raise AssertionError("nothing is tested")

    def write_predictions(self, records: Any, path: Path) -> None:
        raise AssertionError("nothing is tested")


def scripted_trainer(
    case: Case,
    steps: Sequence[tuple[float, float, float]],
    epochs: int,
    rates: Sequence[float],
    factor: Callable[[int], float],
    callbacks: Sequence[Callback],
    **train: Any,
) -> Trainer:
    """A trainer whose steps have these losses, norms and accuracies.

    Args:
        case: names the configuration.
        steps: loss, norm and accuracy of each micro step.
        epochs: number of epochs.
        rates: initial rate of the weight and of the bias.
        factor: schedule.
        callbacks: of the run.
        train: further keys of TRAIN.
    """
    values = {"END_EPOCH": epochs, "LOSS_LOGGERS": [["ans_loss", "AnsLoss"]], **train}
    config = parse_config(ExperimentConfig, {"TRAIN": values, "LOG_FREQUENT": 1}, case.name)
    losses, norms, accuracies = zip(*steps, strict=True)
    task = ScriptedTask(config, losses, norms, accuracies, len(steps) // epochs)
    model = task.build_model()
    groups = [
        {"params": [parameter], "lr": rate, "initial_lr": rate}
        for parameter, rate in zip(model.parameters(), rates, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    return Trainer(task, model, optimizer, Schedule(optimizer, factor), callbacks=callbacks)


def one_batch() -> Any:
    return toy_batch([[1.0, 1.0]], [[1.0]])


def validation(name: str, values: Sequence[float | None]) -> Callable[[], dict[str, float]]:
    """Each call returns the next value of the metric; None is nan."""
    found = iter([math.nan if value is None else value for value in values])
    return lambda: {name: next(found), "Other": 0.0}


# --- Checkpoints --------------------------------------------------------------------------------------------


class Listing(Callback):
    """Notes the checkpoints in a folder after every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[list[str]] = []

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.files.append(sorted(path.name for path in self.folder.iterdir()))


def run_checkpoints(case: Case, report: Report) -> None:
    for number, run in enumerate(case.document["runs"]):
        with tempfile.TemporaryDirectory() as name:
            compare_checkpoints(case, report, f"[{number}]", run, Path(name))


def compare_checkpoints(case: Case, report: Report, what: str, run: Mapping[str, Any], folder: Path) -> None:
    """One training run: files after every epoch, their content, log lines."""
    epochs, frequent = run["epochs"], run["checkpoint_frequent"]
    names = sorted({name for entry in run["files_after_epoch"] for name in entry["files"]})
    prefix = names[0].rpartition("-")[0]
    monitor = ValidationMonitor(
        validation(run["host_metric_reported_as"], run["val_metric_per_epoch"]), ScriptedTask.best_metric
    )
    listing = Listing(folder)
    rates = saved_rates(run)
    (first, second), factors = next(iter(rates.values())), {e: rate[0] for e, rate in rates.items()}
    keys = {"MODEL_PREFIX": prefix, "CHECKPOINT_FREQUENT": frequent}
    config = parse_config(ExperimentConfig, keys, "checkpoints")
    trainer = scripted_trainer(
        case,
        [(1.0, 1.0, 1.0)] * epochs,
        epochs,
        (1.0, second / first),
        lambda update: factors.get(update - 1, 1.0),
        [monitor, Checkpointing(folder, config, monitor, {}), listing],
    )
    with LogLines("common.training") as log:
        trainer.fit([one_batch()])
    best = f"{prefix}-best.model"
    for entry, found in zip(run["files_after_epoch"], listing.files, strict=True):
        at = f"{what} after epoch {entry['epoch']}"
        report.equal(at, [n for n in found if n != best], [n for n in entry["files"] if n != best])
        if best in entry["files"] or frequent == 1:
            report.equal(f"{at}: best", best in found, best in entry["files"])
        elif best in found:
            report.skip(f"{at}: best", RULE_BEST)
    for name, content in run["checkpoints"].items():
        if name == best and (monitor.best_epoch + 1) % frequent:
            report.skip(f"{what} {name}", RULE_BEST)
        else:
            compare_content(
                report, f"{what} {name}", torch.load(folder / name, weights_only=True), content, run
            )
    compare_log(report, what, run, [line.replace(str(folder), "<dir>") for line in log.lines])


def saved_rates(run: Mapping[str, Any]) -> dict[int, list[float]]:
    """The rates in each epoch's file: an epoch is one update here."""
    found = {}
    for name, content in run["checkpoints"].items():
        epoch = name.rpartition("-")[2].removesuffix(".model")
        if epoch.isdigit():
            found[int(epoch)] = content["lr"]
        else:
            found.setdefault(content["validation_monitor"]["best_epoch"], content["lr"])
    return found


def compare_content(
    report: Report, what: str, state: Mapping[str, Any], content: Mapping[str, Any], run: Mapping[str, Any]
) -> None:
    """A file has at least what the reference's has, under the same names."""
    optimizer = state["optimizer"]
    entry = next(iter(optimizer["state"].values()))
    for name, actual, expected in (
        ("keys", set(state), content["keys"]),
        ("optimizer keys", set(optimizer), content["optimizer_keys"]),
        ("group keys", set(optimizer["param_groups"][0]), content["param_group_has"]),
        ("state keys", set(entry), content["optimizer_state_entry_keys"]),
    ):
        report.equal(f"{what} {name}", set(expected) - actual, set())
    names = content["state_dict_keys"]
    if run["data_parallel_wrapped"]:
        report.skip(f"{what} prefix", RULE_WRAPPED)
        names = list(map(unwrapped, names))
    report.equal(f"{what} names", list(state["state_dict"]), names)
    report.equal(f"{what} groups", len(optimizer["param_groups"]), content["num_param_groups"])
    report.close(f"{what} rates", [g["lr"] for g in optimizer["param_groups"]], content["lr"], 1e-9)
    report.equal(f"{what} monitor", state["validation_monitor"], content["validation_monitor"])
    report.skip(f"{what} weights", RULE_INPUTS)


def compare_log(report: Report, what: str, run: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Lines of the monitor; of the whole run where the best checkpoint is written at the same epochs."""
    monitor = [line for line in lines if line.startswith(("New Best", "Best Val", "Epoch["))]
    report.equal(f"{what} log", monitor, run["log_lines"])

    def without_best(found: Sequence[str]) -> list[str]:
        return [line for line in found if not line.startswith("Save new best")]

    if run["checkpoint_frequent"] == 1:
        report.equal(f"{what} lines", list(lines), run["stdout_lines"])
    else:
        report.skip(f"{what} lines of the best checkpoint", RULE_BEST)
        report.equal(f"{what} lines", without_best(lines), without_best(run["stdout_lines"]))


# --- Tensorboard --------------------------------------------------------------------------------------------


class Writer:
    """Replaces the event file and keeps the scalars by tag."""

    scalars: dict[str, list[list[float]]]

    def __init__(self) -> None:
        self.scalars = {}

    def write_event(self, event: Event) -> None:
        for value in event.summary.value:
            self.scalars.setdefault(value.tag, []).append([event.step, value.simple_value])

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def run_tensorboard(case: Case, report: Report) -> None:
    for setting, tags in case.document.items():
        compare_tags(case, report, setting, {entry["tag"]: entry["step_value"] for entry in tags})


def numbers_of(tags: Mapping[str, Sequence[Sequence[float]]], tag: str) -> list[float]:
    return [value for _, value in tags[tag]]


def tagged_run(case: Case, setting: str, tags: Mapping[str, Any], size: int, writer: Writer) -> None:
    """A run with the losses, norms, accuracies and validations of the tags.

    `setting` spells out the options: `clip_<norm>`, `accumulate_<micro steps>`, `no_scheduler`.
    """
    clip = re.search(r"clip_([\d.]+)", setting)
    losses = [value * size for value in numbers_of(tags, "Train-Loss")]
    norms = dict(tags.get(TOTAL_NORM, []))
    steps = [
        (loss, size * norms.get(step, 0.0), accuracy)
        for step, (loss, accuracy) in enumerate(zip(losses, numbers_of(tags, "Train-Acc"), strict=True))
    ]
    epochs = len(tags["Val-Acc"])
    trainer = scripted_trainer(
        case,
        steps,
        epochs,
        [numbers_of(tags, tag)[0] for tag in sorted(tags) if tag.startswith("Initial-LR/")],
        (lambda update: 1.0) if "no_scheduler" in setting else (lambda update: 1 / (1 + update)),
        [
            Callback(),  # TensorBoard
            ValidationMonitor(validation("Acc", numbers_of(tags, "Val-Acc")), "Acc"),
        ],
        CLIP_GRAD_NORM=float(clip[1]) if clip else -1,
        GRAD_ACCUMULATE_STEPS=size,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("common.training.callbacks.EventsWriter", lambda *_, **__: writer),
    ):
        trainer.callbacks[0] = TensorBoard(Path(folder))
        trainer.fit([one_batch()] * (len(steps) // epochs))


def compare_tags(case: Case, report: Report, setting: str, tags: Mapping[str, Any]) -> None:
    accumulate = re.search(r"accumulate_(\d+)", setting)
    size = int(accumulate[1]) if accumulate else 1
    writer = Writer()
    tagged_run(case, setting, tags, size, writer)
    report.equal(f"{setting} tags", set(writer.scalars), set(tags))
    partial = len(tags["Train-Loss"]) // len(tags["Val-Acc"]) % size
    for tag, expected in tags.items():
        found, what = writer.scalars.get(tag, []), f"{setting} {tag}"
        if partial and (tag == TOTAL_NORM or (tag.startswith("LR/") and "no_scheduler" not in setting)):
            report.skip(what, RULE_GROUPS)
            continue
        report.equal(f"{what} steps", [step for step, _ in found], [step for step, _ in expected])
        scale = 1
        if tag == "Train-Loss" and size > 1:
            scale = size
            report.skip(f"{what} as divided", RULE_UNDIVIDED)
        wanted = [value * scale for _, value in expected]
        report.close(what, [value for _, value in found], wanted, 1e-6 * max(map(abs, wanted)) + 1e-9)


def is_callback(case: Case, *keys: str) -> bool:
    return case.folder == ("eval", "callbacks") and set(keys) <= set(case.document)


def _has_tags(case: Case) -> bool:
    """Every entry is a list of tags with their values."""
    return is_callback(case) and all(
        isinstance(value, list) and isinstance(value[0], dict) and "tag" in value[0]
        for value in case.document.values()
    )


RUNNERS = [
    (lambda c: is_callback(c, "runs") and "files_after_epoch" in c.document["runs"][0], run_checkpoints),
    (_has_tags, run_tensorboard),
]
