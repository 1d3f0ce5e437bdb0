"""Golden pre-training data beyond single datasets: joint batches, masking alone, paths of unpacked archives."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.batch import Sample
from common.data.masking import mask_regions, mask_words, replacement_words
from common.data.samplers import EpochBatches, ItemKey, JointBatches
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.training.task import build_dataloader
from pretrain.corpus import CorpusDataset
from tests.golden.adapter import AnyTask
from tests.golden.adapters import ADAPTERS
from tests.golden.data_cases import compare_batch, under
from tests.golden.data_place import (
    Replay,
    case_arrays,
    data_task,
    in_data,
    options_of,
    record_keys,
)
from tests.golden.data_unit_cases import RULE_ORDER
from tests.golden.harness import Case, Report, fixture

RULE_PART = "of a path only the number of a part directly before .zip@ is dropped"

PRETRAIN = ADAPTERS["pretrain"]


# --- Joint batches ------------------------------------------------------------------------------------------


class Log:
    """What the reference drew in one step, sample after sample.

    Args:
        calls: `[function, value]`.
        vocabulary: ids of the words.
    """

    def __init__(self, calls: Sequence[tuple[str, Any]], vocabulary: Mapping[str, int]) -> None:
        self.calls, self.vocabulary, self.place = calls, vocabulary, 0

    def replay(self) -> Replay:
        return Replay(self.calls[self.place :], vocabulary=self.vocabulary)

    def advance(self, draws: int) -> None:
        """Goes past so many probabilities, and what was drawn between and after them."""
        while self.place < len(self.calls):
            random = self.calls[self.place][0] == "random"
            if random and not draws:
                return
            draws -= random
            self.place += 1


def words_from(task: AnyTask, source: int, split: str, line: int) -> int:
    """How many words the reference masks of a text that begins at a line, though it may be cut."""
    data = task.config.datasets[source]
    texts = [
        Path(file).read_text(encoding="utf-8").split("\n") for file in data.annotation_file(split).split("+")
    ]
    lines = [line.strip() for line in itertools.chain(*texts) if line.strip()]
    count = 0
    for text in itertools.islice(itertools.cycle(lines), line, line + len(lines)):
        count += len(task.tokenizer.basic(text))
        if count >= data.MIN_SEQ_LEN:
            break
    return count


def run_joint(case: Case, report: Report) -> None:
    document, logs = case.document, []
    task, split = data_task(case, PRETRAIN, options_of(document)), document["mode"]
    report.equal("problems of the configuration", task.config.problems(), [])
    datasets, arrays = task.build_datasets(split), case_arrays(case, document)

    def load(index: int, _: Any, source: int, original: Any) -> Sample:
        draws = logs[-1].replay()
        sample = original(index, draws)
        alone = isinstance(datasets[source], CorpusDataset)
        logs[-1].advance(words_from(task, source, split, index) if alone else draws.drawn)
        return sample

    for source, dataset in enumerate(datasets):
        dataset.load = partial(load, source=source, original=dataset.load)
    task.build_datasets = lambda split: datasets
    loader = build_dataloader(task, split)
    report.equal("len(loader)", len(loader), document["len_loader"])
    report.equal("lengths", [len(part) for part in loader.batch_sampler.samplers], document["lens"])
    for epoch in range(document["epochs"]):
        loader.batch_sampler.set_epoch(epoch)
        batches = iter(loader)
        for _ in range(document["len_loader"]):
            what = f"step{len(logs)}"
            logs.append(Log(document["calls"][len(logs)], task.tokenizer.vocab))
            compare_batch(report, PRETRAIN, task, what, next(batches), under(arrays, f"{what}."))
            report.equal(f"{what} draws", logs[-1].place, len(logs[-1].calls))
        report.equal(f"epoch {epoch} ends", next(batches, None), None)
    report.equal("steps", len(logs), document["steps"])


def run_multi_task(case: Case, report: Report) -> None:
    for number, entry in enumerate(case.document["multi_task"]):
        shuffle = entry["distributed_shuffle"]
        sizes = enumerate(zip(entry["sizes"], entry["batch_sizes"], strict=True))
        parts = [EpochBatches(n, size, shuffle=shuffle, seed=0, source=source) for source, (n, size) in sizes]
        joint = JointBatches(parts)
        report.equal(f"[{number}] len", len(joint), entry["len"])
        keys: list[list[list[ItemKey]]] = []
        for epoch in range(entry["epochs"]):
            joint.set_epoch(epoch)
            keys += [[[k for k in batch if k.source == s] for s in range(len(parts))] for batch in joint]
        steps = [step for step in entry["trace"] if "batch" in step]
        for place, (ours, step) in enumerate(zip(keys, steps, strict=True)):
            what = f"[{number}] step {place}"
            if shuffle:
                report.skip(what, RULE_ORDER)
                report.equal(f"{what} sizes", list(map(len, ours)), list(map(len, step["batch"])))
            else:
                found = [[100 * key.source + key.index for key in batch] for batch in ours]
                report.equal(what, found, step["batch"])
        for source, size in enumerate(entry["sizes"]):
            compare_passes(
                report, f"[{number}] dataset {source}", [batches[source] for batches in keys], size
            )
            compare_epochs(report, f"[{number}]", source, [batches[source] for batches in keys], steps)


def compare_passes(report: Report, what: str, batches: Sequence[Sequence[ItemKey]], size: int) -> None:
    """Every pass takes every item once; the last may be unfinished."""
    passes = itertools.groupby(itertools.chain(*batches), key=lambda key: key.epoch)
    taken = [[key.index for key in keys] for _, keys in passes]
    for number, items in enumerate(taken):
        expected = set(range(size)) if number < len(taken) - 1 else set(items)
        report.equal(f"{what}, pass {number}", (set(items), len(items)), (expected, len(expected)))


def compare_epochs(
    report: Report,
    what: str,
    source: int,
    batches: Sequence[Sequence[ItemKey]],
    steps: Sequence[Mapping[str, Any]],
) -> None:
    """The epoch of the items is that which the reference's sampler last began."""
    began = None
    for place, (batch, step) in enumerate(zip(batches, steps, strict=True)):
        began = next((e for event, s, e in step["events"] if (event, s) == ("iter", source)), began)
        if began is not None:
            report.equal(f"{what} step {place}, dataset {source}", {key.epoch for key in batch}, {began})


