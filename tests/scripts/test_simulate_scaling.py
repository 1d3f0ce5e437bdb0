import csv
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
    buckets,
    finish,
    first_limit,
    simulate,
    split_batch,
)

# 1 GFLOP per sample at 1 GFLOP/ms, so a sample takes 1 ms; 10 MB of gradients, 4 of them the word table.
MODEL = Model(gflop=1.0, parameters=2.5, table=1.0, input_mb=2.0, input_ms=3.0)
# Nothing but the bandwidth costs time.
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
def _launch_is_free(monkeypatch):
    monkeypatch.setattr(simulate_scaling, "LAUNCH_US", 0.0)


def test_ring():
    # Each GPU sends and receives 2 (N - 1) / N of the data: 1.5 x 20 MB at 10 GB/s.
    assert all_reduce_ms(20, 4, PLAN) == pytest.approx(3.0)
    assert all_reduce_ms(20, 2, PLAN) == pytest.approx(2.0)
    assert all_reduce_ms(20, 1, PLAN) == 0
    # Between computers the slower link counts: 2 x 7/8 x 20 MB at 1 GB/s.
    assert all_reduce_ms(20, 8, PLAN) == pytest.approx(35.0)
    fast = PLAN._replace(network_gbps=100.0)
    assert all_reduce_ms(20, 8, fast) == pytest.approx(3.5)


def test_a_tree_where_hops_are_many():
    plan = PLAN._replace(
        machine=MACHINE._replace(ring_hop_us=1000, tree_hop_us=500), network_hop_us=2000, network_gbps=10.0
    )
    # 16 GPUs on 4 computers. Ring: 30 steps, 6 of them between computers. Tree: up and down 3 hops and 2 levels.
    ring, tree = 24 * 1 + 6 * 2, 2 * (3 * 0.5 + 2 * 2)
    assert all_reduce_ms(0, 16, plan) == pytest.approx(min(ring, tree)) == pytest.approx(11)
    # With much to send the tree's lower bandwidth costs more: 2 x 15/16 against 2 / 0.92 of 1 GB at 10 GB/s.
    assert all_reduce_ms(1000, 16, plan) == pytest.approx(187.5 + ring)


def test_a_launch_costs_as_well(monkeypatch):
    monkeypatch.setattr(simulate_scaling, "LAUNCH_US", 500.0)
    assert all_reduce_ms(20, 4, PLAN) == pytest.approx(3.5)
    assert all_reduce_ms(20, 1, PLAN) == 0


def test_buckets():
    assert buckets(10, 4, 2) == [1, 2, 2, 1, 4]
    assert buckets(10, 0, 100) == [1, 9]
    assert buckets(10, 4, 0.5) == [0.5] * 12 + [4]


def test_jobs_wait_for_data_and_for_each_other():
    assert finish([1, 2, 9], [2, 2, 1]) == 10  # 1-3, 3-5, 9-10
    assert finish([1, 2, 3], [5, 1, 1]) == 8  # 1-6, 6-7, 7-8


def test_a_step():
    step = simulate(PLAN, 4)
    # 6 ms of samples, 28 B x 2.5 million at 70 GB/s.
    assert step.compute_ms == pytest.approx(6 + 1)
    # 1.5 x 10 MB at 10 GB/s hide in a backward pass of 4 ms, but the table, ready at its end: 1.5 x 4 MB.
    assert step.reduce_ms == pytest.approx(1.5)
    assert step.exposed_ms == pytest.approx(0.6)
    assert step.input_ms == pytest.approx(6 * 3 / 9)
    assert step.step_ms == pytest.approx(7.6)
    assert step.efficiency == pytest.approx(7 / 7.6)
    assert step.samples_per_s == pytest.approx(4 * 6 / 7.6e-3)
    assert step.limit == "compute"


