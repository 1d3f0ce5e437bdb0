"""Budget of a training step on 1 to 1,024 GPUs: compute, all-reduce of the gradients, input. It measures nothing.

Usage: `python scripts/simulate_scaling.py [--model base] [--machine h100] [--network ib400x8] [--gpus 1 8 64 1024]
[--global-batch 256] [--csv FILE]`. docs/scaling.md reads the results and names the sources of the numbers below.

The model: every GPU computes `accumulate` micro batches; a third of a micro batch is its forward pass. During the
last backward pass DDP reduces buckets of gradients one after another as they become ready, at times in proportion to
their bytes. The word table is one gradient, which is never cut, and comes last. Workers read ahead, so a step takes
as long as the slower one of training and input. A GPU's share of disks and storage is equal.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # run as a file: the folder above holds the packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cli.run import run
from common.errors import UsageError
from common.files import replace_file

FORWARD_SHARE = 1 / 3
OPTIMIZER_BYTES = 28
"""AdamW in fp32 reads weight, gradient and two moments of each parameter and writes all but the gradient."""
FIRST_BUCKET_MB = 1.0
LAUNCH_US = 8.4
NETWORK_HOP_US = 14.0
TREE_BANDWIDTH = 0.92
"""Share of the bandwidth that NCCL's tree reaches; like the latencies from its tuning table (Simple protocol)."""
WIDEST = 1024


class Model(NamedTuple):
    """What a sample costs in pre-training; samples without a picture count as half of all.

    Attributes:
        gflop: forward and backward pass of one sample (benchmarks/step.py).
        parameters: those that train, in millions.
        table: the word table among them.
        input_mb: what is read per sample, in MB.
        input_ms: CPU time per sample of one worker.
    """

    gflop: float
    parameters: float
    table: float
    input_mb: float
    input_ms: float


MODELS = {
    "base": Model(1055.46 / 32, 114.49, 23.44, 0.183, 0.8),
    "large": Model(3646.17 / 32, 342.07, 31.25, 0.183, 0.8),
    "base-e2e": Model(2309.77 / 4, 156.66, 23.44, 0.257, 4.3),
    "large-e2e": Model(2625.93 / 4, 384.24, 31.25, 0.257, 4.3),
}


