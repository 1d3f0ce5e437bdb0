"""Simulates the time of a training step on 1 to 1,024 GPUs: compute, gradient all-reduce and input. Measures nothing.

Usage: `python scripts/simulate_scaling.py [--model base] [--machine h100] [--network ib400x8] [--gpus 1 8 64 1024]
[--global-batch 256] [--csv FILE]`. docs/scaling.md discusses the results and has the sources of the numbers below.

The model: every GPU computes `accumulate` microbatches; the forward pass is a third of each. During the last backward
pass DDP reduces gradient buckets one after another as they become ready, at times proportional to their bytes. The word
embedding is a single gradient, which is never split, and comes last. Workers prefetch, so a step takes as long as the
slower of training and input. GPUs share disks and storage equally.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

if __package__ in (None, ""):  # run as a file: the parent folder holds the packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cli.run import run
from common.errors import UsageError
from common.files import replace_file

FORWARD_FRACTION = 1 / 3
OPTIMIZER_BYTES = 28
"""Per parameter: AdamW in fp32 reads weight, gradient and two moments, and writes all but the gradient."""
FIRST_BUCKET_MB = 1.0
LAUNCH_US = 8.4
NETWORK_HOP_US = 14.0
TREE_BANDWIDTH = 0.92
"""Fraction of the bandwidth that NCCL's tree reaches; from its tuning table (Simple protocol), like the latencies."""
MAX_GPUS = 1024


class Model(NamedTuple):
    """Cost of a pre-training sample; half of all samples have no image.

    Attributes:
        gflop: forward and backward pass of one sample (benchmarks/step.py).
        parameters: trainable parameters, in millions.
        word_embedding: parameters of the word embedding, in millions.
        input_mb: data read per sample, in MB.
        input_ms: CPU time of a worker per sample.
    """

    gflop: float
    parameters: float
    word_embedding: float
    input_mb: float
    input_ms: float


MODELS = {
    "base": Model(1055.46 / 32, 114.49, 23.44, 0.183, 0.8),
    "large": Model(3646.17 / 32, 342.07, 31.25, 0.183, 0.8),
    "base-e2e": Model(2309.77 / 4, 156.66, 23.44, 0.257, 4.3),
    "large-e2e": Model(2625.93 / 4, 384.24, 31.25, 0.257, 4.3),
}


class Machine(NamedTuple):
    """A machine with identical GPUs.

    Attributes:
        gpus: number of GPUs.
        tflops: dense bf16 peak of a GPU.
        memory_gbps: memory bandwidth of a GPU, in GB/s.
        link_gbps: bus bandwidth of an all-reduce inside the machine, in GB/s.
        ring_hop_us: latency of a ring hop inside the machine.
        tree_hop_us: latency of a tree hop inside the machine.
    """

    gpus: int
    tflops: float
    memory_gbps: float
    link_gbps: float
    ring_hop_us: float
    tree_hop_us: float = 4.0


MACHINES = {
    "h100": Machine(8, 989.4, 3350, 476, 3.4),
    "rtx4090": Machine(8, 165.15, 1008, 24.7, 5.7),
}
# GB/s between two machines over all adapters: 47 of 50 for each 400 Gb/s.
NETWORKS = {"ib400x8": 376.0, "ib400": 47.0, "eth100": 11.75, "eth10": 1.175}


class Plan(NamedTuple):
    """The settings of a run, except for the number of GPUs."""

    model: Model
    machine: Machine
    network_gbps: float
    network_hop_us: float = NETWORK_HOP_US
    utilization: float = 0.3
    batch: int = 64
    accumulate: int = 1
    global_batch: int = 0
    gradient_bytes: int = 4
    bucket_mb: float = 25.0
    workers: int = 4
    disk_gbps: float = 7.0
    storage_gbps: float = math.inf


class Step(NamedTuple):
    """One optimizer update; times in ms."""

    gpus: int
    batch: int
    accumulate: int
    compute_ms: float
    reduce_ms: float
    exposed_ms: float
    input_ms: float
    step_ms: float
    samples_per_s: float
    efficiency: float
    limit: str


