"""Golden data: samples and batches of whole datasets, read from the fixture of the same folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.batch import Lengths
from common.config import parse_config
from common.config_types import Split
from common.data.collate import collate
from common.data.loader import BatchLoader, build_loader
from common.data.sampling import EpochBatches
from common.data.tokenization import Tokenizer
from common.errors import UserError
from common.modeling.fast_rcnn import ImageNormalizer
from common.modeling.packing import Padding
from tests.golden import data_unit_cases
from tests.golden.harness import Case, Report, not_built, read_arrays
from tests.golden.unit_cases import tokens
from vcr.config import VCRConfig
from vcr.dataset import NUM_CHOICES, VCRBatch, VCRDataset, VCRSample
from vcr.task import VCRTask
from vcr.text import PERSON_NAMES, Tokens, assemble_text

RULE_ALIGN = "alignment matrices are not built (design 2)"
RULE_SCORE = "a box carries no score, which no model reads"
RULE_CACHE = "datasets keep no pickled copies (design 2: layout of our own caches is free)"
RULE_NAMES = "B23: names continue by record, not by visit (design 2)"
RULE_INDEX = "D17: APPEND_INDEX is refused, batches carry the dataset index"
RULE_RGB = "B26: pictures that are not RGB are converted"

APPEND_INDEX = "DATASET.APPEND_INDEX"
# What data README says of every option that a case does not list.
BATCH_IMAGES = 2
PIXEL_MEANS, PIXEL_STDS = (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)
GREY_LEVELS = {"image_mean": 0.15, "image_std": 0.15, "image_pool": 0.15, "image_probe": 1.01, "image": 1.01}
COORDINATES = 1e-4


@dataclass
class Replay:
    """A generator that repeats the decisions of a golden case, whatever the order in which kinds are asked.

    Attributes:
        calls: `[function, value]` of the sample; without a log every probability is 0 or 1.
        name_start: the running counter of person names.
    """

    calls: Sequence[tuple[str, float]] = ()
    name_start: int = 0
    values: Iterator[float] = field(init=False)

    def __post_init__(self) -> None:
        self.values = iter([value for function, value in self.calls if function == "random"] or [0.0])

    def random(self) -> float:
        return next(self.values)

    def randrange(self, stop: int) -> int:
        return self.name_start % stop


def in_fixture(case: Case, value: Any) -> Any:
    """Replaces `<fixture>` in a text."""
    return value.replace("<fixture>", str(fixture(case))) if isinstance(value, str) else value


def fixture(case: Case):
    return case.root / "data" / "fixture"


def vcr_config(case: Case, options: Mapping[str, Any]) -> VCRConfig:
    """The configuration of `options` (dotted keys) over what the README says of all others."""
    values: dict[str, Any] = {"MODULE": "ResNetVLBERT", "SCALES": [60, 100], "NUM_WORKERS_PER_GPU": 0}
    loops = {f"{loop}.BATCH_IMAGES": BATCH_IMAGES for loop in ("TRAIN", "VAL", "TEST")}
    defaults = {
        "DATASET.DATASET": "vcr",
        "DATASET.DATASET_PATH": str(fixture(case) / "vcr"),
        "NETWORK.BERT_MODEL_NAME": str(fixture(case) / "bert"),
        "NETWORK.PIXEL_MEANS": PIXEL_MEANS,
        "NETWORK.PIXEL_STDS": PIXEL_STDS,
        # The mask of an object must have the size of the region head's map.
        "NETWORK.IMAGE_C5_DILATED": options.get("DATASET.MASK_SIZE", 14) == 14,
        "TRAIN.SHUFFLE": False,
        "TRAIN.FLIP_PROB": 0,
        **loops,
    }
    for dotted, value in {**defaults, **options}.items():
        *sections, key = dotted.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = in_fixture(case, value)
    return parse_config(VCRConfig, values, case.name)


def case_arrays(case: Case) -> dict[str, np.ndarray]:
    """The arrays of an entry of a `cases.json`."""
    name = case.document.get("same_arrays_as", case.document["name"])
    return read_arrays(case.path.with_name(f"{name}.npz"))


def replay(case: Case, place: int) -> Replay:
    document = case.document
    calls = document["calls"][place] if "calls" in document else ()
    return Replay(calls, document["person_name_start"][place])


def loader(dataset: VCRDataset, config: VCRConfig, split: Split) -> BatchLoader[VCRBatch]:
    loop = getattr(config, split.upper())
    batches = EpochBatches(len(dataset), loop.BATCH_IMAGES, shuffle=loop.SHUFFLE, seed=config.RNG_SEED)
    return build_loader(
        dataset, batches, batch_type=VCRBatch, num_workers=config.NUM_WORKERS_PER_GPU, pin_memory=False
    )


# --- Comparing one array ------------------------------------------------------------------------------------


def pictures(config: VCRConfig, images: Tensor, sizes: Tensor) -> dict[str, np.ndarray]:
    """Numbers of normalised pictures (B, 3, H, W) as the README defines them."""
    network = config.NETWORK
    normal = ImageNormalizer(network.PIXEL_MEANS, network.PIXEL_STDS)(images, sizes)
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


def compare_boxes(report: Report, what: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """Rows x1, y1, x2, y2, score, class; `actual` is without the score."""
    report.close(f"{what} coordinates", actual[..., :4], expected[..., :4], COORDINATES)
    report.equal(f"{what} classes", actual[..., 4], expected[..., 5])
    report.skip(f"{what} scores", RULE_SCORE)


def compare_array(
    config: VCRConfig, report: Report, what: str, actual: Mapping[str, Any], expected: np.ndarray
) -> None:
    """Compares one array of a sample or batch at the tolerance of its kind."""
    name = what.split(".", 1)[1]
    if "align_matrix" in name:
        report.skip(what, RULE_ALIGN)
    elif name == "index_in_batch":
        report.skip(what, RULE_INDEX)
    elif name not in actual:
        report.failures.append(f"{what}: we have nothing of this name")
    elif name == "boxes":
        compare_boxes(report, what, actual[name], expected)
    elif name == "im_info":
        report.close(what, actual[name][..., :4], expected[..., :4], COORDINATES)
        report.equal(f"{what} index", actual[name][..., 4], expected[..., 4])
    elif name in GREY_LEVELS:
        report.close(what, actual[name], expected, GREY_LEVELS[name] / min(config.NETWORK.PIXEL_STDS))
    else:
        report.equal(what, actual[name], expected)


# --- Samples ------------------------------------------------------------------------------------------------


def triples(text: Tokens) -> np.ndarray:
    return np.array([text.ids, text.tags, text.align], np.int64).T


def sample_arrays(
    config: VCRConfig, sample: VCRSample, conditions: Sequence[Tokens], choices: Sequence[Tokens]
) -> dict[str, Any]:
    """A sample under the reference's names."""
    batch = collate([sample], VCRBatch)
    choice = "answer" if config.DATASET.TASK == "Q2A" else "rationale"
    arrays: dict[str, Any] = {
        "boxes": np.column_stack([sample.boxes.numpy(), sample.box_classes.numpy()]),
        "masks": sample.box_masks.float().numpy(),
        "im_info": np.append(sample.im_info.numpy(), sample.index),
    }
    if sample.label is not None:
        arrays[f"{choice}_label"] = sample.label.numpy()
    if batch.images is None:
        arrays["image_none"] = np.array(True)
    else:
        sizes = batch.im_info[:, :2]
        arrays |= {name: value[0] for name, value in pictures(config, batch.images, sizes).items()}
        arrays["image_shape"] = np.array(batch.images.shape[1:])
    texts = {f"question.{i}": text for i, text in enumerate(conditions)}
    texts |= {f"{choice}_choices.{i}": text for i, text in enumerate(choices)}
    arrays |= {name: triples(text) for name, text in texts.items()}
    if len(conditions) == 1:
        arrays["question"] = arrays["question.0"]
    return arrays


