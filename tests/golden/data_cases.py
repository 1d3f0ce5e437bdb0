"""Golden data: samples and batches of whole datasets, read from the fixture of the same folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from common.batch import Batch, Sample, TextSequence
from common.data.collate import collate
from common.data.samplers import EpochBatches, aspect_groups
from common.errors import DataError, UserError
from common.models.fast_rcnn import ImageNormalizer
from tests.golden import data_unit_cases
from tests.golden.adapter import Adapter, AnyTask, Arrays, joined
from tests.golden.adapters import ADAPTERS
from tests.golden.data_place import (
    Replay,
    case_arrays,
    data_task,
    in_data,
    options_of,
    record_keys,
    replay,
    start_of,
)
from tests.golden.harness import Case, Report
from vcr.dataset import NUM_CHOICES
from vcr.text import PERSON_NAMES

RULE_ALIGN = "alignment matrices are not built"
RULE_SCORE = "a box carries no score, which no model reads"
RULE_CACHE = "datasets keep no pickled copies (layout of our own caches is free)"
RULE_NAMES = "names continue by record, not by visit"
RULE_INDEX = "D17: APPEND_INDEX is refused, batches carry the dataset index"
RULE_RGB = "pictures that are not RGB are converted"
RULE_SPLITS = "every published split can be read"
RULE_ARCHIVE = "region files need no archive"
RULE_UNREADABLE = "a picture that cannot be read is bad data, not a blank picture (DATASET.ON_BAD_DATA)"

APPEND_INDEX, ZIP_MODE = "DATASET.APPEND_INDEX", "DATASET.ZIP_MODE"
GREY_LEVELS = {"image_mean": 0.15, "image_std": 0.15, "image_pool": 0.15, "image_probe": 1.01, "image": 1.01}
COORDINATES, FEATURES = 1e-4, 1e-5


# --- Comparing one array ------------------------------------------------------------------------------------


def pictures(task: AnyTask, batch: Batch) -> dict[str, np.ndarray]:
    """Numbers of the normalised pictures of a batch as the README defines them."""
    if batch.images is None:
        return {"image_none": np.array(True)}
    network = task.config.NETWORK
    sizes, masked_pixel_boxes = batch.im_info[:, :2], getattr(batch, "masked_pixel_boxes", None)
    normal = ImageNormalizer(network.PIXEL_MEANS, network.PIXEL_STDS)(batch.images, sizes, masked_pixel_boxes)
    height, width = normal.shape[2:]
    places = [(int(height * y), int(width * x)) for y in (0.1, 0.5, 0.9) for x in (0.1, 0.5, 0.9)]
    return {
        "image_shape": np.array(normal.shape),
        "image_mean": normal.mean(dim=(2, 3)).numpy(),
        "image_std": normal.std(dim=(2, 3), correction=0).numpy(),
        "image_pool": F.adaptive_avg_pool2d(normal, (4, 6)).numpy(),
        "image_probe": torch.stack([normal[:, :, y, x] for y, x in places], dim=2).numpy(),
        "image": normal.numpy(),
    }


def compare_array(task: AnyTask, report: Report, what: str, actual: Arrays, expected: np.ndarray) -> None:
    """Compares one array of a sample or batch at the tolerance of its kind."""
    name = what.split(".", 1)[1]
    if "align_matrix" in name:
        report.skip(what, RULE_ALIGN)
    elif name == "index_in_batch":
        report.skip(what, RULE_INDEX)
    elif name not in actual:
        report.failures.append(f"{what}: we have nothing of this name")
    elif name in ("boxes", "im_info"):
        compare_columns(report, what, actual[name], expected)
    elif name.startswith("box_features"):
        largest = float(np.abs(expected).max(initial=1.0))
        report.close(what, actual[name], expected, FEATURES * largest)
    elif name in GREY_LEVELS:
        report.close(what, actual[name], expected, GREY_LEVELS[name] / min(task.config.NETWORK.PIXEL_STDS))
    elif name.startswith(("question", "answer_choices", "rationale_choices")) and expected.shape[-1:] == (3,):
        report.equal(what, actual[name], expected[:, :2])
        report.skip(f"{what} word numbers", RULE_ALIGN)
    else:
        report.equal(what, actual[name], expected)


def compare_columns(report: Report, what: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """Four numbers; behind those of a picture its index, behind those of a VCR box its score and class."""
    report.close(what, actual[..., :4], expected[..., :4], COORDINATES)
    if expected.shape[-1] > 4:
        report.equal(f"{what} last column", actual[..., 4:], expected[..., -1:])
    if expected.shape[-1] > 5:
        report.skip(f"{what} scores", RULE_SCORE)


# --- Samples and batches ------------------------------------------------------------------------------------


def columns(texts: Sequence[TextSequence]) -> list[list[list[int]]]:
    return [[list(text.ids), list(text.types), list(text.tags)] for text in texts]


def under(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def is_blank(arrays: Arrays) -> bool:
    """Whether the picture of a sample is zero everywhere: the reference could not read it."""
    return not any(arrays[name].any() if name in arrays else True for name in ("image_mean", "image_std"))


def compare_samples(
    document: Mapping[str, Any], report: Report, adapter: Adapter, task: AnyTask, arrays: Arrays
) -> None:
    dataset = adapter.datasets(task, document["mode"])[-1]
    report.equal("length", len(dataset), document["length"])
    for place, index in enumerate(document["samples"]):
        expected = under(arrays, f"s{index}.")
        try:
            sample = dataset.load(index, replay(task, document, place))
        except DataError:
            if not is_blank(expected):
                raise
            report.skip(f"s{index}", RULE_UNREADABLE)
            continue
        compare_sample(report, adapter, task, dataset, sample, (expected, start_of(document, place)))
        in_order = document["mode"] != "train" and document["samples"] == list(range(len(dataset)))
        if in_order and "person_name_start" in document:
            start = start_of(document, place) % len(PERSON_NAMES)
            report.equal(f"s{index} name", int(dataset.name_offsets[index]), start)


def compare_sample(
    report: Report, adapter: Adapter, task: AnyTask, dataset: Any, sample: Sample, stored: tuple[Arrays, int]
) -> None:
    """`stored` is what the reference has: its arrays and its counter of person names."""
    (expected, start), what = stored, f"s{sample.index}"
    batch = collate([sample], dataset.batch_type)
    found = {**adapter.batch_arrays(task, batch), **pictures(task, batch)}
    single = {
        name: value[0] if value.ndim else value
        for name, value in found.items()
        if not value.ndim or len(value)
    }
    if batch.images is not None:
        single["image_shape"] = found["image_shape"][1:]
    texts, sequences = adapter.sample_texts(task, dataset, sample, start)
    actual = {**single, **texts}
    for name, value in adapter.amended(task, report, what, actual, expected).items():
        compare_array(task, report, f"{what}.{name}", actual, value)
    report.equal(f"{what} texts", columns(sample.texts), columns(sequences))


def compare_batches(
    document: Mapping[str, Any], report: Report, adapter: Adapter, task: AnyTask, arrays: Arrays
) -> None:
    # Batches repeat the decisions of the samples: the reference seeds or restarts its generator between them.
    places = {index: place for place, index in enumerate(document["samples"])}
    datasets = adapter.datasets(task, document["mode"])
    dataset, replaced = datasets[-1], []
    load = dataset.load

    def loaded(index: int, _: Any) -> Sample:
        """A sample; of a picture that the reference cannot read either, the next one in its place."""
        try:
            return load(index, replay(task, document, places[index]) if index in places else Replay())
        except DataError:
            if not is_blank(under(arrays, f"s{index}.")):
                raise
            replaced.append(index)
            return loaded((index + 1) % len(dataset), _)

    dataset.load = loaded
    batches = adapter.loader(task, document["mode"], datasets)
    report.equal("len(loader)", len(batches), document["len_loader"])
    count = 0
    for count, batch in enumerate(batches, start=1):
        what = f"b{count - 1}"
        if replaced:
            report.skip(f"{what} with {replaced}", RULE_UNREADABLE)
            replaced.clear()
        else:
            compare_batch(report, adapter, task, what, batch, under(arrays, f"{what}."))
    report.equal("batches", count, document["num_batches"])


def compare_batch(
    report: Report, adapter: Adapter, task: AnyTask, what: str, batch: Batch, stored: Arrays
) -> None:
    if not stored:
        return
    actual = {**adapter.batch_arrays(task, batch), **pictures(task, batch)}
    expected = adapter.amended(task, report, what, actual, stored)
    if expected:
        compare_texts(report, what, batch, adapter.sequences(task, expected))
    for name, value in expected.items():
        if name != adapter.text and not name.endswith(("_choices", f"_{adapter.text}")):
            compare_array(task, report, f"{what}.{name}", actual, value)


def compare_texts(
    report: Report, what: str, batch: Batch, sequences: Sequence[Sequence[TextSequence]]
) -> None:
    """The batch's sequences are those that the model makes of the padded tokens."""
    expected = joined(sequences)
    report.equal(f"{what} text lengths", batch.text.lengths.sizes, expected.lengths.sizes)
    report.equal(f"{what} texts per image", batch.text.per_image.sizes, expected.per_image.sizes)
    for column in ("ids", "types", "tags"):
        actual, wanted = getattr(batch.text, column).numpy(), getattr(expected, column).numpy()
        report.equal(f"{what} text {column}", actual, wanted)


