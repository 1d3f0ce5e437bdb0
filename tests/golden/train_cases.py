"""Golden training: schedules, optimizers, initial values, trajectories of the real trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from common.config.schema import parse_config
from common.training.callbacks import Callback
from common.training.checkpoint import named_parameters
from common.training.optim import AdamW, build_optimizer, build_schedule
from common.training.trainer import Trainer, steps_per_epoch
from tests.golden import load_cases
from tests.golden.adapters import adapter_of, build_task
from tests.golden.harness import Case, Report, statistics, weight
from tests.golden.model_cases import arguments
from tests.golden.unit_cases import no_dropout, seed_module
from vcr.config import VCRConfig

RULE_GROUPS = "a partial group of accumulation never crosses an epoch"
RULE_UNDIVIDED = "Train-Loss is logged undivided"
RULE_NOISE = "the case calls these changes rounding noise"


# --- Schedules and optimizers -------------------------------------------------------------------------------


def train_config(source: str, **values: Any) -> Any:
    return parse_config(VCRConfig, {"TRAIN": values}, source).TRAIN


def close_to(report: Report, what: str, actual: Any, expected: Any, relative: float = 1e-9) -> None:
    """Equal to `relative` of the largest expected number."""
    largest = float(np.abs(np.asarray(expected, np.float64)).max(initial=1e-30))
    report.close(what, actual, expected, relative * largest)


def run_schedules(case: Case, report: Report) -> None:
    for number, table in enumerate(case.document["tables"]):
        options = {
            **table["train_config"],
            "BATCH_IMAGES": table["BATCH_IMAGES"],
            "LR_MULT": table["LR_MULT"],
        }
        train = train_config(case.name, **options)
        names = [*(key for key, _ in table["LR_MULT"]), "other"]
        parameters = {f"{name}.weight": nn.Parameter(torch.zeros(1)) for name in names}
        optimizer = build_optimizer(train, parameters, table["num_gpus"])
        rates = optimizer.param_groups
        what = f"[{number}] {train.LR_SCHEDULE}"
        close_to(report, f"{what} base rates", [group["initial_lr"] for group in rates], table["base_lrs"])
        per_epoch = table["loader_length"] / train.GRAD_ACCUMULATE_STEPS
        schedule = build_schedule(train, optimizer, per_epoch)
        done = int(train.BEGIN_EPOCH * per_epoch)
        found = []
        for update in range(done, done + 1 + len(table["lr"])):
            schedule.apply(update)
            found.append([group["lr"] for group in rates])
        close_to(report, f"{what} before", found[0], table["initial"])
        close_to(report, f"{what} rates", found[1:], table["lr"])
    run_plateau(case, report, case.document["plateau"])


def run_plateau(case: Case, report: Report, plateau: Mapping[str, Any]) -> None:
    train = train_config(
        case.name, LR_SCHEDULE="plateau", LR_FACTOR=plateau["LR_FACTOR"], LR=plateau["base_lr"]
    )
    optimizer = build_optimizer(train, {"weight": nn.Parameter(torch.zeros(1))}, 1)
    schedule = build_schedule(train, optimizer, 1.0)
    found = []
    for value in plateau["validation_value_at_epoch_start"]:
        schedule.after_validation(float(value))
        schedule.apply(len(found) + 1)
        found.append(optimizer.param_groups[0]["lr"])
    close_to(report, "plateau", found, plateau["lr"])


def optimizer_of(case: Case, setting: Mapping[str, Any], parameters: dict[str, nn.Parameter]) -> Any:
    """As a configuration builds it; AdamW alone takes further arguments."""
    options = setting["arguments"]
    if setting["optimizer"] == "AdamW":
        return AdamW(parameters.values(), **{**options, "betas": tuple(options["betas"])})
    keys = {"momentum": "MOMENTUM", "weight_decay": "WD"}
    values = {keys[name]: value for name, value in options.items()}
    return build_optimizer(
        train_config(case.name, OPTIMIZER=setting["optimizer"], BATCH_IMAGES=1, **values), parameters, 1
    )


def run_optimizers(case: Case, report: Report) -> None:
    arrays, rates = case.arrays, case.document["learning_rates"]
    names = [key.removeprefix("input.") for key in arrays if key.startswith("input.") and "grad" not in key]
    for number, setting in enumerate(case.document["settings"]):
        parameters = {name: nn.Parameter(torch.from_numpy(arrays[f"input.{name}"].copy())) for name in names}
        optimizer = optimizer_of(case, setting, parameters)
        for step, rate in enumerate(rates):
            optimizer.param_groups[0]["lr"] = rate
            for name, parameter in parameters.items():
                parameter.grad = torch.from_numpy(arrays[f"input.grad{step}.{name}"].copy())
            optimizer.step()
            for name, parameter in parameters.items():
                what = f"{setting['optimizer']} [{number}] step {step} {name}"
                expected = arrays[f"output.{number}.{step}.{name}"]
                close_to(report, what, parameter.detach().numpy(), expected, 1e-6)


# --- Initial values -----------------------------------------------------------------------------------------


def run_initial_values(case: Case, report: Report) -> None:
    for name, entry in case.document["modules"].items():
        one = Case(case.root, case.path, entry, f"{case.name}/{name}", case.document)
        torch.manual_seed(0)
        task = build_task(one, report)
        state = task.state_dict_names.to_official(task.build_model().state_dict())
        for parameter, expected in entry["parameters"].items():
            if isinstance(expected, str):
                report.skip(f"{name}: {expected}", load_cases.RULE_SPECIAL)
            elif parameter not in state:
                report.failures.append(f"{name}: no parameter {parameter}")
            elif expected[0] == "constant":
                values = state[parameter].numpy()
                report.close(f"{name} {parameter}", values, np.full(values.shape, expected[1]), 1e-7)
            else:
                compare_distribution(report, f"{name} {parameter}", state[parameter].numpy(), expected)


def compare_distribution(report: Report, what: str, values: np.ndarray, expected: list[Any]) -> None:
    """Two draws of one distribution: what chance allows is five standard errors of the difference."""
    _, shape, mean, std, largest, kind = expected
    report.equal(f"{what} shape", list(values.shape), shape)
    error = 5 * math.sqrt(2 / values.size)
    report.close(f"{what} mean", values.mean(dtype=np.float64), mean, error * std)
    report.close(
        f"{what} std", values.std(dtype=np.float64), std, min(error, 0.1 if values.size > 1000 else 1) * std
    )
    if kind == "uniform":
        report.close(f"{what} largest", np.abs(values).max(), largest, 20 / values.size * largest + 1e-5)
    if kind is not None:
        spread = np.asarray(values, np.float64) - values.mean()
        kurtosis = (spread**4).mean() / (spread**2).mean() ** 2
        report.equal(f"{what} distribution", "normal" if kurtosis > 2.4 else "uniform", kind)


# --- Trajectories -------------------------------------------------------------------------------------------


class Recorder(Callback):
    """Keeps what every micro step leaves behind."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[list[float]] = []
        self.norms: list[tuple[int, float]] = []
        self.metrics: list[dict[str, float]] = []

    def on_batch_end(self, trainer: Trainer) -> None:
        self.losses.append(trainer.loss.item())
        self.rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        if trainer.grad_norm is not None:
            self.norms.append((trainer.state.global_batch, trainer.grad_norm.item()))
        self.metrics.append(trainer.metrics.compute())