def compare_samples(case: Case, report: Report, config: VCRConfig, arrays: Mapping[str, np.ndarray]) -> None:
    split = case.document["mode"]
    dataset = VCRTask(config).build_dataset(split)
    report.equal("length", len(dataset), case.document["length"])
    special = {"cls_id": dataset_ids(config)[0], "sep_id": dataset_ids(config)[1]}
    layout = {"answer_first": config.NETWORK.ANSWER_FIRST, "one_sentence": config.NETWORK.QA_ONE_SENT}
    for place, index in enumerate(case.document["samples"]):
        start = case.document["person_name_start"][place]
        sample = dataset.load(index, replay(case, place))
        conditions, choices = dataset.texts(dataset.records[index], start)
        expected = {name: value for name, value in arrays.items() if name.startswith(f"s{index}.")}
        actual = sample_arrays(config, sample, conditions, choices)
        for name, value in expected.items():
            compare_array(config, report, name, actual, value)
        assembled = [assemble_text(c, choice, **special, **layout) for c in conditions for choice in choices]
        report.equal(f"s{index} texts", list(map(columns, sample.texts)), list(map(columns, assembled)))
        if split != "train" and case.document["samples"] == list(range(len(dataset))):
            report.equal(f"s{index} name", int(dataset.name_offsets[index]), start % len(PERSON_NAMES))