# --- Masking ------------------------------------------------------------------------------------------------


def run_masking(case: Case, report: Report) -> None:
    tokenizer = Tokenizer.from_directory(fixture(case) / "bert")
    words = list(tokenizer.vocab)
    for number, entry in enumerate(case.document["random_word_wwm"]):
        drawn = [("choice", words[place % len(words)]) for place in entry["choice_indices"]]
        calls = [("random", draw) for draw in entry["draws"]] + drawn
        rng = Replay(calls, vocabulary=tokenizer.vocab)
        text = mask_words(entry["words"], tokenizer, rng, replacement_words(tokenizer))
        expected = [tokenizer.token_id(token) for token in entry["tokens"]]
        report.equal(f"words [{number}]", text.ids, expected)
        labels = dict(zip(text.masked_positions, text.labels, strict=True))
        found = [labels.get(place, -1) for place in range(len(text.ids))]
        report.equal(f"labels [{number}]", found, entry["labels"])
        report.equal(f"draws [{number}]", rng.drawn, len(entry["draws"]))
    for number, entry in enumerate(case.document["random_mask_region"]):
        scores = np.array(entry["scores"])
        rng = Replay([("random", draw) for draw in entry["draws"]])
        hidden, labelled = mask_regions(len(scores), rng)
        report.equal(f"regions [{number}]", [int(one) for one in hidden], entry["ops"])
        found = scores * np.array(labelled)[:, None]
        report.equal(f"region labels [{number}]", found.tolist(), entry["labels"])


# --- Paths --------------------------------------------------------------------------------------------------


def run_plain_paths(case: Case, report: Report) -> None:
    """A picture and its region file, put where the unpacked archives have them, are found."""
    source = fixture(case) / "conceptual-captions"
    first = json.loads((source / "train_frcnn.json").read_text(encoding="utf-8").splitlines()[0])
    for number, record in enumerate(case.document["records"]):
        regions = re.sub(r"(\.[0-3])?\.zip@", "", record["frcnn"])
        if regions != record["frcnn_plain_mode"]:
            report.skip(record["frcnn"], RULE_PART)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for given, place in ((first["image"], record["image_plain_mode"]), (first["frcnn"], regions)):
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / given.replace(".zip@", ""), folder / place)
            line = json.dumps({**first, "image": record["image"], "frcnn": record["frcnn"]})
            (folder / "train_frcnn.json").write_text(line, encoding="utf-8")
            options = {
                "DATASET.DATASET": PRETRAIN.dataset,
                "DATASET.DATASET_PATH": name,
                "DATASET.TRAIN_IMAGE_SET": "train",
                "NETWORK.WITH_REL_LOSS": False,
            }
            try:
                data_task(case, PRETRAIN, options).build_dataset("train").load(0, Replay())
                found = "read"
            except DataError as error:
                found = str(error)
            report.equal(f"[{number}] {regions}", found, "read")


def _in(case: Case, folder: str, key: str) -> bool:
    return case.folder == ("data", folder) and key in case.document


RUNNERS = [
    (lambda c: in_data(c, "dataset", "mode", "options", "steps"), run_joint),
    (lambda c: "image_plain_mode" in record_keys(c), run_plain_paths),
    (lambda c: _in(c, "units", "random_mask_region"), run_masking),
    (lambda c: _in(c, "samplers", "multi_task"), run_multi_task),
]
