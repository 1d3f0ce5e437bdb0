"""Writes docs/config.md from the configuration classes: `python scripts/make_config_docs.py > docs/config.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from common.config.fields import allowed_text
from common.config.schema import ExperimentConfig, leaves
from common.config.sections import Section
from pretrain.config import PretrainConfig
from refcoco.config import RefCOCOConfig
from vcr.config import VCRConfig
from vqa.config import VQAConfig

TASKS: dict[str, type[ExperimentConfig]] = {
    "vcr": VCRConfig,
    "vqa": VQAConfig,
    "refcoco": RefCOCOConfig,
    "pretrain": PretrainConfig,
}

INTRODUCTION = """\
# Configuration

<!-- Written by scripts/make_config_docs.py; edit the config.py files instead. -->

Every experiment is one yaml file of `cfgs/`. A key that is absent has its default. Unknown keys, wrong types, values
out of range and combinations that cannot work stop the program before it starts, with all problems in one message.

- **Change a value for one run**: `--set TRAIN.LR=1e-5 --set NETWORK.BLIND=true`. The value is yaml; nothing after `=`
  is the empty text. Entries of a list have numbers: `--set DATASET.1.SEQ_LEN=32`.
- **Build on another file**: `_BASE_: base_q2a_4x16G_fp32.yaml` at the top level, relative to the file. Sections are
  merged key by key; everything else, lists included, is replaced.
- **Learning rate**: `TRAIN.LR` is per sample. The rate at the top of the schedule is `TRAIN.LR` x number of processes
  x `TRAIN.BATCH_IMAGES` (the sum, where it is a list) x `TRAIN.GRAD_ACCUMULATE_STEPS`. It follows the number of GPUs
  and the batch size by itself; `TRAIN.WARMUP_STEPS` counts updates and does not.
- **Keys without effect** are accepted, because published files hold them; a value that asks for something is logged.

"Tasks" names the tasks that know the key; in others it is an unknown key. Defaults and values that hold for some
tasks only name them."""


def render() -> str:
    """Returns the text of docs/config.md."""
    parts = [INTRODUCTION]
    for section, keys in _by_section().items():
        parts += [f"\n## {section}\n", "| Key | Tasks | Value | Default | Meaning |", "|---|---|---|---|---|"]
        parts += [_row(f"{section}.{key}" if section != "Top level" else key) for key in keys]
    return "\n".join(parts) + "\n"


def _by_section() -> dict[str, list[str]]:
    """Returns the keys of every section over all tasks, in the order of their declaration."""
    sections: dict[str, list[str]] = {}
    for schema in TASKS.values():
        for dotted, _, _ in leaves(schema()):
            section, _, key = dotted.rpartition(".")
            keys = sections.setdefault(section or "Top level", [])
            if key not in keys:
                keys.append(key)
    return dict(sorted(sections.items(), key=lambda item: list(ORDER).index(item[0])))


ORDER = ("Top level", "DATASET", "NETWORK", "NETWORK.VLBERT", "TRAIN", "VAL", "TEST")


def _row(dotted: str) -> str:
    *parents, key = dotted.split(".")
    sections: dict[str, type[Section]] = {}
    for task, schema in TASKS.items():
        section: Any = schema()
        for name in parents:
            section = getattr(section, name)
        if key in type(section).model_fields:
            sections[task] = type(section)
    fields = {task: section.model_fields[key] for task, section in sections.items()}
    idle = [task for task in fields if dotted in TASKS[task].dead]
    cells = (
        f"`{key}`",
        "all" if len(fields) == len(TASKS) else ", ".join(fields),
        _per_task({task: allowed_text(field) for task, field in fields.items()}),
        _per_task({task: f"`{json.dumps(field.default)}`" for task, field in fields.items()}),
        _meaning(next(iter(sections.values())), key) + _without_effect(idle, len(fields)),
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _meaning(section: type[Section], key: str) -> str:
    """Returns the description of a key from the class that gives one: a default is changed without repeating it."""
    return " ".join(next(filter(None, _descriptions(section, key))).split())


def _descriptions(section: type[Section], key: str) -> Iterator[str | None]:
    for declared in section.__mro__:
        if issubclass(declared, Section) and key in declared.model_fields:
            yield declared.model_fields[key].description


def _without_effect(idle: list[str], count: int) -> str:
    if not idle:
        return ""
    return " No effect." if len(idle) == count else f" No effect in {', '.join(idle)}."


def _per_task(texts: dict[str, str]) -> str:
    """Returns one text where all tasks agree, else each text with its tasks."""
    tasks: dict[str, list[str]] = {}
    for task, text in texts.items():
        tasks.setdefault(text, []).append(task)
    if len(tasks) == 1:
        return next(iter(tasks))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in tasks.items())


if __name__ == "__main__":
    sys.stdout.write(render())