def columns(text: Any) -> list[list[int]]:
    return [list(text.ids), list(text.types), list(text.tags)]


def dataset_ids(config: VCRConfig) -> tuple[int, int]:
    tokenizer = Tokenizer.from_directory(config.NETWORK.BERT_MODEL_NAME)
    return tokenizer.cls_id, tokenizer.sep_id


# --- Batches ------------------------------------------------------------------------------------------------


def padded(values: Tensor, lengths: Lengths, fill: float) -> np.ndarray:
    """(sum n_i, ...) to (B, longest, ...) with `fill` behind the rows."""
    rows = Padding.of(lengths)
    real = rows.mask()
    out = rows.pad(values.float())
    if real is not None:
        out[~real] = fill
    return out.numpy()


def batch_arrays(config: VCRConfig, batch: VCRBatch) -> dict[str, Any]:
    boxes = torch.cat([batch.boxes, batch.box_classes[:, None].float()], dim=1)
    choice = "answer" if config.DATASET.TASK == "Q2A" else "rationale"
    arrays: dict[str, Any] = {
        "boxes": padded(boxes, batch.num_boxes, -1),
        "masks": padded(batch.box_masks, batch.num_boxes, -1),
        "im_info": torch.cat([batch.im_info, batch.index[:, None]], dim=1).numpy(),
    }
    if batch.label is not None:
        arrays[f"{choice}_label"] = batch.label.numpy()
    if batch.images is None:
        return {**arrays, "image_none": np.array(True)}
    return arrays | pictures(config, batch.images, batch.im_info[:, :2])


def compare_texts(
    config: VCRConfig, report: Report, what: str, batch: VCRBatch, arrays: Mapping[str, np.ndarray]
) -> None:
    """The batch's sequences are those that the model makes of the padded tokens."""
    question = arrays["question"]
    question = question[:, None] if question.ndim == 3 else question
    (choices,) = (value for name, value in arrays.items() if name.endswith("_choices"))
    ids, network = dataset_ids(config), config.NETWORK
    expected = [
        assemble_text(
            tokens(condition[:, 0], condition[:, 1]),
            tokens(choice[:, 0], choice[:, 1]),
            cls_id=ids[0],
            sep_id=ids[1],
            answer_first=network.ANSWER_FIRST,
            one_sentence=network.QA_ONE_SENT,
        )
        for conditions, answers in zip(question, choices, strict=True)
        for condition in conditions
        for choice in answers
    ]
    report.equal(f"{what} text lengths", list(batch.text.lengths.sizes), [len(text) for text in expected])
    report.equal(
        f"{what} texts per image", set(batch.text.per_image.sizes), {question.shape[1] * choices.shape[1]}
    )
    for column in ("ids", "types", "tags"):
        joined = np.concatenate([getattr(text, column) for text in expected])
        report.equal(f"{what} text {column}", getattr(batch.text, column).numpy(), joined)


def compare_batches(case: Case, report: Report, config: VCRConfig, arrays: Mapping[str, np.ndarray]) -> None:
    split = case.document["mode"]
    dataset = VCRTask(config).build_dataset(split)
    load, visited = dataset.load, case.document["samples"]
    # Batches repeat the decisions of the samples: the reference seeds or restarts its generator between them.
    decisions = {index: replay(case, place) for place, index in enumerate(visited)}
    dataset.load = lambda index, rng: load(index, decisions.get(index) or Replay())
    batches = loader(dataset, config, split)
    report.equal("len(loader)", len(batches), case.document["len_loader"])
    count = 0
    for count, batch in enumerate(batches, start=1):
        what = f"b{count - 1}"
        expected = {n.split(".", 1)[1]: v for n, v in arrays.items() if n.startswith(f"{what}.")}
        if not expected:
            continue
        compare_texts(config, report, what, batch, expected)
        actual = batch_arrays(config, batch)
        for name, value in expected.items():
            if name != "question" and not name.endswith("_choices"):
                compare_array(config, report, f"{what}.{name}", actual, value)
    report.equal("batches", count, case.document["num_batches"])


