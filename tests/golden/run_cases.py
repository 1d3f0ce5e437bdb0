"""Golden run support: log lines, output folders, resuming, names of weights."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from common.cli.run import log_file
from common.config.schema import ExperimentConfig, parse_config
from common.config.sections import TrainConfig
from common.errors import CheckpointError
from common.models.official_names import OfficialNames
from common.models.pretrained import load_matching, load_state
from common.training import checkpoint
from common.training.callbacks import Speedometer, ValidationMonitor
from common.training.checkpoint import output_folder
from common.training.step_monitor import PhaseTimes
from tests.golden.callback_cases import ScriptedTask, is_callback, scripted_trainer
from tests.golden.harness import Case, Report, unwrapped

RULE_HYPERS = "no command puts hyper-parameters into the name of the folder"
RULE_COMPLETE = "a whole checkpoint must have every name of the model"
RULE_WRAPPERS = "all 'module.' prefixes of a name are removed"


def metric_values(rule: str, call: int) -> dict[str, float]:
    """The numbers that a rule such as `call k: Acc = 0.1*k` gives to a call."""
    terms = re.findall(r"(\w+) = ([^,]+)", rule)
    return {name: eval(term, {"__builtins__": {}}, {"k": call}) for name, term in terms}


def run_speedometer(case: Case, report: Report) -> None:
    for number, entry in enumerate(case.document["cases"]):
        now = [entry["start_time"]]
        meter = Speedometer(
            entry["batch_size"],
            entry["frequent"],
            entry["batches_per_epoch"],
            entry["epochs"],
            entry["rank"],
            clock=lambda now=now: now[0],
        )
        times, waits = (
            entry["times_data_transfer_forward_backward_optimizer_metric"],
            entry["seconds_between_calls"],
        )
        found = []
        for call, (epoch, batch) in enumerate(entry["epoch_nbatch"]):
            meter.tick(epoch, PhaseTimes(*times))
            if batch % entry["frequent"] == 0:
                values = metric_values(entry["metric_rule"], call) if entry["with_metric"] else {}
                found.append({"call": call, "line": meter.line(batch, values)})
            now[0] += waits[call % len(waits)]
        report.equal(f"[{number}] calls", [f["call"] for f in found], [e["call"] for e in entry["log"]])
        for actual, expected in zip(found, entry["log"], strict=False):
            report.equal(f"[{number}] call {expected['call']}", actual["line"], expected["line"])


def run_create_logger(case: Case, report: Report) -> None:
    for number, entry in enumerate(case.document["cases"]):
        if entry["hypers"]:
            report.skip(f"[{number}]", RULE_HYPERS)
            continue
        with tempfile.TemporaryDirectory() as name:
            compare_log_file(case, report, f"[{number}]", entry, Path(name))


def compare_log_file(case: Case, report: Report, what: str, entry: Mapping[str, Any], root: Path) -> None:
    image_set = {f"{entry['split'].upper()}_IMAGE_SET": entry["image_set"]}
    values = {"OUTPUT_PATH": str(root / entry["root_output_path"]), "DATASET": image_set}
    config = parse_config(ExperimentConfig, values, case.name)
    folder = output_folder(config, entry["config_file"], entry["split"])
    report.equal(f"{what} folder", str(folder.relative_to(root)), entry["output_path"])
    now = datetime.fromisoformat(entry["now"])
    clock = SimpleNamespace(datetime=SimpleNamespace(now=lambda: now))
    log = logging.getLogger()
    level = log.level
    log.setLevel(entry["level"])
    try:
        with patch("common.cli.run.datetime", clock), log_file(folder, entry["config_file"]):
            log.info("hello")
            log.debug("not written")
    finally:
        log.setLevel(level)
    files = [str(path.relative_to(root)) for path in folder.glob("*.log")]
    report.equal(f"{what} files", files, entry["log_files"])
    text = (root / files[0]).read_text(encoding="utf-8")
    matches = re.fullmatch(entry["log_line_regex"], text) is not None
    report.equal(f"{what} line", matches, entry["log_line_matches"])


def run_resume(case: Case, report: Report) -> None:
    for number, entry in enumerate(case.document["cases"]):
        with tempfile.TemporaryDirectory() as name:
            compare_resume(case, report, f"[{number}]", entry, Path(name))


def compare_resume(case: Case, report: Report, what: str, entry: Mapping[str, Any], folder: Path) -> None:
    """The file after epoch i holds best_epoch i and best_val i / 10, in the reference's layout."""
    keys = ("AUTO_RESUME", "RESUME", "BEGIN_EPOCH", "END_EPOCH")
    train: TrainConfig = parse_config(
        ExperimentConfig, {"TRAIN": {key: entry[key] for key in keys}}, case.name
    ).TRAIN
    monitor = ValidationMonitor(dict, ScriptedTask.best_metric)
    trainer = scripted_trainer(
        case,
        [(1.0, 1.0, 1.0)] * entry["END_EPOCH"],
        entry["END_EPOCH"],
        (0.02, 0.01),
        lambda update: 1.0,
        [monitor],
        BEGIN_EPOCH=entry["BEGIN_EPOCH"],
    )
    for epoch in entry["epoch_files"]:
        own = trainer.state_dict()
        best = {"best_epoch": epoch, "best_val": epoch / 10}
        state = {key: own[key] for key in ("state_dict", "optimizer")} | {"validation_monitor": best}
        checkpoint.write(state, checkpoint.epoch_file(folder, "net", epoch))
    try:
        found = checkpoint.find_resume_point(folder, "net", train)
    except CheckpointError:
        report.equal(f"{what} refused", "error" in entry, True)
        return
    report.equal(f"{what} refused", "error" in entry, False)
    report.equal(f"{what} file", found and found.epoch - 1, entry.get("loaded_epoch_file"))
    if found is not None:
        trainer.load_state_dict(found.state, str(found.path), found.epoch)
    report.equal(f"{what} begins at", trainer.state.epoch, entry.get("begin_epoch_after"))
    report.equal(f"{what} monitor", monitor.state_dict(), entry.get("monitor"))


