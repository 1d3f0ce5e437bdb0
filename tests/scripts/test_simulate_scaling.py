import csv
import re
from pathlib import Path

import pytest

from common.cli.run import run
from common.errors import UsageError
from scripts import simulate_scaling
from scripts.simulate_scaling import (
    Machine,
    Model,
    Plan,
    all_reduce_ms,
    bucket_sizes,
    finish_time,
    first_limit,
    simulate,
    split_batch,
)

# 1 GFLOP per sample at 1 GFLOP/ms, so a sample takes 1 ms; 10 MB of gradients, 4 of them of the word embedding.
MODEL = Model(gflop=1.0, parameters=2.5, word_embedding=1.0, input_mb=2.0, input_ms=3.0)
# Only bandwidth takes time.
MACHINE = Machine(gpus=4, tflops=1.0, memory_gbps=70.0, link_gbps=10.0, ring_hop_us=0.0, tree_hop_us=0.0)
PLAN = Plan(
    MODEL,
    MACHINE,
    network_gbps=1.0,
    network_hop_us=0.0,
    utilization=1.0,
    batch=6,
    bucket_mb=2.0,
    workers=9,
    disk_gbps=1000.0,
)


@pytest.fixture(autouse=True)
def _no_launch_latency(monkeypatch):
    monkeypatch.setattr(simulate_scaling, "LAUNCH_US", 0.0)


@pytest.mark.parametrize(
    ("gpus", "network_gbps", "milliseconds"),
    [
        (4, 1.0, 3.0),  # each GPU sends 2 (N - 1) / N of the data: 1.5 x 20 MB at 10 GB/s
        (2, 1.0, 2.0),
        (1, 1.0, 0.0),
        (8, 1.0, 35.0),  # between machines the slower link counts: 2 x 7/8 x 20 MB at 1 GB/s
        (8, 100.0, 3.5),
    ],
)
def test_all_reduce_ms_of_a_ring(gpus, network_gbps, milliseconds):
    plan = PLAN._replace(network_gbps=network_gbps)
    assert all_reduce_ms(20, gpus, plan) == pytest.approx(milliseconds)


def test_all_reduce_ms_uses_a_tree_where_it_is_faster():
    plan = PLAN._replace(
        machine=MACHINE._replace(ring_hop_us=1000, tree_hop_us=500), network_hop_us=2000, network_gbps=10.0
    )
    # 16 GPUs on 4 machines. Ring: 30 hops, 6 of them between machines. Tree: up and down 3 hops and 2 levels.
    ring, tree = 24 * 1 + 6 * 2, 2 * (3 * 0.5 + 2 * 2)
    assert all_reduce_ms(0, 16, plan) == pytest.approx(min(ring, tree)) == pytest.approx(11)
    # For large messages the lower bandwidth of the tree dominates: 2 x 15/16 versus 2 / 0.92 of 1 GB at 10 GB/s.
    assert all_reduce_ms(1000, 16, plan) == pytest.approx(187.5 + ring)


def test_all_reduce_ms_includes_the_launch(monkeypatch):
    monkeypatch.setattr(simulate_scaling, "LAUNCH_US", 500.0)
    assert all_reduce_ms(20, 4, PLAN) == pytest.approx(3.5)
    assert all_reduce_ms(20, 1, PLAN) == 0


def test_bucket_sizes():
    assert bucket_sizes(10, 4, 2) == [1, 2, 2, 1, 4]
    assert bucket_sizes(10, 0, 100) == [1, 9]
    assert bucket_sizes(10, 4, 0.5) == [0.5] * 12 + [4]


def test_finish_time_waits_for_readiness_and_for_the_previous_job():
    assert finish_time([1, 2, 9], [2, 2, 1]) == 10  # 1-3, 3-5, 9-10
    assert finish_time([1, 2, 3], [5, 1, 1]) == 8  # 1-6, 6-7, 7-8


def test_simulate_limited_by_compute():
    step = simulate(PLAN, 4)
    # 6 ms of samples, 28 B x 2.5 million at 70 GB/s.
    assert step.compute_ms == pytest.approx(6 + 1)
    # 1.5 x 10 MB at 10 GB/s are hidden by a backward pass of 4 ms, except for the word embedding at its end.
    assert step.reduce_ms == pytest.approx(1.5)
    assert step.exposed_ms == pytest.approx(0.6)
    assert step.input_ms == pytest.approx(6 * 3 / 9)
    assert step.step_ms == pytest.approx(7.6)
    assert step.efficiency == pytest.approx(7 / 7.6)
    assert step.samples_per_s == pytest.approx(4 * 6 / 7.6e-3)
    assert step.limit == "compute"