# --- Runners ------------------------------------------------------------------------------------------------


def is_refused(case: Case, options: Mapping[str, Any]) -> bool:
    """Whether options, the data that they name or one of its samples are refused with a clear error."""
    try:
        config = vcr_config(case, options)
        if config.problems():
            return True
        dataset = VCRTask(config).build_dataset(case.document["mode"])
        for index in case.document.get("samples", range(len(dataset))):
            dataset.load(index, Replay())
    except UserError:
        return True
    return False


def run_error(case: Case, report: Report) -> None:
    refused = is_refused(case, case.document["options"])
    if not refused and has_other_colours(case, vcr_config(case, case.document["options"])):
        report.skip(case.name, RULE_RGB)
    else:
        report.equal("refused", refused, True)


def has_other_colours(case: Case, config: VCRConfig) -> bool:
    dataset = VCRTask(config).build_dataset(case.document["mode"])
    folder = fixture(case) / "vcr" / getattr(config.DATASET, f"{case.document['mode'].upper()}_IMAGE_SET")
    return any(Image.open(folder / record.img_fn).mode != "RGB" for record in dataset.records)


def run_dataset(case: Case, report: Report) -> None:
    document = case.document
    if document["dataset"] != "vcr":
        report.not_built(case.folder[1])
        return
    if "error" in document:
        run_error(case, report)
        return
    options = dict(document["options"])
    if options.pop(APPEND_INDEX, False):
        report.equal(f"{APPEND_INDEX} is refused", is_refused(case, {**options, APPEND_INDEX: True}), True)
    config = vcr_config(case, options)
    report.equal("problems of the configuration", config.problems(), [])
    arrays = case_arrays(case)
    compare_samples(case, report, config, arrays)
    compare_batches(case, report, config, arrays)


def run_names(case: Case, report: Report) -> None:
    document = case.document
    config = vcr_config(case, {**document["options"], "DATASET.DATASET": "vcr"})
    dataset = VCRTask(config).build_dataset(document.get("mode", "val"))
    report.equal("names", list(PERSON_NAMES), document["names"])
    pieces = {number: piece for piece, number in data_unit_cases.vocabulary(case).items()}
    for number, visit in enumerate(document["visits"]):
        index, start = visit["index"], visit["name_id_before"]
        (question,), answers = dataset.texts(dataset.records[index], start)
        report.equal(f"visit {number} question", list(question.ids), visit["question_ids"])
        report.equal(f"visit {number} pieces", [pieces[i] for i in question.ids], visit["question_tokens"])
        report.equal(f"visit {number} answers", [list(a.ids) for a in answers], visit["answer_ids"])
        report.equal(f"visit {number} choices", len(answers), NUM_CHOICES)
        if number < len(dataset) and index == number:
            report.equal(f"visit {number} start", int(dataset.name_offsets[index]), start % len(PERSON_NAMES))
        else:
            report.skip(f"start of visit {number}", RULE_NAMES)


def run_cache_files(case: Case, report: Report) -> None:
    report.skip(f"{len(case.document['records'])} cache files", RULE_CACHE)


def in_data(case: Case, *keys: str) -> bool:
    """A document of a dataset family that has these keys."""
    return case.folder[0] == "data" and isinstance(case.document, dict) and set(keys) <= set(case.document)


def record_keys(case: Case) -> set[str]:
    return set(case.document["records"][0]) if in_data(case, "records") else set()


RUNNERS = [
    (lambda c: in_data(c, "dataset", "mode", "options"), run_dataset),
    (lambda c: in_data(c, "visits", "names"), run_names),
    (lambda c: "files_under_root_path" in record_keys(c), run_cache_files),
    (lambda c: "image_plain_mode" in record_keys(c), not_built("pretrain")),
    *data_unit_cases.RUNNERS,
]