def trajectory(case: Case, begin_epoch: int = 0) -> tuple[Trainer, list[Any], Recorder]:
    """The trainer of a case with its repeated batches."""
    task = build_task(case)
    train = task.config.TRAIN.model_copy(update={"BEGIN_EPOCH": begin_epoch})
    task = type(task)(task.config.model_copy(update={"TRAIN": train}))
    model, names = task.build_model(), task.state_dict_names
    no_dropout(model)
    seed_module(model, names, case.document["salt"], load_cases.norm_weights(model, names))
    processes = task.config.GPUS.count(",") + 1
    optimizer = build_optimizer(train, named_parameters(model, names), processes)
    length = case.document["loader_length"]
    schedule = build_schedule(train, optimizer, steps_per_epoch(length, train.GRAD_ACCUMULATE_STEPS))
    recorder = Recorder()
    adapter = adapter_of(case)
    batches = [adapter.batch(task, arguments(case, f"batch{index}.")) for index in range(length)]
    return Trainer(task, model, optimizer, schedule, callbacks=[recorder]), batches, recorder


def run_trajectory(case: Case, report: Report) -> None:
    document = case.document
    trainer, batches, recorder = trajectory(case)
    train = trainer.config
    groups = [
        {"parameters": len(group["params"]), "initial_lr": group["initial_lr"]}
        for group in trainer.optimizer.param_groups
    ]
    for number, (actual, expected) in enumerate(zip(groups, document["param_groups"], strict=True)):
        report.equal(f"group {number} size", actual["parameters"], expected["parameters"])
        close_to(report, f"group {number} rate", actual["initial_lr"], expected["initial_lr"])
    before = [group["lr"] for group in trainer.optimizer.param_groups]
    close_to(report, "rates before", before, document["lr_before_first_step"])
    trainer.fit(batches)
    steps = len(recorder.losses)
    if document["loader_length"] % train.GRAD_ACCUMULATE_STEPS:
        # Until the first epoch ends with a partial group both do the same.
        steps = document["loader_length"]
        report.skip(f"everything after micro step {steps}", RULE_GROUPS)
    compare_steps(case, report, recorder, steps, train.GRAD_ACCUMULATE_STEPS)
    if train.GRAD_ACCUMULATE_STEPS > 1:
        report.skip("logged_train_loss", RULE_UNDIVIDED)
    else:
        close_to(report, "logged loss", recorder.losses, document["logged_train_loss"], 1e-5)
    if steps == len(recorder.losses):
        compare_weights(case, report, trainer)
        compare_resumed(case, report, recorder)


