import math
import os
import socket
import sys
import time

import pytest
import torch

from common.distributed import process_group as distributed
from common.errors import UsageError
from common.evaluation.evaluator import evaluate, predict
from common.training.metrics import Metrics, Ratio
from common.training.task import build_dataloader
from tests.common.distributed.processes import run_distributed, set_environ
from tests.common.training.toy import ToyTask, toy_config, toy_trainer

CPU = torch.device("cpu")


def config(**train):
    settings = {"RNG_SEED": 1, "NUM_WORKERS_PER_GPU": 0}
    return toy_config(**train).model_copy(update=settings)


def train(batch_size):
    """Returns final weights, after accumulation, and the metrics of the last epoch."""
    cfg = config(BATCH_IMAGES=batch_size, GRAD_ACCUMULATE_STEPS=2, CLIP_GRAD_NORM=1.0, OPTIMIZER="AdamW")
    task = ToyTask(cfg)
    loader = build_dataloader(task, "train")
    model = distributed.wrap_ddp(task.build_model())
    trainer = toy_trainer(cfg, len(loader), model=model, processes=distributed.world_size())
    trainer.fit(loader)
    state = trainer.state_dict()
    return {"weights": state["state_dict"], "metrics": trainer.metrics.compute(), "rng": len(state["rng"])}


class SevenItems(ToyTask):
    num_items = 7


def predict_and_evaluate():
    task = SevenItems(config())
    model = distributed.wrap_ddp(task.build_model())
    loader = build_dataloader(task, "val")
    return {"records": predict(task, model, loader, CPU), "metrics": evaluate(task, model, loader, CPU)}