def named_module(names: Sequence[str]) -> nn.Module:
    """A module with one number, 0, under each dotted name."""
    root = nn.Module()
    for dotted in names:
        *path, leaf = dotted.split(".")
        place = root
        for step in path:
            if not hasattr(place, step):
                place.add_module(step, nn.Module())
            place = getattr(place, step)
        place.register_parameter(leaf, nn.Parameter(torch.zeros(())))
    return root


def run_names(case: Case, report: Report) -> None:
    for number, entry in enumerate(case.document["cases"]):
        weights = {key: torch.tensor(float(i + 1)) for i, key in enumerate(entry["checkpoint_keys"])}
        for kind, load in (("strict", load_state), ("partial", load_matching)):
            # Our models carry no wrapper: "module." belongs to the process group.
            model = named_module(list(map(unwrapped, entry["model_keys"])))
            compare_names(report, f"[{number}] {kind}", model, weights, entry[kind], load)


def compare_names(
    report: Report,
    what: str,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Any],
    load: Callable[..., object],
) -> None:
    own = set(dict(model.named_parameters()))
    plain = [unwrapped(key) for key in weights]
    try:
        load(model, weights, OfficialNames(), what)
    except CheckpointError:
        if "error" not in expected and not own <= set(plain):
            report.skip(what, RULE_COMPLETE)
        report.equal(f"{what} refused", "error" in expected or not own <= set(plain), True)
        return
    if "error" in expected and set(plain) == own:
        report.skip(what, RULE_WRAPPERS)
        return
    report.equal(f"{what} refused", "error" in expected, False)
    values = {name: value.item() for name, value in model.named_parameters()}
    report.equal(what, values, {unwrapped(k): v for k, v in expected.get("loaded", {}).items()})


def _each(case: Case, *keys: str) -> bool:
    return is_callback(case, "cases") and set(keys) <= set(case.document["cases"][0])


RUNNERS = [
    (lambda c: _each(c, "epoch_nbatch"), run_speedometer),
    (lambda c: _each(c, "config_file"), run_create_logger),
    (lambda c: _each(c, "epoch_files"), run_resume),
    (lambda c: _each(c, "model_keys"), run_names),
]
