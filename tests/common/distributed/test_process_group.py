import math
import os
import socket
import sys
import time

import pytest
import torch

from common.data.loader import build_loader
from common.data.samplers import EpochBatches
from common.distributed import process_group as distributed
from common.errors import UsageError
from common.evaluation.evaluator import evaluate, predict
from common.training.metrics import Metrics, Ratio
from tests.common.distributed.processes import run_distributed
from tests.common.training.toy import ToyTask, toy_config, toy_trainer

CPU = torch.device("cpu")


def toy_loader(task, batch_size, training):
    dataset = task.build_dataset("train")
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    batches = EpochBatches(len(dataset), batch_size, shuffle=training, seed=1, pad=training, **ranks)
    return build_loader([dataset], batches, batch_type=dataset.batch_type, num_workers=0, pin_memory=False)


def train(batch_size):
    """Final weights, the step of accumulation included, and the metrics of the last epoch."""
    config = toy_config(
        BATCH_IMAGES=batch_size, GRAD_ACCUMULATE_STEPS=2, CLIP_GRAD_NORM=1.0, OPTIMIZER="AdamW"
    )
    task = ToyTask(config)
    loader = toy_loader(task, batch_size, training=True)
    model = distributed.wrap_ddp(task.build_model())
    trainer = toy_trainer(config, len(loader), model=model, processes=distributed.world_size())
    trainer.fit(loader)
    state = trainer.state_dict()
    return {
        "weights": state["state_dict"],
        "metrics": trainer.metrics.compute(),
        "streams": len(state["rng"]),
    }


class SevenItems(ToyTask):
    num_items = 7


def predict_and_evaluate():
    task = SevenItems(toy_config())
    model = distributed.wrap_ddp(task.build_model())
    loader = toy_loader(task, 2, training=False)
    records = predict(task, model, loader, CPU)
    return {"records": records, "metrics": evaluate(task, model, loader, CPU), "training": model.training}


def normalise_apart():
    """Statistics of a training batch norm after one forward of different data, before and after sharing."""
    model = torch.nn.BatchNorm2d(1)
    wrapped = distributed.wrap_ddp(model)
    wrapped(torch.full((2, 1, 2, 2), float(distributed.rank() + 1)))
    before = model.running_mean.item()
    distributed.broadcast_buffers(model)
    return {"before": before, "after": model.running_mean.item()}


def uneven_metrics():
    metrics = Metrics()
    if distributed.rank() == 1:
        metrics.update(
            {"A": Ratio(torch.tensor(3.0), torch.tensor(4)), "B": Ratio(torch.tensor(0.0), torch.tensor(0))}
        )
    state = metrics.state_dict()
    metrics.load_state_dict(state)
    return metrics.compute()


