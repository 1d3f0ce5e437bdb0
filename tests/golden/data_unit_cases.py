"""Golden units of the data area: masks, boxes, transforms, archives, tokenizer, samplers."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.batch import Batch, Lengths, Sample, TextSequence
from common.data.collate import collate
from common.data.images import (
    compute_im_info,
    flip_boxes,
    image_to_tensor,
    scale_boxes,
    target_size,
    vcr_padded_size,
)
from common.data.instance_masks import instance_mask
from common.data.samplers import EpochBatches, aspect_groups, grouped_batches
from common.data.storage.store import Store, split_archive
from common.data.tokenizer import Tokenizer
from common.errors import DataError
from common.models.fast_rcnn import ImageNormalizer
from common.models.geometry import coordinate_embeddings, pairwise_iou
from common.models.losses import soft_cross_entropy
from common.models.packing import Padding
from tests.golden.harness import Case, Report, fixture, in_fixture
from tests.golden.unit_cases import RULE_DEAD_HELPER
from vqa.answers import UNKNOWN, AnswerVocabulary, replace_punctuation, soft_target, swap_left_right
from vqa.config import VQADatasetConfig

RULE_ALIGN = "alignment matrices are not built"
RULE_RAGGED = "rows are joined end to end, not clipped or padded one by one"
RULE_SMALL = "no side of a resized picture falls below one pixel"
RULE_UNIT_RANGE = "pictures stay in 0..255, blue first, as all configurations have them"
RULE_NO_LISTS = "nothing here lists archives"
RULE_NO_LIMIT = "the tokenizer has no length limit; the model checks lengths"
RULE_ORDER = "the reference's own order of samples is not reproduced"
RULE_EVALUATION = "an evaluation sees every sample once, without repeats"
RULE_UNEVEN = "short batches of a group are kept"
RULE_WORKERS = "workers are counted for each process"


# --- Pictures, boxes, masks ---------------------------------------------------------------------------------


def run_instance_masks(case: Case, report: Report) -> None:
    for entry in case.document["cases"]:
        mask = instance_mask(entry["polygons"], entry["box"], tuple(entry["mask_size"]))
        report.equal(entry["key"], mask, case.arrays[entry["key"]].astype(bool))


def run_boxes(case: Case, report: Report) -> None:
    arrays = {name: torch.from_numpy(value) for name, value in case.arrays.items()}
    report.close("iou", pairwise_iou(arrays["boxes"], arrays["query"]), arrays["iou"], 1e-6)
    expected = arrays["ce_out"]
    embedded = coordinate_embeddings(arrays["ce_in"][:, :4], arrays["ce_in"][:, 4:], expected.shape[2] // 2)
    report.close("coordinate embedding", embedded, expected, 1e-5)
    report.skip("regression targets", RULE_DEAD_HELPER)


def on_canvas(image: torch.Tensor, padded_size: tuple[int, int]) -> np.ndarray:
    """A picture (3, h, w) as the collator puts it into a batch."""
    nothing = np.zeros(0, np.int64)
    sample = Sample(
        index=0,
        record_id="",
        image=image,
        padded_size=padded_size,
        im_info=torch.zeros(4),
        boxes=torch.zeros(0, 4),
        texts=(TextSequence(nothing, nothing, nothing),),
    )
    images = collate([sample], Batch).images
    assert images is not None
    return images[0].numpy()


def run_padding(case: Case, report: Report) -> None:
    for entry in case.document["cases"]:
        given, expected = case.arrays[f"{entry['key']}_in"], case.arrays[f"{entry['key']}_out"]
        what = f"{entry['function']} {entry['key']}"
        grows = given.ndim == 3 and given.shape[0] == 3 and all(np.less_equal(given.shape, expected.shape))
        if not (grows and entry["pad"] == 0):
            report.skip(what, RULE_RAGGED)
            continue
        report.equal(what, on_canvas(torch.from_numpy(given), expected.shape[1:]), expected)


def run_align(case: Case, report: Report) -> None:
    arrays = case.arrays
    lengths = Lengths.of(arrays["pad_sequence_lengths"].tolist())
    filled = Padding.of(lengths).pad(torch.from_numpy(arrays["pad_sequence_in"]))
    report.equal("pad_sequence", filled.numpy(), arrays["pad_sequence_out"])
    logits, target = (torch.from_numpy(arrays[f"sce_{name}"]) for name in ("logits", "target"))
    for reduction in ("mean", "sum", "none"):
        loss = soft_cross_entropy(logits, target, reduction)
        report.close(f"soft cross entropy, {reduction}", loss, arrays[f"sce_{reduction}"], 1e-6)
    empty = soft_cross_entropy(logits, torch.zeros_like(target), "mean")
    report.close("soft cross entropy without a valid row", empty, arrays["sce_all_invalid"], 0.0)
    report.skip(f"{len(case.document['align'])} matrices and their block diagonal", RULE_ALIGN)
    report.skip("masked softmax", RULE_DEAD_HELPER)


def run_resize(case: Case, report: Report) -> None:
    for entry in case.document["resize"]:
        what = f"{entry['size']} to {entry['scales']}"
        if 0 in entry["out"]:
            report.skip(what, RULE_SMALL)
        else:
            report.equal(what, list(target_size(*entry["size"], entry["scales"])), entry["out"])


def run_transforms(case: Case, report: Report) -> None:
    arrays = case.arrays
    image = Image.fromarray(arrays["image_in"])
    boxes = torch.from_numpy(arrays["boxes_in"])

    def pixels(size: tuple[int, int], **options: bool) -> np.ndarray:
        return image_to_tensor(image, size, **options).flip(0).permute(1, 2, 0).numpy()

    report.equal("flip_image", pixels(image.size, flipped=True), arrays["flip_image"])
    report.close("flip_boxes", flip_boxes(boxes, image.width), arrays["flip_boxes"], 1e-4)
    report.equal("flip_masks", torch.from_numpy(arrays["masks_in"]).flip(-1).numpy(), arrays["flip_masks"])
    height, width = arrays["resize_image"].shape[:2]
    info = compute_im_info(image.size, (width, height))
    report.close("resize_image", pixels((width, height)), arrays["resize_image"], 1.01)
    report.close("resize_boxes", scale_boxes(boxes, info), arrays["resize_boxes"], 1e-4)
    report.close("resize_im_info", info, arrays["resize_im_info"], 1e-4)
    for name in sorted(set(arrays) - {"image_in", "boxes_in", "masks_in"}):
        if name.startswith("normalize_bgr255"):
            compare_normalised(report, name, image, arrays[name])
        elif name.startswith("fix_padding"):
            compare_canvas(report, name, arrays["to_tensor"], arrays[name])
        elif not name.startswith(("flip_", "resize_")):
            report.skip(name, RULE_UNIT_RANGE)


def compare_normalised(report: Report, name: str, image: Image.Image, expected: np.ndarray) -> None:
    """The README's means; the deviation of each channel is the one that the given range shows."""
    pixels = image_to_tensor(image, image.size)
    stds = np.ptp(pixels.numpy(), axis=(1, 2)) / np.ptp(expected, axis=(1, 2))
    normalise = ImageNormalizer((102.9801, 115.9465, 122.7717), stds.tolist())
    sizes = torch.tensor([image.size], dtype=torch.float32)
    report.close(name, normalise(pixels[None], sizes)[0], expected, 1e-3)