def test_links_limit():
    # 2 x 7/8 x 10 MB at 1 GB/s is 17.5 ms. The first bucket of 1 MB is ready after 0.4 of 4 ms, then all queue.
    step = simulate(PLAN, 8)
    assert step.limit == "links"
    assert step.exposed_ms == pytest.approx(0.4 + 17.5 - 4)
    # Accumulation sends as much for more samples; bf16 gradients are half of it.
    assert simulate(PLAN._replace(accumulate=3), 8).step_ms == pytest.approx(step.step_ms + 2 * 6)
    assert simulate(PLAN._replace(gradient_bytes=2), 8).reduce_ms == pytest.approx(17.5 / 2)
    assert first_limit(PLAN).gpus == 8


@pytest.mark.parametrize(
    ("change", "gpus", "limit", "milliseconds"),
    [
        ({"workers": 1}, 1, "workers", 6 * 3),
        ({"disk_gbps": 1.0}, 4, "disk", 4 * 6 * 2),  # four GPUs share it
        ({"disk_gbps": 0.5}, 8, "disk", 4 * 6 * 2 / 0.5),  # more computers have more disks
        ({"storage_gbps": 4.0}, 8, "storage", 8 * 6 * 2 / 4),  # all share it
        ({"workers": 1, "accumulate": 2}, 1, "workers", 2 * 6 * 3),
    ],
)
def test_input_limits(change, gpus, limit, milliseconds):
    step = simulate(PLAN._replace(**change), gpus)
    assert step.limit == limit
    assert step.step_ms == step.input_ms == pytest.approx(milliseconds)


def test_a_global_batch_is_kept():
    plan = PLAN._replace(global_batch=48, batch=16)
    assert [split_batch(plan, gpus) for gpus in (1, 2, 4, 8, 16, 48)] == [
        (16, 3), (12, 2), (12, 1), (6, 1), (3, 1), (1, 1),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="--global-batch 48: cannot be dealt evenly to 64 GPUs"):
        split_batch(plan, 64)
    # The search ends where the batch does.
    assert first_limit(plan._replace(network_gbps=1e6)) is None


def test_prints_and_writes_the_same_table(tmp_path, capsys):
    simulate_scaling.main(["--gpus", "1", "8", "--csv", str(tmp_path / "steps.csv"), "--workers", "16"])
    printed = capsys.readouterr().out.splitlines()
    with (tmp_path / "steps.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == printed[0].split()
    assert [row["gpus"] for row in rows] == ["1", "8"] == [line.split()[0] for line in printed[1:3]]
    assert float(rows[0]["exposed_ms"]) == 0 < float(rows[1]["exposed_ms"])
    assert printed[3].startswith("from ")
    assert list(tmp_path.iterdir()) == [tmp_path / "steps.csv"]


def test_nothing_limits(capsys):
    simulate_scaling.main(["--gpus", "1", "--gflop", "1e6", "--input-ms", "0.1"])
    assert (
        capsys.readouterr().out.splitlines()[-1] == "compute limits a step on every number of GPUs up to 1024"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", 12], "error: --gpus 12: above 8, a number of whole machines of 8 GPUs"),
        (["--gpus", 0], "argument --gpus: invalid positive whole number value: '0'"),
        (["--batch", "many"], "argument --batch: invalid positive whole number value: 'many'"),
        (["--disk-gbps", "nan"], "argument --disk-gbps: invalid positive number value: 'nan'"),
        (["--utilization", 30], "error: --utilization 30: is a share, at most 1"),
        (["--network", "wire"], "argument --network: invalid choice: 'wire'"),
        (["--csv", Path("/nowhere/x.csv")], "error: --csv /nowhere/x.csv: cannot be written (No such file"),
    ],
)
def test_refuses_what_cannot_be_meant(arguments, message, capsys):
    try:
        status = run(lambda: simulate_scaling.main([*map(str, arguments)]))
    except SystemExit as end:  # by argparse
        status = end.code
    printed = capsys.readouterr()
    assert status == 2
    assert message in printed.err
    assert printed.out == ""