# --- Runners ------------------------------------------------------------------------------------------------


def is_refused(case: Case, adapter: Adapter, options: Mapping[str, Any]) -> bool:
    """Whether options, the data that they name or one of its samples are refused with a clear error."""
    try:
        task = data_task(case, adapter, options)
        if task.config.problems():
            return True
        dataset = adapter.datasets(task, case.document["mode"])[-1]
        for index in case.document.get("samples", range(len(dataset))):
            dataset.load(index, Replay())
    except UserError:
        return True
    return False


def run_error(case: Case, report: Report, adapter: Adapter) -> None:
    """What the reference cannot read is refused, or read where its failure is one that we fix."""
    document = case.document
    options, error = options_of(document), document["error"]
    if is_refused(case, adapter, options):
        report.equal("refused", True, True)
        return
    task = data_task(case, adapter, options)
    image_set = task.config.DATASET.image_set(document["mode"])
    if error["type"] == "KeyError" and error["message"] == repr(image_set):
        report.skip(f"the reference's error about {image_set}", RULE_SPLITS)
    elif "zipreader" in error["message"]:
        report.skip(case.name, RULE_ARCHIVE)
        for other in case.shared["cases"]:
            same = {**options, ZIP_MODE: True} == options_of(other) and other["mode"] == document["mode"]
            if same and "error" not in other:
                compare_samples(other, report, adapter, task, case_arrays(case, other))
                compare_batches(other, report, adapter, task, case_arrays(case, other))
    else:
        report.equal("refused, or a picture is not RGB", has_other_colours(case, task), True)
        report.skip(case.name, RULE_RGB)