def test_simulate_limited_by_links():
    # 2 x 7/8 x 10 MB at 1 GB/s is 17.5 ms. The first bucket of 1 MB is ready after 0.4 of 4 ms, then all queue.
    step = simulate(PLAN, 8)
    assert step.limit == "links"
    assert step.exposed_ms == pytest.approx(0.4 + 17.5 - 4)
    # Accumulation sends as much for more samples; bf16 gradients are half as large.
    assert simulate(PLAN._replace(accumulate=3), 8).step_ms == pytest.approx(step.step_ms + 2 * 6)
    assert simulate(PLAN._replace(gradient_bytes=2), 8).reduce_ms == pytest.approx(17.5 / 2)
    assert first_limit(PLAN).gpus == 8


@pytest.mark.parametrize(
    ("change", "gpus", "limit", "milliseconds"),
    [
        ({"workers": 1}, 1, "workers", 6 * 3),
        ({"disk_gbps": 1.0}, 4, "disk", 4 * 6 * 2),  # shared by four GPUs
        ({"disk_gbps": 0.5}, 8, "disk", 4 * 6 * 2 / 0.5),  # every machine has its own disks
        ({"storage_gbps": 4.0}, 8, "storage", 8 * 6 * 2 / 4),  # shared by all
        ({"workers": 1, "accumulate": 2}, 1, "workers", 2 * 6 * 3),
    ],
)
def test_simulate_limited_by_input(change, gpus, limit, milliseconds):
    step = simulate(PLAN._replace(**change), gpus)
    assert step.limit == limit
    assert step.step_ms == step.input_ms == pytest.approx(milliseconds)


def test_split_batch_keeps_the_global_batch():
    plan = PLAN._replace(global_batch=48, batch=16)
    assert [split_batch(plan, gpus) for gpus in (1, 2, 4, 8, 16, 48)] == [
        (16, 3), (12, 2), (12, 1), (6, 1), (3, 1), (1, 1),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="--global-batch 48: not divisible by 64 GPUs"):
        split_batch(plan, 64)
    # The search ends where the batch is no longer divisible.
    assert first_limit(plan._replace(network_gbps=1e6)) is None


def test_main_prints_and_writes_the_same_table(tmp_path, capsys):
    simulate_scaling.main(["--gpus", "1", "8", "--csv", str(tmp_path / "steps.csv"), "--workers", "16"])
    lines = capsys.readouterr().out.splitlines()
    with (tmp_path / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == lines[0].split()
    assert [row["gpus"] for row in rows] == ["1", "8"] == [line.split()[0] for line in lines[1:3]]
    assert float(rows[0]["exposed_ms"]) == 0 < float(rows[1]["exposed_ms"])
    assert re.fullmatch(r"from \d+ GPUs on, a step is limited by: \w+ \(efficiency \d+%\)", lines[3])
    assert list(tmp_path.iterdir()) == [tmp_path / "steps.csv"]
    simulate_scaling.main(["--gpus", "1", "--gflop", "1e6", "--input-ms", "0.1"])
    assert capsys.readouterr().out.endswith("limited by compute on all numbers of GPUs up to 1024\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", 12], "error: --gpus 12: must be a multiple of 8"),
        (["--gpus", 0], "argument --gpus: invalid positive integer value: '0'"),
        (["--batch", "many"], "argument --batch: invalid positive integer value: 'many'"),
        (["--disk-gbps", "nan"], "argument --disk-gbps: invalid positive number value: 'nan'"),
        (["--utilization", 30], "error: --utilization 30: must be at most 1"),
        (["--network", "wire"], "argument --network: invalid choice: 'wire'"),
        (["--csv", Path("/nowhere/x.csv")], "error: --csv /nowhere/x.csv: cannot be written (No such file"),
    ],
)
def test_main_rejects_bad_arguments(arguments, message, capsys):
    try:
        status = run(lambda: simulate_scaling.main([*map(str, arguments)]))
    except SystemExit as end:  # argparse
        status = end.code
    output = capsys.readouterr()
    assert status == 2
    assert message in output.err
    assert output.out == ""
