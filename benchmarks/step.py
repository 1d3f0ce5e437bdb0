"""Cost of forward and backward passes at full model size, compared with the reference.

`python -m benchmarks.step --workload vcr_base_q2a`; all workloads by default. The model of the workload's yaml file has
random weights, and the batch is random with the row lengths of `workloads.json`; nothing is read from `data/` or
`model/`. Each workload runs in its own process, so that peak memory is measured separately.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import CASES, WORKLOADS
from benchmarks.report import Row, machine, publish
from common.batch import Batch
from common.training.precision import Precision
from common.training.task import Task


def memory_mb(device: torch.device, peak: bool) -> float:
    """Returns the memory allocated on a CUDA device, current or peak; on a CPU, the peak resident memory."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(name: str, device_name: str, steps: int, fp16: bool) -> dict[str, str | float]:
    """Runs one workload in this process: a warm-up step, `steps` timed steps, and a step that counts FLOPs."""
    workload = WORKLOADS[name]
    device = torch.device(device_name)
    torch.manual_seed(0)
    task, model, batch = CASES[workload["task"]](workload)
    model, batch = model.train().to(device), batch.to(device)
    precision = Precision(device, "fp16" if fp16 else "fp32")
    before = memory_mb(device, peak=False)
    step(task, model, batch, precision)
    start = time.perf_counter()
    for _ in range(steps):
        step(task, model, batch, precision)
    seconds = (time.perf_counter() - start) / steps
    peak = memory_mb(device, peak=True)
    with FlopCounterMode(display=False) as counter:
        step(task, model, batch, precision)
    gflop = counter.get_total_flops() / 1e9
    reference = workload["reference"]
    return {
        "workload": name,
        "GFLOP/step": gflop,
        "of reference": gflop / reference["gflop_per_step"],
        "s/step": seconds,
        "samples/s": batch.num_samples / seconds,
        "text tokens/s": batch.text.lengths.total / seconds,
        "regions/s": batch.num_boxes.total / seconds,
        "MB before": before,
        "peak MB": peak,
        # The reference was measured on a CPU.
        "peak of reference": peak / reference["peak_rss_mb"] if device.type == "cpu" else math.nan,
    }


def step(task: Task[Any, Any, Any], model: nn.Module, batch: Batch, precision: Precision) -> None:
    """Runs forward, losses and backward, and synchronizes the device."""
    model.zero_grad()
    with precision.autocast():
        losses = task.losses(model(batch), batch)
    precision.backward(task.total(losses))
    if batch.index.is_cuda:
        torch.cuda.synchronize(batch.index.device)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", nargs="+", default=["all"], choices=["all", *WORKLOADS], metavar="NAME")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--steps", type=int, default=2, help="timed steps after a warm-up step (default 2)")
    parser.add_argument(
        "--fp16", action="store_true", help="half precision, as TRAIN.FP16 (bfloat16 on a CPU)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rows: list[Row] = []
    for name in list(WORKLOADS) if "all" in args.workload else args.workload:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, name, args.device, args.steps, args.fp16).result())
    publish(rows, args.json, machine=machine(args.device))


if __name__ == "__main__":
    main()