def has_other_colours(case: Case, task: AnyTask) -> bool:
    """Whether one of the pictures that the records name is not RGB."""
    records = getattr(task.build_dataset(case.document["mode"]), "records", [])
    folder = Path(task.config.DATASET.DATASET_PATH) / task.config.DATASET.image_set(case.document["mode"])
    return any(Image.open(folder / record.img_fn).mode != "RGB" for record in records)


def run_dataset(case: Case, report: Report) -> None:
    document, adapter = case.document, ADAPTERS[case.folder[1]]
    if "error" in document:
        run_error(case, report, adapter)
        return
    options = options_of(document)
    if options.pop(APPEND_INDEX, False):
        refused = is_refused(case, adapter, {**options, APPEND_INDEX: True})
        report.equal(f"{APPEND_INDEX} is refused", refused, True)
    task = data_task(case, adapter, options)
    report.equal("problems of the configuration", task.config.problems(), [])
    arrays = case_arrays(case, document)
    compare_samples(document, report, adapter, task, arrays)
    compare_batches(document, report, adapter, task, arrays)


def run_names(case: Case, report: Report) -> None:
    document = case.document
    task = data_task(case, ADAPTERS[case.folder[1]], document["options"])
    dataset = task.build_dataset(document.get("mode", "val"))
    report.equal("names", list(PERSON_NAMES), document["names"])
    pieces = {number: piece for piece, number in data_unit_cases.vocabulary(case).items()}
    for number, visit in enumerate(document["visits"]):
        index, start = visit["index"], visit["name_id_before"]
        (question,), answers = dataset.preprocessor.texts(dataset.records[index], start)
        report.equal(f"visit {number} question", list(question.ids), visit["question_ids"])
        report.equal(f"visit {number} pieces", [pieces[i] for i in question.ids], visit["question_tokens"])
        report.equal(f"visit {number} answers", [list(a.ids) for a in answers], visit["answer_ids"])
        report.equal(f"visit {number} choices", len(answers), NUM_CHOICES)
        if number < len(dataset) and index == number:
            report.equal(f"visit {number} start", int(dataset.name_offsets[index]), start % len(PERSON_NAMES))
        else:
            report.skip(f"start of visit {number}", RULE_NAMES)


def run_aspect_grouping(case: Case, report: Report) -> None:
    """Sizes of pictures to groups of batches."""
    document = case.document
    groups = aspect_groups(*zip(*document["sizes"], strict=True))
    report.equal("groups", groups, [int(group) for group in document["group_ids"]])
    task = data_task(case, ADAPTERS[case.folder[1]], document["options"])
    report.equal("groups of the dataset", list(task.build_dataset("train").groups()), groups)
    size = max(map(len, document["batches"]))
    batches = EpochBatches(len(groups), size, shuffle=False, seed=0, groups=groups)
    report.equal("batches", data_unit_cases.epoch_of(batches, 0), document["batches"])


def run_cache_files(case: Case, report: Report) -> None:
    report.skip(f"{len(case.document['records'])} cache files", RULE_CACHE)


RUNNERS = [
    (lambda c: in_data(c, "dataset", "mode", "options") and "steps" not in c.document, run_dataset),
    (lambda c: in_data(c, "visits", "names"), run_names),
    (lambda c: "files_under_root_path" in record_keys(c), run_cache_files),
    (lambda c: in_data(c, "options", "group_ids"), run_aspect_grouping),
    *data_unit_cases.RUNNERS,
]