def everything():
    return {
        "trained": train(batch_size=2),
        "evaluated": predict_and_evaluate(),
        "uneven": uneven_metrics(),
        "norms": normalise_apart(),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes return; started once, as starting them takes seconds."""
    return run_distributed(everything, tmp_path_factory.mktemp("ranks"))


@pytest.mark.dist
def test_two_processes_train_like_one_with_the_double_batch(ranks):
    one = train(batch_size=4)
    first, second = (result["trained"] for result in ranks)
    assert {name.removeprefix("module.") for name in first["weights"]} == set(one["weights"])
    for name, value in first["weights"].items():
        assert name.startswith("module.")
        assert torch.equal(value, second["weights"][name])
        torch.testing.assert_close(value, one["weights"][name.removeprefix("module.")], rtol=1e-6, atol=1e-6)
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    assert (first["streams"], one["streams"]) == (2, 1)


@pytest.mark.dist
def test_two_processes_predict_every_sample_once_in_order(ranks):
    alone = predict_and_evaluate()
    for result in (rank["evaluated"] for rank in ranks):
        assert [record["id"] for record in result["records"]] == [f"toy-{i}" for i in range(7)]
        scores = [record["score"] for record in result["records"]]
        assert scores == pytest.approx([record["score"] for record in alone["records"]])
        assert result["metrics"] == pytest.approx(alone["metrics"])


@pytest.mark.dist
def test_all_ranks_evaluate_with_the_statistics_of_rank_0(ranks):
    first, second = (rank["norms"] for rank in ranks)
    assert first["before"] != second["before"]
    assert first["after"] == second["after"] == first["before"]


@pytest.mark.dist
def test_a_rank_without_batches_takes_part_in_the_reduction(ranks):
    for values in (rank["uneven"] for rank in ranks):
        assert values["A"] == 0.75
        assert math.isnan(values["B"])


def test_one_process():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects("x") == ["x"]
    distributed.barrier()
    model = torch.nn.Linear(1, 1)
    assert distributed.unwrap(distributed.wrap_ddp(model)) is model
    with distributed.no_sync(model, active=True):
        pass


def test_dist_needs_the_launcher():
    with pytest.raises(UsageError, match="--dist: MASTER_PORT, RANK not set; start with torchrun"):
        distributed.init_distributed({"MASTER_ADDR": "x", "WORLD_SIZE": "1"})


def test_slurm():
    environ = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_NODELIST": "n[1-2]"}
    assert distributed.slurm_environment(environ, 4, "n1") == {
        "MASTER_PORT": "29500",
        "MASTER_ADDR": "n1",
        "WORLD_SIZE": "8",
        "RANK": "5",
        "LOCAL_RANK": "1",
    }
    assert distributed.slurm_environment({**environ, "MASTER_PORT": "4"}, 0, "n1")["MASTER_PORT"] == "4"
    with pytest.raises(UsageError, match="--slurm: SLURM_PROCID, SLURM_NTASKS, SLURM_NODELIST not set"):
        distributed.slurm_environment({}, 1, "")


@pytest.mark.parametrize(
    ("flag", "listed", "available", "expected"),
    [
        (None, [0, 1], 2, (0, 1)),
        (None, [], 2, ()),
        ([1], [0], 2, (1,)),
        ([-1], [0], 2, ()),
        ([0, 0], [], 1, (0,)),
    ],
)
def test_which_gpus(flag, listed, available, expected, caplog):
    assert distributed.choose_gpus(flag, listed, available) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("available", "expected", "says"), [(0, (), "running on the CPU"), (2, (0, 1), "using GPU 0, 1")]
)
def test_a_yaml_list_of_absent_gpus_is_a_warning(available, expected, says, caplog):
    assert distributed.choose_gpus(None, [0, 1, 2, 3], available) == expected
    (record,) = caplog.records
    assert says in record.getMessage()
    assert record.levelname == "WARNING"


@pytest.mark.parametrize(("available", "has"), [(0, "none; leave the flag out"), (2, "0 to 1")])
def test_an_absent_gpu_on_the_command_line_is_an_error(available, has):
    with pytest.raises(UsageError, match=f"--gpus 7: no such GPU on this machine, which has {has}"):
        distributed.choose_gpus([7], [], available)


def test_the_command_is_started_once_per_gpu():
    command, environ = distributed.torchrun_command([0, 2], ["train.py", "--cfg", "x"], {"A": "b"})
    assert command == [
        sys.executable,
        *(
            "-m",
            "common.distributed.launcher",
            "--standalone",
            "--local_addr=127.0.0.1",
            "--nproc_per_node=2",
        ),
        *("train.py", "--cfg", "x"),
    ]
    assert environ == {"A": "b", "CUDA_VISIBLE_DEVICES": "0,2"}
    _, environ = distributed.torchrun_command([0, 2], [], {"CUDA_VISIBLE_DEVICES": "4,5,7"})
    assert environ["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_a_cpu_run_needs_nothing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for gpus in ("", "cpu"):
        assert distributed.setup_device(dist_flag=False, slurm=False, gpus_flag=None, gpus_listed=gpus) == CPU


def test_several_gpus_start_the_command_anew(monkeypatch):
    class Started(Exception):
        pass

    def execve(*arguments):
        raise Started(arguments)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("os.execve", execve)
    with pytest.raises(Started, match="nproc_per_node=2"):
        distributed.setup_device(dist_flag=False, slurm=False, gpus_flag=None, gpus_listed="0,1")


def test_a_place_where_nobody_can_meet(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = str(server.getsockname()[1])
        environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0"}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=f"MASTER_PORT {port}: the processes cannot meet there"):
            distributed.init_distributed(os.environ)


def meet_again(rank, port, attempt):
    """As torchrun starts processes anew: the store that the first ones met at is still there."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank))
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT=attempt)
    time.sleep(rank if attempt == "1" else 0)  # rank 0 must not take the address that rank 1 had
    distributed.init_distributed(os.environ)
    assert distributed.gather_objects(rank) == [0, 1]
    os._exit(0)


@pytest.mark.dist
def test_processes_that_are_started_again_meet_each_other():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for attempt in ("0", "1"):
        torch.multiprocessing.spawn(meet_again, (store.port, attempt), nprocs=2)