class Machine(NamedTuple):
    """A computer with equal GPUs.

    Attributes:
        gpus: of one computer.
        tflops: dense bf16 peak of a GPU.
        memory_gbps: bandwidth of its memory, in GB/s.
        link_gbps: bus bandwidth of an all-reduce inside the computer, in GB/s.
        ring_hop_us: latency of a step of a ring inside the computer.
        tree_hop_us: the same of a tree.
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
# GB/s between two computers, all their adapters together: 47 of 50 for each 400 Gb/s.
NETWORKS = {"ib400x8": 376.0, "ib400": 47.0, "eth100": 11.75, "eth10": 1.175}


class Plan(NamedTuple):
    """A run, except for its number of GPUs."""

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
    """One update of a run; times in ms."""

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
    """Time to sum `mb` megabytes over all GPUs by the faster one of a ring and a double binary tree."""
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


def buckets(total_mb: float, table_mb: float, bucket_mb: float) -> list[float]:
    """Sizes in MB in the order of reduction: a small one, full ones, what is left, the word table."""
    sizes: list[float] = []
    left = total_mb - table_mb
    while left > 1e-9:
        size = min(left, bucket_mb if sizes else min(FIRST_BUCKET_MB, bucket_mb))
        sizes.append(size)
        left -= size
    return [*sizes, table_mb] if table_mb else sizes


def finish(ready: Sequence[float], durations: Sequence[float]) -> float:
    """When the last of several jobs is done that run one after another, each not before it is ready."""
    end = 0.0
    for begin, duration in zip(ready, durations, strict=True):
        end = max(end, begin) + duration
    return end


def reduction(plan: Plan, gpus: int, backward_ms: float) -> tuple[float, float]:
    """Returns the time of all all-reduces of a step, and by how much the last ends after the backward pass."""
    megabytes = plan.gradient_bytes  # of a million parameters
    total, table = megabytes * plan.model.parameters, megabytes * plan.model.table
    sizes = buckets(total, table, plan.bucket_mb)
    durations = [all_reduce_ms(size, gpus, plan) for size in sizes]
    ready, done = [], 0.0
    for size in sizes:
        done += size
        ready.append(backward_ms * done / total)
    return sum(durations), max(0.0, finish(ready, durations) - backward_ms)


def input_times(plan: Plan, gpus: int, samples: int) -> dict[str, float]:
    """Time in ms that each stage of the input needs for the `samples` of one GPU."""
    mb = samples * plan.model.input_mb
    here = min(gpus, plan.machine.gpus)
    return {
        "workers": samples * plan.model.input_ms / plan.workers,
        "disk": here * mb / plan.disk_gbps,
        "storage": gpus * mb / plan.storage_gbps,
    }


def split_batch(plan: Plan, gpus: int) -> tuple[int, int]:
    """Returns micro batch and accumulation of one GPU: those given, or what keeps the global batch.

    Raises:
        UsageError: the global batch or the GPUs cannot be divided evenly.
    """
    per_node = plan.machine.gpus
    if gpus > per_node and gpus % per_node:
        raise UsageError(f"--gpus {gpus}: above {per_node}, a number of whole machines of {per_node} GPUs")
    if not plan.global_batch:
        return plan.batch, plan.accumulate
    if plan.global_batch % gpus:
        raise UsageError(f"--global-batch {plan.global_batch}: cannot be dealt evenly to {gpus} GPUs")
    share = plan.global_batch // gpus
    accumulate = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= plan.batch)
    return share // accumulate, accumulate


def simulate(plan: Plan, gpus: int) -> Step:
    """Computes one update on `gpus` GPUs.

    Raises:
        UsageError: this number of GPUs cannot be.
    """
    batch, accumulate = split_batch(plan, gpus)
    micro_ms = batch * plan.model.gflop / (plan.machine.tflops * plan.utilization)
    update_ms = OPTIMIZER_BYTES * plan.model.parameters / plan.machine.memory_gbps
    compute_ms = accumulate * micro_ms + update_ms
    backward_ms = (1 - FORWARD_SHARE) * micro_ms
    reduce_ms, exposed_ms = reduction(plan, gpus, backward_ms)
    stages = input_times(plan, gpus, accumulate * batch)
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


def first_limit(plan: Plan, widest: int = WIDEST) -> Step | None:
    """The first power of two of GPUs up to `widest` at which something else than compute limits a step."""
    for gpus in (2**power for power in range(int(math.log2(widest)) + 1)):
        if plan.global_batch % gpus:
            break
        step = simulate(plan, gpus)
        if step.limit != "compute":
            return step
    return None


def table(steps: Sequence[Step]) -> str:
    """Lays steps out in columns, as wide as their names."""
    lines = ["  ".join(Step._fields)]
    for step in steps:
        cells = [f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in step]
        lines.append(
            "  ".join(f"{cell:>{len(name)}}" for name, cell in zip(Step._fields, cells, strict=True))
        )
    return "\n".join(lines)


def write_csv(steps: Sequence[Step], path: Path) -> None:
    """Writes the table.

    Raises:
        UsageError: nothing can be written there.
    """

    def fill(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([Step._fields, *steps])

    try:
        replace_file(path, fill)
    except OSError as error:
        raise UsageError(f"--csv {path}: cannot be written ({error.strerror})") from error


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    parse.__name__ = (
        f"positive {'whole number' if kind is int else 'number'}"  # argparse names it in its message
    )
    return parse


def _parser() -> argparse.ArgumentParser:
    number, whole, plan = _positive(float), _positive(int), Plan._field_defaults
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", choices=MODELS, default="base", help="pre-training model (default: %(default)s)")
    add("--machine", choices=MACHINES, default="h100", help="kind of computer (default: %(default)s)")
    add("--network", choices=NETWORKS, default="ib400x8", help="between them (default: %(default)s)")
    add("--gpus", type=whole, nargs="+", default=[1, 8, 16, 64, 256, 1024], help="numbers of GPUs")
    for name, parse, meaning in (
        ("batch", whole, "samples of one GPU in a micro batch"),
        ("accumulate", whole, "micro batches of an update"),
        ("utilization", number, "share of the peak that is reached"),
        ("gradient-bytes", whole, "4 for fp32, 2 with a bf16 hook"),
        ("bucket-mb", number, "DDP's bucket_cap_mb"),
        ("workers", whole, "loading processes of one GPU"),
        ("disk-gbps", number, "what a computer reads from its own disks, GB/s"),
        ("storage-gbps", number, "what all computers together read from shared storage, GB/s"),
        ("network-hop-us", number, "latency between computers"),
    ):
        default = plan[name.replace("-", "_")]
        add(f"--{name}", type=parse, default=default, help=f"{meaning} (default: {default})")
    add(
        "--global-batch",
        type=whole,
        default=0,
        help="keep this batch on any number of GPUs, of at most --batch each",
    )
    for name, parse in (("gflop", number), ("input-mb", number), ("input-ms", number)):
        add(f"--{name}", type=parse, help="per sample, in place of that of --model")
    add("--csv", type=Path, metavar="FILE", help="also write the table there")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, and where something else than compute begins to limit."""
    given = vars(_parser().parse_args(arguments))
    chosen = {key: given[key] for key in ("gflop", "input_mb", "input_ms") if given[key] is not None}
    plan = Plan(
        model=MODELS[given["model"]]._replace(**chosen),
        machine=MACHINES[given["machine"]],
        network_gbps=NETWORKS[given["network"]],
        **{key: given[key] for key in Plan._field_defaults},
    )
    if plan.utilization > 1:
        raise UsageError(f"--utilization {plan.utilization:g}: is a share, at most 1")
    steps = [simulate(plan, gpus) for gpus in given["gpus"]]
    if given["csv"]:
        write_csv(steps, given["csv"])
    print(table(steps))
    step = first_limit(plan)
    if step:
        print(f"from {step.gpus} GPUs on {step.limit} limit a step: {step.efficiency:.0%} efficiency there")
    else:
        print(f"compute limits a step on every number of GPUs up to {WIDEST}")


if __name__ == "__main__":
    sys.exit(run(main))