def all_reduce_ms(mb: float, gpus: int, plan: Plan) -> float:
    """Returns the time of an all-reduce of `mb` megabytes: the faster of a ring and a double binary tree."""
    if gpus == 1:
        return 0.0
    machine = plan.machine
    nodes = math.ceil(gpus / machine.gpus)
    gbps = machine.link_gbps if nodes == 1 else min(machine.link_gbps, plan.network_gbps)
    outer = 2 * (nodes - 1)
    ring_hops_us = (2 * (gpus - 1) - outer) * machine.ring_hop_us + outer * plan.network_hop_us
    tree_hops_us = 2 * (
        (gpus // nodes - 1) * machine.tree_hop_us + math.floor(math.log2(nodes)) * plan.network_hop_us
    )
    ring = 2 * (gpus - 1) / gpus * mb / gbps + ring_hops_us / 1000
    tree = 2 * mb / (gbps * TREE_BANDWIDTH) + tree_hops_us / 1000
    return min(ring, tree) + LAUNCH_US / 1000


def bucket_sizes(total_mb: float, word_embedding_mb: float, bucket_mb: float) -> list[float]:
    """Returns bucket sizes in MB, in order: a small first one, full ones, the rest, the word embedding."""
    sizes: list[float] = []
    remaining = total_mb - word_embedding_mb
    while remaining > 1e-9:
        size = min(remaining, bucket_mb if sizes else min(FIRST_BUCKET_MB, bucket_mb))
        sizes.append(size)
        remaining -= size
    return [*sizes, word_embedding_mb] if word_embedding_mb else sizes


def finish_time(ready: Sequence[float], durations: Sequence[float]) -> float:
    """Returns when the last of several sequential jobs ends; each starts once it is ready and the previous ended."""
    end = 0.0
    for start, duration in zip(ready, durations, strict=True):
        end = max(end, start) + duration
    return end


def all_reduce_times(plan: Plan, gpus: int, backward_ms: float) -> tuple[float, float]:
    """Returns the time of all all-reduces of a step, and how much of it is not hidden by the backward pass."""
    # Parameters are in millions, so this is in MB.
    total = plan.gradient_bytes * plan.model.parameters
    sizes = bucket_sizes(total, plan.gradient_bytes * plan.model.word_embedding, plan.bucket_mb)
    durations = [all_reduce_ms(size, gpus, plan) for size in sizes]
    ready, done = [], 0.0
    for size in sizes:
        done += size
        ready.append(backward_ms * done / total)
    return sum(durations), max(0.0, finish_time(ready, durations) - backward_ms)


def split_batch(plan: Plan, gpus: int) -> tuple[int, int]:
    """Returns microbatch size and accumulation steps of a GPU: those of the plan, or what keeps the global batch.

    Raises:
        UsageError: the global batch or the GPUs cannot be divided evenly.
    """
    per_node = plan.machine.gpus
    if gpus > per_node and gpus % per_node:
        raise UsageError(f"--gpus {gpus}: must be a multiple of {per_node}, the GPUs per machine, or less")
    if not plan.global_batch:
        return plan.batch, plan.accumulate
    if plan.global_batch % gpus:
        raise UsageError(f"--global-batch {plan.global_batch}: not divisible by {gpus} GPUs")
    per_gpu = plan.global_batch // gpus
    accumulate = next(n for n in range(1, per_gpu + 1) if per_gpu % n == 0 and per_gpu // n <= plan.batch)
    return per_gpu // accumulate, accumulate


def simulate(plan: Plan, gpus: int) -> Step:
    """Simulates one step on `gpus` GPUs.

    Raises:
        UsageError: the global batch or the GPUs cannot be divided evenly.
    """
    batch, accumulate = split_batch(plan, gpus)
    micro_ms = batch * plan.model.gflop / (plan.machine.tflops * plan.utilization)
    update_ms = OPTIMIZER_BYTES * plan.model.parameters / plan.machine.memory_gbps
    compute_ms = accumulate * micro_ms + update_ms
    backward_ms = (1 - FORWARD_FRACTION) * micro_ms
    reduce_ms, exposed_ms = all_reduce_times(plan, gpus, backward_ms)
    input_mb = accumulate * batch * plan.model.input_mb
    # The slowest stage limits the input; a machine shares its disks, and all machines share the storage.
    stages = {
        "workers": accumulate * batch * plan.model.input_ms / plan.workers,
        "disk": min(gpus, plan.machine.gpus) * input_mb / plan.disk_gbps,
        "storage": gpus * input_mb / plan.storage_gbps,
    }
    slowest = max(stages, key=lambda stage: stages[stage])
    training_ms = compute_ms + exposed_ms
    step_ms = max(training_ms, stages[slowest])
    limit = "links" if reduce_ms > backward_ms else "compute"
    return Step(
        gpus=gpus,
        batch=batch,
        accumulate=accumulate,
        compute_ms=compute_ms,
        reduce_ms=reduce_ms,
        exposed_ms=exposed_ms,
        input_ms=stages[slowest],
        step_ms=step_ms,
        samples_per_s=1000 * gpus * accumulate * batch / step_ms,
        efficiency=compute_ms / step_ms,
        limit=slowest if stages[slowest] > training_ms else limit,
    )


def first_limit(plan: Plan, max_gpus: int = MAX_GPUS) -> Step | None:
    """Returns the first power of two of GPUs up to `max_gpus` at which a step is not limited by compute."""
    for gpus in (2**power for power in range(int(math.log2(max_gpus)) + 1)):
        if plan.global_batch % gpus:
            break
        step = simulate(plan, gpus)
        if step.limit != "compute":
            return step
    return None


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    # argparse prints this name in its message.
    parse.__name__ = f"positive {'integer' if kind is int else 'number'}"
    return parse


def _parser() -> argparse.ArgumentParser:
    number, whole, plan = _positive(float), _positive(int), Plan._field_defaults
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", choices=MODELS, default="base", help="pre-training model (default: %(default)s)")
    add("--machine", choices=MACHINES, default="h100", help="machine (default: %(default)s)")
    add(
        "--network",
        choices=NETWORKS,
        default="ib400x8",
        help="network between machines (default: %(default)s)",
    )
    add("--gpus", type=whole, nargs="+", default=[1, 8, 16, 64, 256, 1024], help="numbers of GPUs")
    for name, parse, description in (
        ("batch", whole, "samples of a GPU in a microbatch"),
        ("accumulate", whole, "microbatches per step"),
        ("utilization", number, "fraction of the peak FLOPS that is reached"),
        ("gradient-bytes", whole, "4 for fp32, 2 with a bf16 hook"),
        ("bucket-mb", number, "DDP's bucket_cap_mb"),
        ("workers", whole, "data loading workers per GPU"),
        ("disk-gbps", number, "read bandwidth of the disks of a machine, GB/s"),
        ("storage-gbps", number, "read bandwidth of the storage that all machines share, GB/s"),
        ("network-hop-us", number, "latency between machines"),
    ):
        default = plan[name.replace("-", "_")]
        add(f"--{name}", type=parse, default=default, help=f"{description} (default: {default})")
    add(
        "--global-batch",
        type=whole,
        default=0,
        help="keep this batch size on any number of GPUs, with microbatches of at most --batch",
    )
    for name, parse in (("gflop", number), ("input-mb", number), ("input-ms", number)):
        add(f"--{name}", type=parse, help="per sample; overrides --model")
    add("--csv", type=Path, metavar="FILE", help="also write the table to this file")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and the number of GPUs from which a step is not limited by compute."""
    args = vars(_parser().parse_args(arguments))
    overrides = {key: args[key] for key in ("gflop", "input_mb", "input_ms") if args[key] is not None}
    plan = Plan(
        model=MODELS[args["model"]]._replace(**overrides),
        machine=MACHINES[args["machine"]],
        network_gbps=NETWORKS[args["network"]],
        **{key: args[key] for key in Plan._field_defaults},
    )
    if plan.utilization > 1:
        raise UsageError(f"--utilization {plan.utilization:g}: must be at most 1")
    steps = pd.DataFrame([simulate(plan, gpus) for gpus in args["gpus"]])
    if path := args["csv"]:
        try:
            replace_file(path, lambda temporary: temporary.write_text(steps.to_csv(index=False)))
        except OSError as error:
            raise UsageError(f"--csv {path}: cannot be written ({error.strerror})") from error
    print(steps.to_string(index=False, float_format="{:,.4g}".format))
    step = first_limit(plan)
    if step:
        print(
            f"from {step.gpus} GPUs on, a step is limited by: {step.limit} (efficiency {step.efficiency:.0%})"
        )
    else:
        print(f"a step is limited by compute on all numbers of GPUs up to {MAX_GPUS}")


if __name__ == "__main__":
    sys.exit(run(main))
