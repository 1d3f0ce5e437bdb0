"""Cost of opening and reading millions of captions and lines of text.

`python -m benchmarks.scale` writes captions and a text corpus of random words to a temporary folder (by default 5.2
GB), opens them for the first time, opens them again in a new process, and reads random items there as pre-training
does. All records share the packed regions of 64 images. Memory is reported as Linux counts it: resident (RSS: shared
pages count in each process), proportional (PSS: a page shared by three processes counts a third), anonymous (not backed
by a file), and private (USS: what one more worker costs); "imports only" is measured before anything is opened. The
files have just been written, so they are in the page cache: the numbers are about computation, not disks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import Row, machine, publish
from common.cli.run import run
from common.config.schema import load_config
from common.data.loader import epoch_batches
from common.data.regions.json_format import NUM_CLASSES
from common.data.regions.packed_format import PackedHeader, PackedWriter
from common.data.regions.types import Regions
from common.data.storage.line_index import LineIndex
from common.data.tokenizer import SPECIAL_TOKENS
from common.training.task import build_dataloader
from pretrain.config import PretrainConfig
from pretrain.task import PretrainTask

ROOT = Path(__file__).resolve().parent.parent
CFG = ROOT / "cfgs/pretrain/base_prec_4x16G_fp32.yaml"
VOCAB_SIZE = 30_522
NUM_IMAGES = 64
FEATURE_DIM = 2048
BLOCK_LINES = 1 << 16
CAPTIONS, CORPUS = "train_frcnn.json", ("one.doc", "two.doc")

CHILD = "import sys; from benchmarks.scale import read; read(*sys.argv[1:])"


def write_vocabulary(path: Path, rng: np.random.Generator) -> list[str]:
    """Writes a vocabulary of BERT's size, and returns its words, random strings of letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    words: dict[str, None] = {}
    while len(words) < VOCAB_SIZE - len(pieces):
        words["".join(rng.choice(letters, rng.integers(2, 10)))] = None
    path.parent.mkdir()
    path.write_text("\n".join([*pieces, *words]) + "\n", encoding="utf-8")
    return list(words)


def sentences(words: Sequence[str], count: int, rng: np.random.Generator) -> list[list[str]]:
    """Draws sentences of 4 to 20 words; words at the start of the vocabulary are more frequent."""
    lengths = rng.integers(4, 21, count)
    indices = iter((len(words) * rng.random(lengths.sum()) ** 3).astype(int).tolist())
    return [[words[index] for index in itertools.islice(indices, length)] for length in lengths.tolist()]


def write_repeated(path: Path, block: Sequence[bytes], count: int) -> None:
    """Writes `count` lines by repeating those of a block."""
    whole, rest = divmod(count, len(block))
    data = b"".join(block)
    with path.open("wb") as file:
        for _ in range(whole):
            file.write(data)
        file.write(b"".join(block[:rest]))


def write_regions(path: Path, rng: np.random.Generator) -> None:
    """Writes a packed file of images with 10 to 100 random regions."""
    header = PackedHeader(dtype="float16", feature_dim=FEATURE_DIM, classes=True, sources=("train_frcnn",))
    with path.open("w+b") as file:
        writer = PackedWriter(file, header)
        for image_id in range(NUM_IMAGES):
            count = int(rng.integers(10, 101))
            corners = np.sort(rng.uniform(0, 480, (count, 2, 2)), axis=1).reshape(count, 4)
            scores = rng.exponential(1, (count, NUM_CLASSES)) ** 4
            parts = (
                corners,
                rng.exponential(0.5, (count, FEATURE_DIM)),
                scores / scores.sum(1, keepdims=True),
            )
            boxes, features, classes = (torch.from_numpy(part).float() for part in parts)
            writer.add(
                f"{image_id:08d}", Regions(boxes, features, class_scores=classes, image_size=(640, 480))
            )
        writer.finish(0)