def compare_canvas(report: Report, name: str, picture: np.ndarray, expected: np.ndarray) -> None:
    """A landscape or portrait picture in the corner of the fixed padded_size of its orientation."""
    height, width = expected.shape[1:]
    if height > width:
        picture = np.ascontiguousarray(picture.transpose(0, 2, 1))
    padded_size = vcr_padded_size(picture.shape[2], picture.shape[1], sorted((height, width)))
    report.equal(name, on_canvas(torch.from_numpy(picture), padded_size), expected)


def run_archives(case: Case, report: Report) -> None:
    for entry in case.document["split_zip_style_path"]:
        report.equal(entry["path"], split_archive(entry["path"]), tuple(entry["split"]))
    for entry in case.document["list_files"]:
        path = in_fixture(case, entry["path"])
        for name in entry["files"]:
            member = f"{path.rstrip('/')}/{name}"
            report.equal(f"{name} can be read", len(Store([path]).read(member)) > 0, True)
        report.skip(f"files of {entry['path']}", RULE_NO_LISTS)
    for entry in case.document["list_folder"]:
        report.skip(f"folders of {entry['path']}", RULE_NO_LISTS)


# --- Answers ---------------------------------------------------------------------------------------------


def run_answers(case: Case, report: Report) -> None:
    document = case.document
    (path,) = (fixture(case) / "coco" / "vqa").glob("answers*.txt")
    read = {}
    for use_imdb, name in ((False, "vocab_processed"), (True, "vocab_raw")):
        size = len(document[name])
        data = VQADatasetConfig(ANSWER_VOCAB_FILE=str(path), ANSWER_VOCAB_SIZE=size, USE_IMDB=use_imdb)
        read[name] = AnswerVocabulary.from_config(data)
        report.equal(name, list(read[name].answers), document[name])
    for entry in document["process_punctuation"]:
        text = entry["text"]
        report.equal(text, text if text == UNKNOWN else replace_punctuation(text), entry["out"])
    vocabulary = read["vocab_processed"]
    for number, entry in enumerate(document["soft_target"]):
        classes = np.array([vocabulary.class_of(answer) for answer in entry["answers"]], np.int64)
        given, scores = soft_target(classes)
        target = np.zeros(entry["length"], np.float32)
        target[given] = scores
        expected = np.zeros(entry["length"], np.float32)
        expected[[int(place) for place in entry["nonzero"]]] = list(entry["nonzero"].values())
        report.equal(f"target [{number}]", target, expected)
    for entry in document["flip_tokens"]:
        report.equal(
            f"mirrored {entry['tokens']}", swap_left_right(" ".join(entry["tokens"])).split(), entry["out"]
        )


