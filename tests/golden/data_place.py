"""What golden data cases read: their configuration, arrays and random decisions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.config.schema import ExperimentConfig, parse_config
from tests.golden.adapter import Adapter, AnyTask
from tests.golden.harness import Case, fixture, in_fixture, read_arrays

# What data README says of every option that a case does not list.
BATCH_IMAGES = 2
PIXEL_MEANS, PIXEL_STDS = (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)


@dataclass
class Replay:
    """A generator that repeats the decisions of a golden case, whatever the order in which kinds are asked.

    Attributes:
        calls: `[function, value]` of the sample; without a log every probability is 0 or 1.
        name_start: the running counter of person names.
        vocabulary: ids of the words that `choice` gave.
        drawn: how often `random` was called.
    """

    calls: Sequence[tuple[str, Any]] = ()
    name_start: int = 0
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    drawn: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.probabilities = self._of("random") if self.calls else itertools.repeat(0.0)
        self.places, self.words = self._of("randrange"), self._of("choice")

    def _of(self, kind: str) -> Iterator[Any]:
        return iter([value for function, value in self.calls if function == kind])

    def random(self) -> float:
        self.drawn += 1
        return next(self.probabilities)

    def randrange(self, stop: int) -> int:
        return next(self.places, self.name_start % stop)

    def choice(self, numbers: Sequence[int]) -> int:
        return self.vocabulary[next(self.words)]


def data_config(case: Case, adapter: Adapter, options: Mapping[str, Any]) -> ExperimentConfig:
    """The configuration of `options` (dotted keys) over what the README says of all others."""
    values: dict[str, Any] = {"SCALES": [60, 100], "NUM_WORKERS_PER_GPU": 0}
    loops = {f"{loop}.BATCH_IMAGES": BATCH_IMAGES for loop in ("TRAIN", "VAL", "TEST")}
    named = {key: in_fixture(case, value) for key, value in options.items()}
    defaults = {
        "MODULE": "ResNetVLBERT",
        "NETWORK.BERT_MODEL_NAME": str(fixture(case) / "bert"),
        "NETWORK.PIXEL_MEANS": PIXEL_MEANS,
        "NETWORK.PIXEL_STDS": PIXEL_STDS,
        "TRAIN.SHUFFLE": False,
        "TRAIN.FLIP_PROB": 0,
        "TRAIN.ASPECT_GROUPING": False,
        **loops,
    }
    for dotted, value in {**defaults, **adapter.options(fixture(case), named)}.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return parse_config(adapter.task_class.config_class, values, case.name)


def data_task(case: Case, adapter: Adapter, options: Mapping[str, Any]) -> AnyTask:
    return adapter.task_class(data_config(case, adapter, options))


def case_arrays(case: Case, document: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of an entry of a `cases.json`."""
    return read_arrays(case.path.with_name(f"{document.get('same_arrays_as', document['name'])}.npz"))


def start_of(document: Mapping[str, Any], place: int) -> int:
    """The counter of person names before a sample, where there is one."""
    return int(document["person_name_start"][place]) if "person_name_start" in document else 0


def replay(task: AnyTask, document: Mapping[str, Any], place: int) -> Replay:
    calls = document["calls"][place] if "calls" in document else ()
    return Replay(calls, start_of(document, place), task.tokenizer.vocab)


def options_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a case and its dataset, by dotted keys."""
    return {"DATASET.DATASET": document["dataset"], **document["options"]}


def in_data(case: Case, *keys: str) -> bool:
    """A document of a dataset family that has these keys."""
    return case.folder[0] == "data" and isinstance(case.document, dict) and set(keys) <= set(case.document)


def record_keys(case: Case) -> set[str]:
    return set(case.document["records"][0]) if in_data(case, "records") else set()