def compare_steps(case: Case, report: Report, recorder: Recorder, steps: int, group: int) -> None:
    """The first micro steps; their updates end with the last whole group of accumulation."""
    whole = steps - steps % group
    document, allowed = case.document, case.document["suggested_tolerance"]
    losses = document["loss_per_micro_step"]
    report.equal("micro steps", len(recorder.losses), len(losses))
    close_to(report, "losses", recorder.losses[:steps], losses[:steps], allowed["loss_rel"])
    for number, rates in document["lr_per_micro_step"].items():
        found = [rate[int(number)] for rate in recorder.rates]
        close_to(report, f"rates of group {number}", found[:whole], rates[:whole])
    norms = [(step, norm) for step, norm in document["total_grad_norm"] if step < whole]
    found_norms = [(step, norm) for step, norm in recorder.norms if step < whole]
    report.equal("steps with a norm", [step for step, _ in found_norms], [step for step, _ in norms])
    for (step, actual), (_, expected) in zip(found_norms, norms, strict=False):
        report.close(f"norm at {step}", actual, expected, allowed["total_grad_norm_rel"] * expected)
    adapter, length = adapter_of(case), document["loader_length"]
    arrays = [arguments(case, f"batch{index}.") for index in range(length)]
    for name, values in document["metrics_per_micro_step"].items():
        if adapter.differs(name, arrays):
            report.skip(name, adapter.rule_masked)
            continue
        found = [metrics[name] for metrics in recorder.metrics]
        largest = max(map(abs, values), default=0.0)
        report.close(name, found[:steps], values[:steps], max(allowed["loss_rel"] * largest, 1e-6))


def compare_weights(case: Case, report: Report, trainer: Trainer) -> None:
    document, allowed = case.document, case.document["suggested_tolerance"]
    salt, norms = (
        document["salt"],
        frozenset(load_cases.norm_weights(trainer.model, trainer.task.state_dict_names)),
    )
    parameters = named_parameters(trainer.model, trainer.task.state_dict_names)
    noise = {name for name, _ in document["noise_parameters"]}
    loose = {name for name, _ in document["loose_parameters"]}
    fixed = set(document["unchanged_parameters"])
    report.equal("parameters", set(parameters), set(document["change"]) | fixed | noise)
    for name, parameter in parameters.items():
        values = parameter.detach().numpy()
        start = weight(name, values.shape, salt, norms)
        if name in fixed:
            report.equal(f"{name} unchanged", values, start)
            continue
        if name in noise:
            report.skip(name, RULE_NOISE)
            continue
        kinds = [("final", values, allowed["final_rel"])]
        change = allowed["change_rel_loose" if name in loose else "change_rel"]
        kinds.append(("change", np.asarray(values, np.float64) - start, change))
        for kind, array, relative in kinds:
            actual, expected = statistics(name, array, salt), document[kind][name]
            report.close(f"{kind} norm of {name}", actual[0], expected[0], relative * expected[0])
            report.close(f"{kind} probe of {name}", actual[2], expected[2], relative * expected[0])


def compare_resumed(case: Case, report: Report, whole: Recorder) -> None:
    """A run stopped at an epoch and continued by another trainer is the run that never stopped."""
    if (resume := case.document.get("resume")) is None:
        return
    epoch = resume["begin_epoch"]
    first, batches, _ = trajectory(case)
    first.config = first.config.model_copy(update={"END_EPOCH": epoch})
    first.fit(batches)
    second, batches, recorder = trajectory(case, epoch)
    second.load_state_dict(first.state_dict(), case.name, epoch)
    second.fit(batches)
    done = epoch * len(batches)
    report.equal("resumed losses", recorder.losses, whole.losses[done:])
    report.equal("resumed rates", recorder.rates, whole.rates[done:])


def _in_train(case: Case, *keys: str) -> bool:
    return case.folder == ("train",) and set(keys) <= set(case.document)


RUNNERS = [
    (lambda c: _in_train(c, "tables", "plateau"), run_schedules),
    (lambda c: _in_train(c, "settings", "learning_rates"), run_optimizers),
    (lambda c: _in_train(c, "modules"), run_initial_values),
    (lambda c: _in_train(c, "loader_length", "loss_per_micro_step"), run_trajectory),
    *load_cases.RUNNERS,
]