# --- Tokenizer ----------------------------------------------------------------------------------------------


def vocabulary(case: Case) -> dict[str, int]:
    return Tokenizer.from_directory(fixture(case) / "bert").vocab


def tokenizer_of(case: Case, name: str) -> Tokenizer:
    """The tokenizer whose options a list's name spells out (data README, tokenizer)."""
    options: dict[str, Any] = {"lower_case": name != "cased"}
    if found := re.fullmatch(r"wordpiece_unk_(\S+)_maxchars_(\d+)", name):
        options |= {"unk_token": found[1], "max_word_length": int(found[2])}
    if found := re.fullmatch(r"basic_never_split_(\S+)", name):
        options["never_split"] = [f"[{w}]" if w.isupper() else w for w in found[1].split("_")]
    return Tokenizer(vocabulary(case), **options)


def run_tokenizer(case: Case, report: Report) -> None:
    for name, entries in case.document.items():
        if name == "errors":
            run_token_errors(case, report, entries)
            continue
        tokenizer = tokenizer_of(case, name)
        for number, entry in enumerate(entries):
            text, what = entry["text"], f"{name}[{number}]"
            actual: dict[str, Any] = {"basic": tokenizer.basic(text), "ids": tokenizer.ids(text)}
            if name.startswith("wordpiece"):
                actual["tokens"] = [p for word in text.split() for p in tokenizer.word_pieces(word)]
            else:
                actual["tokens"] = actual["basic"] if name.startswith("basic") else tokenizer.tokenize(text)
            for key in entry.keys() - {"text"}:
                report.equal(f"{what} {key}", actual[key], entry[key])


def run_token_errors(case: Case, report: Report, entries: list[dict[str, Any]]) -> None:
    tokenizer = Tokenizer(vocabulary(case))
    for entry in entries:
        if entry["max_len"] is not None:
            report.skip(f"at most {entry['max_len']} pieces", RULE_NO_LIMIT)
            continue
        try:
            refused = not [tokenizer.token_id(token) for token in entry["tokens"]]
        except DataError:
            refused = True
        report.equal(f"{entry['tokens']} refused", refused, True)


# --- Samplers -----------------------------------------------------------------------------------------------


def epoch_of(batches: EpochBatches, epoch: int) -> list[list[int]]:
    batches.set_epoch(epoch)
    return [[key.index for key in batch] for batch in batches]


def run_distributed(case: Case, report: Report) -> None:
    """Per rank as many samples as the reference, over all ranks every one of them."""
    runs: dict[Any, list[Any]] = defaultdict(list)
    for entry in case.document["distributed"]:
        runs[entry["n"], entry["replicas"], entry["epoch"], entry["shuffle"]].append(entry)
    for (n, replicas, epoch, shuffle), entries in runs.items():
        what = f"{n} on {replicas}, epoch {epoch}, {'shuffled' if shuffle else 'in order'}"
        samplers = [
            EpochBatches(n, 1, shuffle=shuffle, seed=0, rank=rank, world_size=replicas)
            for rank in range(replicas)
        ]
        shares = [[index for batch in epoch_of(sampler, epoch) for index in batch] for sampler in samplers]
        report.equal(f"{what}: samples", {i for share in shares for i in share}, set(range(n)))
        for entry in entries:
            if "error" in entry:
                continue  # the reference fails where there are many replicas; the set above is what counts
            share = shares[entry["rank"]]
            report.equal(f"{what}, rank {entry['rank']}: length", len(share), entry["len"])
            report.equal(f"{what}: total", sum(map(len, shares)), entry["total_size"])
            if not shuffle and replicas == 1:
                report.equal(f"{what}: order", share, entry["indices"])
            else:
                report.skip(f"{what}, rank {entry['rank']}", RULE_ORDER)