def write_dataset(root: Path, captions: int, lines: int) -> None:
    """Writes vocabulary, regions, captions and corpus."""
    rng = np.random.default_rng(0)
    words = write_vocabulary(root / "bert" / "vocab.txt", rng)
    write_regions(root / "regions", rng)
    texts = sentences(words, BLOCK_LINES, rng)
    records = (
        {
            "image": f"train_image.zip@/{number:08d}.jpg",
            "caption": text,
            "frcnn": f"train_frcnn.zip@/{number % NUM_IMAGES:08d}.json",
        }
        for number, text in enumerate(texts)
    )
    write_repeated(root / CAPTIONS, [json.dumps(record).encode() + b"\n" for record in records], captions)
    block = [" ".join(text).encode() + b" .\n" for text in texts]
    for name, count in zip(CORPUS, (lines - lines // 2, lines // 2), strict=True):
        write_repeated(root / name, block, count)


def open_task(root: str, workers: int) -> PretrainTask:
    """Returns the pre-training task of VL-BERT base with features, on the files in `root`."""
    corpus = "+".join(f"{root}/{name}" for name in CORPUS)
    overrides = [
        f"DATASET.0.DATASET_PATH={root}",
        f"DATASET.0.PACKED_REGIONS={root}/regions",
        f"DATASET.1.TRAIN_ANNOTATION_FILE={corpus}",
        f"NETWORK.BERT_MODEL_NAME={root}/bert",
        f"NUM_WORKERS_PER_GPU={workers}",
    ]
    return PretrainTask(load_config(PretrainConfig, CFG, overrides))


def memory(label: str, pid: int) -> dict[str, float]:
    """Returns the memory of a process in MB: resident, proportional, anonymous and private."""
    fields = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    size = {name: 1024 * int(kilobytes) / 1e6 for name, kilobytes, *_ in fields}
    return {
        f"{label}: resident MB": size["Rss:"],
        f"{label}: proportional MB": size["Pss:"],
        f"{label}: anonymous MB": size["Anonymous:"],
        f"{label}: private MB": size["Private_Dirty:"] + size["Private_Clean:"],
    }


def read(root: str, workers: str, num_batches: str, started_at: str) -> None:
    """Opens the files in `root`, reads batches in random order, and writes measurements to `measured.json`.

    Args:
        root: folder of `write_dataset`.
        workers: loader processes.
        num_batches: joint batches of 32 captions and 32 texts, after the first one.
        started_at: `time.time()` when this process was started.
    """
    opening = time.time()
    imports = memory("imports only", os.getpid())
    loader = build_dataloader(open_task(root, int(workers)), "train")
    opened = time.time()
    batches = itertools.islice(epoch_batches(loader, epoch=0), int(num_batches) + 1)
    next(batches)
    start, samples = time.perf_counter(), sum(batch.num_samples for batch in batches)
    seconds = time.perf_counter() - start
    measured = {
        "second run: s from process start to open": opened - float(started_at),
        "second run: s to open": opened - opening,
        "samples": samples,
        "samples/s": samples / seconds,
        **imports,
        **memory("main process", os.getpid()),
    }
    for number, worker in enumerate(multiprocessing.active_children(), start=1):
        assert worker.pid, "the worker has been started"
        measured |= memory(f"worker {number}", worker.pid)
    Path(root, "measured.json").write_text(json.dumps(measured), encoding="utf-8")


def measure(root: Path, workers: int, num_batches: int) -> dict[str, float]:
    """Opens the files in `root` for the first time, and reads them in a new process."""
    measured: dict[str, float] = {}
    for name in (CAPTIONS, *CORPUS):
        path = root / name
        start = time.perf_counter()
        lines = LineIndex(str(path))
        seconds = time.perf_counter() - start
        measured |= {
            f"{name}: lines": len(lines),
            f"{name}: MB": path.stat().st_size / 1e6,
            f"{name}: first run, s to index": seconds,
        }
    command = [sys.executable, "-c", CHILD, str(root), str(workers), str(num_batches), str(time.time())]
    subprocess.run(command, cwd=ROOT, check=True)
    second_run: dict[str, float] = json.loads((root / "measured.json").read_text(encoding="utf-8"))
    return measured | second_run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captions", type=int, default=3_300_000, help="records (default %(default)s)")
    parser.add_argument(
        "--lines", type=int, default=50_000_000, help="lines of the corpus (default %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default %(default)s)")
    parser.add_argument("--batches", type=int, default=500, help="batches to read (default %(default)s)")
    parser.add_argument(
        "--folder", type=Path, help="folder for the temporary files (default: that of the system)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        write_dataset(Path(root), args.captions, args.lines)
        measured = measure(Path(root), args.workers, args.batches)
    rows: list[Row] = [{"what": what, "value": value} for what, value in measured.items()]
    publish(rows, args.json, machine=machine())


if __name__ == "__main__":
    sys.exit(run(main))