class FrozenBatchNorm(torch.nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


def batch_norm_statistics(norm_class):
    """Returns running means after a step on different data and after the broadcast, and whether DDP has copied them."""
    norm = norm_class(1)
    model = distributed.wrap_ddp(norm)
    model(torch.full((2, 1, 2, 2), float(distributed.rank() + 1)))
    before = norm.running_mean.item()
    distributed.broadcast_buffers(norm)
    return before, norm.running_mean.item(), model.broadcast_buffers


def metrics_of_rank_1():
    metrics = Metrics()
    if distributed.rank() == 1:
        metrics.update(
            {"A": Ratio(torch.tensor(3.0), torch.tensor(4)), "B": Ratio(torch.tensor(0.0), torch.tensor(0))}
        )
    metrics.load_state_dict(metrics.state_dict())
    return metrics.compute()


def all_results():
    return {
        "trained": train(batch_size=2),
        "evaluated": predict_and_evaluate(),
        "metrics": metrics_of_rank_1(),
        "norms": [batch_norm_statistics(cls) for cls in (torch.nn.BatchNorm2d, FrozenBatchNorm)],
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Results of two processes, which take seconds to start."""
    return run_distributed(all_results, tmp_path_factory.mktemp("ranks"))


@pytest.mark.dist
def test_ddp_matches_one_process_with_the_double_batch(ranks):
    expected = train(batch_size=4)
    first, second = (result["trained"] for result in ranks)
    assert {name.removeprefix("module.") for name in first["weights"]} == set(expected["weights"])
    for name, value in first["weights"].items():
        assert name.startswith("module.")
        assert torch.equal(value, second["weights"][name])
        reference = expected["weights"][name.removeprefix("module.")]
        torch.testing.assert_close(value, reference, rtol=1e-6, atol=1e-6)
    assert first["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    assert (first["rng"], expected["rng"]) == (2, 1)


@pytest.mark.dist
def test_predict_returns_every_sample_once_in_order(ranks):
    expected = predict_and_evaluate()
    for result in (rank["evaluated"] for rank in ranks):
        assert [record["id"] for record in result["records"]] == [f"toy-{i}" for i in range(7)]
        scores = [record["score"] for record in result["records"]]
        assert scores == pytest.approx([record["score"] for record in expected["records"]])
        assert result["metrics"] == pytest.approx(expected["metrics"])


@pytest.mark.dist
def test_broadcast_buffers_copies_those_of_rank_0(ranks):
    first, second = (rank["norms"] for rank in ranks)
    # A step on 1 moves the mean from 0 to 0.1, a step on 2 to 0.2. DDP copies the buffers of trained norms only.
    assert first == [(pytest.approx(0.1), pytest.approx(0.1), True), (0.0, 0.0, False)]
    assert second == [(pytest.approx(0.2), pytest.approx(0.1), True), (0.0, 0.0, False)]


@pytest.mark.dist
def test_metrics_include_a_rank_without_batches(ranks):
    for values in (rank["metrics"] for rank in ranks):
        assert values["A"] == 0.75
        assert math.isnan(values["B"])


def test_functions_without_process_group():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects("x") == ["x"]
    distributed.barrier()
    model = torch.nn.Linear(1, 1)
    assert distributed.unwrap(distributed.wrap_ddp(model)) is model
    with distributed.no_sync(model, active=True):
        pass


@pytest.mark.integration
def test_slurm_environment(tmp_path, monkeypatch):
    environ = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n[1-2]"}
    expected = {"MASTER_ADDR": "n1", "WORLD_SIZE": "8", "RANK": "5"}
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostname n[1-2]" ] && echo n1 && echo n2\n')
    scontrol.chmod(0o755)
    assert distributed.slurm_environment(environ, 4) == expected | {"MASTER_PORT": "29500", "LOCAL_RANK": "1"}
    with_port = {**environ, "MASTER_PORT": "4"}
    assert distributed.slurm_environment(with_port, 0) == expected | {"MASTER_PORT": "4", "LOCAL_RANK": "0"}
    with pytest.raises(UsageError, match=r"--slurm: `scontrol show hostname x` failed"):
        distributed.slurm_environment({**environ, "SLURM_NODELIST": "x"}, 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda: distributed.init_distributed({"MASTER_ADDR": "x", "WORLD_SIZE": "1"}),
            "--dist: MASTER_PORT, RANK not set; start with torchrun",
        ),
        (
            lambda: distributed.slurm_environment({}, 1),
            "--slurm: SLURM_PROCID, SLURM_NTASKS, SLURM_NODELIST not set",
        ),
        (lambda: distributed.choose_gpus([7], [], 2), "--gpus 7: no such GPU; this machine has 0 to 1"),
        (
            lambda: distributed.choose_gpus([7], [], 0),
            "--gpus 7: no such GPU; this machine has none; omit the",
        ),
    ],
)
def test_bad_environment_or_flag(function, message):
    with pytest.raises(UsageError, match=message):
        function()


@pytest.mark.parametrize(
    ("flag", "listed", "available", "expected", "warning"),
    [
        (None, [0, 1], 2, (0, 1), ""),
        (None, [], 2, (), ""),
        ([1], [0], 2, (1,), ""),
        ([-1], [0], 2, (), ""),
        ([0, 0], [], 1, (0,), ""),
        (None, [0, 1, 2], 2, (0, 1), "GPUS=0,1,2 requested, but only some exist; using GPU 0, 1"),
        (None, [0], 0, (), "GPUS=0 requested, but no such CUDA device is available; running on the CPU"),
    ],
)
def test_choose_gpus(flag, listed, available, expected, warning, caplog):
    assert distributed.choose_gpus(flag, listed, available) == expected
    assert caplog.messages == ([warning] if warning else [])


@pytest.mark.parametrize("gpus", ["", "cpu"])
def test_setup_device_uses_the_cpu_without_gpus(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert distributed.setup_device(dist_flag=False, slurm=False, gpus_flag=None, gpus_listed=gpus) == CPU


@pytest.mark.parametrize(("visible", "devices"), [("", "0,2"), ("4,5,7", "4,7")])
def test_setup_device_restarts_with_one_process_per_gpu(visible, devices, monkeypatch):
    class Restarted(Exception):
        pass

    def execve(path, command, environ):
        launcher = ["-m", "common.distributed.launcher", "--standalone", "--local_addr=127.0.0.1"]
        assert command == [sys.executable, *launcher, "--nproc_per_node=2", "train.py", "--cfg", "x"]
        assert (path, environ["CUDA_VISIBLE_DEVICES"]) == (sys.executable, devices)
        raise Restarted

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg", "x"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(Restarted):
        distributed.setup_device(dist_flag=False, slurm=False, gpus_flag=None, gpus_listed="0,2")


@pytest.mark.integration
def test_init_distributed_names_a_port_in_use(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = str(server.getsockname()[1])
        environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0"}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=f"MASTER_PORT {port}: the processes cannot connect"):
            distributed.init_distributed(os.environ)


def connect(rank, port, attempt):
    """Joins as a process that torchrun started; the store of the first attempt still exists in the second."""
    set_environ(rank, 2, port, TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT=attempt)
    time.sleep(rank if attempt == "1" else 0)  # rank 0 must not take the old address of rank 1
    distributed.init_distributed(os.environ)
    assert distributed.gather_objects(rank) == [0, 1]
    os._exit(0)


@pytest.mark.dist
def test_init_distributed_after_a_restart():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for attempt in ("0", "1"):
        torch.multiprocessing.spawn(connect, (store.port, attempt), nprocs=2)