def run_batch_counts(case: Case, report: Report) -> None:
    for entry in case.document["batch_counts"]:
        batches = EpochBatches(
            entry["n"],
            entry["batch_size"],
            shuffle=False,
            seed=0,
            rank=entry["rank"],
            world_size=entry["replicas"],
        )
        counts = (len(batches), len(list(batches)))
        report.equal(str(entry), counts, (entry["num_batches"],) * 2)


def run_aspect_groups(case: Case, report: Report) -> None:
    entries = case.document["aspect_groups"]
    groups = aspect_groups([entry["width"] for entry in entries], [entry["height"] for entry in entries])
    report.equal("groups", groups, [int(entry["group"]) for entry in entries])


def run_grouped(case: Case, report: Report) -> None:
    for number, entry in enumerate(case.document["grouped"]):
        order, size = np.array(entry["sampler_order"]), entry["batch_size"]
        batches = [b.tolist() for b in grouped_batches(order, entry["group_ids"], size)]
        report.equal(f"[{number}] samples", sorted(i for b in batches for i in b), sorted(order.tolist()))
        mixed = [b for b in batches if len({entry["group_ids"][i] for i in b}) > 1]
        report.equal(f"[{number}] batches with two groups", mixed, [])
        if "error" in entry:
            continue  # a group without a sample stops the reference; the rules above hold here
        if entry["drop_uneven"]:
            report.skip(f"[{number}] dropping", RULE_UNEVEN)
            batches = [b for b in batches if len(b) == size]
        report.equal(f"[{number}] batches", batches, entry["batches"])
        report.equal(f"[{number}] len", len(batches), entry["len"])


def run_loader_settings(case: Case, report: Report) -> None:
    """One process per GPU instead of one process that splits a larger batch: as many steps."""
    for number, entry in enumerate(case.document["records"]):
        replicas, rank = entry["replicas_rank"] or (entry["GPUS"].count(",") + 1, 0)
        if entry["replicas_rank"] and entry["mode"] != "train":
            report.skip(f"[{number}] padded evaluation", RULE_EVALUATION)
            continue
        batches = EpochBatches(
            entry["length"],
            entry["BATCH_IMAGES"],
            shuffle=entry["SHUFFLE"],
            seed=0,
            rank=rank,
            world_size=replicas,
            pad=entry["mode"] == "train",
        )
        report.equal(f"[{number}] steps", len(batches), entry["len_loader"])
        together = batches.batch_size * (1 if entry["replicas_rank"] else replicas)
        report.equal(f"[{number}] batch size", together, entry["batch_size"])
        report.skip(f"[{number}] workers", RULE_WORKERS)


def _has(case: Case, folder: str, *keys: str) -> bool:
    found = set(case.document) if case.document else set(case.arrays) if case.path.suffix == ".npz" else set()
    return case.folder == ("data", folder) and set(keys) <= found


def _is_loader(case: Case) -> bool:
    document = case.document if case.folder[0] == "data" else {}
    return "records" in document and "len_loader" in document["records"][0]


def _entries(case: Case, key: str) -> bool:
    return _has(case, "units", "cases") and key in case.document["cases"][0]


RUNNERS = [
    (lambda c: _entries(c, "polygons"), run_instance_masks),
    (lambda c: _entries(c, "function"), run_padding),
    (lambda c: _has(c, "units", "boxes", "query"), run_boxes),
    (lambda c: _has(c, "units", "align"), run_align),
    (lambda c: _has(c, "units", "resize"), run_resize),
    (lambda c: _has(c, "units", "image_in", "to_tensor"), run_transforms),
    (lambda c: _has(c, "units", "split_zip_style_path"), run_archives),
    (lambda c: _has(c, "units", "process_punctuation"), run_answers),
    (lambda c: c.folder == ("data", "tokenizer"), run_tokenizer),
    (lambda c: _has(c, "samplers", "distributed"), run_distributed),
    (lambda c: _has(c, "samplers", "batch_counts"), run_batch_counts),
    (lambda c: _has(c, "samplers", "aspect_groups"), run_aspect_groups),
    (lambda c: _has(c, "samplers", "grouped"), run_grouped),
    (_is_loader, run_loader_settings),
]
