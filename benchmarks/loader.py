"""Throughput of the data loader: reading, decoding, tokenization, masks, resizing and collation.

`python -m benchmarks.loader` reads the training split of a VCR yaml file, by default the toy data, as training does:
once in the main process and once with two workers.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

from benchmarks.report import machine, publish
from common.cli.run import run
from common.config.schema import load_config
from common.data.loader import epoch_batches
from common.training.task import build_dataloader
from vcr.config import VCRConfig
from vcr.task import VCRTask


def measure(cfg: str, overrides: list[str], workers: int, num_batches: int) -> dict[str, str | float]:
    """Reads `num_batches` batches and times all but the first, which includes the start of the workers."""
    config = load_config(VCRConfig, cfg, [*overrides, f"NUM_WORKERS_PER_GPU={workers}"])
    batches = iter(
        itertools.islice(epoch_batches(build_dataloader(VCRTask(config), "train"), epoch=0), num_batches)
    )
    next(batches)
    samples = tokens = regions = 0
    start = time.perf_counter()
    for batch in batches:
        samples += batch.num_samples
        tokens += batch.text.lengths.total
        regions += batch.num_boxes.total
    seconds = time.perf_counter() - start
    return {
        "workers": workers,
        "samples": samples,
        "samples/s": samples / seconds,
        "ms/sample": 1000 * seconds / max(samples, 1),
        "text tokens/s": tokens / seconds,
        "regions/s": regions / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", default="cfgs/vcr/toy_q2a.yaml", help="yaml file (default %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="as in training")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="default 0 2")
    parser.add_argument("--batches", type=int, default=100, help="batches to read (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    args = parser.parse_args()
    rows = [measure(args.cfg, args.set, workers, args.batches) for workers in args.workers]
    publish(rows, args.json, machine=machine())


if __name__ == "__main__":
    sys.exit(run(main))
