import logging
from functools import partial

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from common.distributed import process_group as distributed
from common.models.pretrained import read_weights
from common.training.callbacks import (
    Callback,
    Checkpointing,
    ProgressBar,
    Speedometer,
    TensorBoard,
    ValidationMonitor,
)
from common.training.step_monitor import PhaseTimes
from tests.common.distributed.processes import run_distributed
from tests.common.training.toy import ToyTask, toy_batches, toy_config, toy_trainer

TIMES = PhaseTimes(0.01, 0.002, 0.3, 0.5, 0.1, 0.05)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def run_speedometer(speedometer, clock, positions, frequent, seconds, times=TIMES):
    lines = []
    for epoch, batch in positions:
        speedometer.tick(epoch, times)
        if batch % frequent == 0:
            lines.append(speedometer.line(batch, {"Acc": 0.5, "AnsLoss": 2.0}))
        clock.now += seconds
    return lines


def test_speedometer_lines():
    clock = Clock()
    lines = run_speedometer(Speedometer(16, 2, 4, 1, clock=clock), clock, [(0, b) for b in range(4)], 2, 60.0)
    assert lines == [
        "Epoch[0] Batch [0]\tSpeed: - samples/sec ETA: - d - h - m\tTrain-Acc=0.500000,\tAnsLoss=2.000000,\t",
        "Epoch[0] Batch [2]\tSpeed: 0.27 samples/s ETA: 0 d  0 h  2 m\t"
        "Data: 0.015 Tran: 0.003 F: 0.450 B: 0.750 O: 0.150 M: 0.075\tTrain-Acc=0.500000,\tAnsLoss=2.000000,\t",
    ]


def test_speedometer_clears_its_window_each_epoch():
    clock = Clock()
    positions = [(epoch, batch) for epoch in range(2) for batch in range(4)]
    lines = run_speedometer(Speedometer(1, 2, 4, 2, clock=clock), clock, positions, 2, 1.0)
    assert "Data: 0.015" in lines[3]


def test_speedometer_first_line_of_each_epoch_and_rank():
    clock = Clock()
    lines = run_speedometer(Speedometer(1, 1, 1, 2, rank=3, clock=clock), clock, [(0, 0), (1, 0)], 1, 1.0)
    assert [line.split("\t")[:2] for line in lines] == [
        [f"Rank[  3]Epoch[{epoch}] Batch [0]", "Speed: - samples/sec ETA: - d - h - m"] for epoch in range(2)
    ]


def test_speedometer_eta_in_days():
    clock = Clock()
    lines = run_speedometer(Speedometer(4, 1, 50000, 20, clock=clock), clock, [(0, 0), (0, 1)], 1, 3.3)
    assert "Speed: 1.21 samples/s ETA: 38 d  4 h 39 m" in lines[1]


def read_events(folder):
    """Scalars of the only event file: {tag: [(step, value)]}."""
    (path,) = folder.iterdir()
    data, scalars, place = path.read_bytes(), {}, 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        event = Event.FromString(data[place + 12 : place + 12 + length])
        for value in event.summary.value:
            scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
        place += 16 + length
    return scalars


def test_tensorboard_tags(tmp_path):
    results = iter([0.25, 0.5])
    monitor = ValidationMonitor(lambda: {"Acc": next(results), "Other": 0.0}, "Acc")
    config = toy_config(CLIP_GRAD_NORM=100.0, GRAD_ACCUMULATE_STEPS=2)
    config = config.model_copy(update={"LOG_FREQUENT": 2})
    toy_trainer(config, 4, [TensorBoard(tmp_path), monitor]).fit(toy_batches(4))
    scalars = read_events(tmp_path)
    assert set(scalars) == {
        *("Initial-LR/Group_0", "LR/Group_0", "grad-para/Total-Norm"),
        *("Train-Loss", "Train-Acc", "Train-ToyLoss", "Val-Acc", "Val-Other"),
    }
    steps = {tag: [step for step, _ in points] for tag, points in scalars.items()}
    assert steps["Initial-LR/Group_0"] == steps["LR/Group_0"] == steps["Train-Loss"] == list(range(8))
    assert steps["grad-para/Total-Norm"] == [1, 3, 5, 7]
    assert steps["Train-Acc"] == steps["Train-ToyLoss"] == [0, 2, 4, 6]
    assert scalars["Val-Acc"] == [(1, 0.25), (2, 0.5)]
    # Not divided by the accumulation: outputs 0.25 and -0.5 for targets 1 and 0.
    assert scalars["Train-Loss"][0][1] == pytest.approx((0.75**2 + 0.5**2) / 2)


def log_two_ranks(folder):
    config = toy_config(END_EPOCH=1)
    model = distributed.wrap_ddp(ToyTask(config).build_model())
    batch = toy_batches(2)[distributed.rank()]
    trainer = toy_trainer(config, 1, [TensorBoard(folder)], model=model, processes=2)
    trainer.fit([batch])
    return float(trainer.loss)


@pytest.mark.dist
def test_tensorboard_loss_is_the_mean_over_ranks(tmp_path):
    shares = run_distributed(partial(log_two_ranks, tmp_path / "log"), tmp_path)
    assert shares[0] != shares[1]
    assert read_events(tmp_path / "log")["Train-Loss"] == [(0, pytest.approx(sum(shares) / 2))]


def fit(results, folder=None, frequent=1, metric="Acc", val_frequent=1):
    config = toy_config(END_EPOCH=4)
    results = iter(results)
    monitor = ValidationMonitor(lambda: {"Acc": next(results), "Other": 0.0}, metric, val_frequent)
    callbacks = [monitor]
    if folder is not None:
        keys = {"MODEL_PREFIX": "net", "CHECKPOINT_FREQUENT": frequent}
        callbacks.append(
            Checkpointing(folder, config.model_copy(update=keys), monitor, {"config": "MODULE: x\n"})
        )
    trainer = toy_trainer(config, 1, callbacks)
    trainer.fit(toy_batches(1))
    return monitor


def test_validation_log_lines(caplog):
    with caplog.at_level(logging.INFO):
        fit([0.3, 0.5, 0.5, float("nan")])
    lines = [record.message for record in caplog.records if "Val" in record.message]
    assert lines == [
        "New Best Val Acc: 0.3, Epoch: 0",
        "Epoch[0] \tVal-Acc=0.300000,\tOther=0.000000,\t",
        "Best Val Acc: 0.3, Epoch: 0",
        "New Best Val Acc: 0.5, Epoch: 1",
        "Epoch[1] \tVal-Acc=0.500000,\tOther=0.000000,\t",
        "Best Val Acc: 0.5, Epoch: 1",
        "Epoch[2] \tVal-Acc=0.500000,\tOther=0.000000,\t",
        "Best Val Acc: 0.5, Epoch: 1",
        "Epoch[3] \tVal-Acc=nan,\tOther=0.000000,\t",
        "Best Val Acc: 0.5, Epoch: 1",
    ]


def test_validation_frequency():
    monitor = fit([0.3, 0.2], val_frequent=2)
    assert monitor.state_dict() == {"best_epoch": 1, "best_val": 0.3}


def test_validation_warns_about_missing_metric(caplog):
    monitor = fit([0.1] * 4, metric="RefAcc")
    assert monitor.best_epoch == -1
    assert "validation has no metric RefAcc" in caplog.text


def test_validation_drives_plateau_schedule():
    results = iter([0.5, 0.4, 0.4])
    config = toy_config(END_EPOCH=3, LR=0.1, LR_SCHEDULE="plateau")
    trainer = toy_trainer(config, 1, [ValidationMonitor(lambda: {"Acc": next(results)}, "Acc")])
    trainer.fit(toy_batches(1))
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_checkpointing_writes_epochs_and_best(tmp_path):
    fit([0.3, 0.5, 0.5, 0.4], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"net-000{epoch}.model" for epoch in range(4)),
        "net-best.model",
    ]
    best = read_weights(tmp_path / "net-best.model")
    assert best["validation_monitor"] == {"best_epoch": 1, "best_val": 0.5}
    assert best["epoch"] == 2
    assert best["config"] == "MODULE: x\n"
    assert set(best["state_dict"]) == {"linear.weight", "linear.bias"}
    assert {"lr", "initial_lr", "momentum", "weight_decay", "params"} <= set(
        best["optimizer"]["param_groups"][0]
    )
    same = read_weights(tmp_path / "net-0001.model")["state_dict"]
    assert all(torch.equal(value, same[name]) for name, value in best["state_dict"].items())


def test_checkpointing_writes_best_between_epoch_files(tmp_path):
    fit([0.3, 0.2, 0.9, 0.1], tmp_path, frequent=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "net-0001.model",
        "net-0003.model",
        "net-best.model",
    ]
    assert read_weights(tmp_path / "net-best.model")["validation_monitor"]["best_epoch"] == 2


def save(folder, batches, callback=(), **keys):
    """Trains with a validation after each of two epochs, and tells what is left."""
    config = toy_config(GRAD_ACCUMULATE_STEPS=2).model_copy(update={"MODEL_PREFIX": "net", **keys})
    monitor = ValidationMonitor(lambda: {"Acc": 0.5}, "Acc")
    toy_trainer(config, batches, [*callback, monitor, Checkpointing(folder, config, monitor, {})]).fit(
        toy_batches(batches)
    )
    return sorted(path.name.removeprefix("net-").removesuffix(".model") for path in folder.iterdir())


class Latest(Callback):
    """Notes what the latest state holds after each batch."""

    def __init__(self, path):
        self.path = path
        self.places = []

    def on_batch_end(self, trainer):
        state = read_weights(self.path) if self.path.exists() else {"epoch": None, "batch": None}
        self.places.append((state["epoch"], state["batch"]))


def test_checkpointing_writes_latest_between_steps(tmp_path):
    latest = Latest(tmp_path / "net-latest.model")
    names = save(tmp_path, 5, [latest], CHECKPOINT_STEPS=2)
    assert names == ["0000", "0001", "best", "latest", "previous"]
    # Three updates per epoch: the fourth is the first of the second epoch.
    none = (None, None)
    assert latest.places == [none, none, none, none, (0, 4), (1, 0), (1, 0), (1, 2), (1, 2), (1, 2)]
    assert (tmp_path / "net-latest.model").samefile(tmp_path / "net-0001.model")
    before = read_weights(tmp_path / "net-previous.model")
    assert (before["epoch"], before["batch"]) == (1, 5), "the validation was still to come"


def test_checkpoint_keep_preserves_best(tmp_path):
    assert save(tmp_path, 1, CHECKPOINT_KEEP=1) == ["0001", "best"]
    assert read_weights(tmp_path / "net-best.model")["epoch"] == 1


def test_checkpoint_keep_preserves_the_resume_source(tmp_path):
    class Damaged(Callback):
        """Another epoch's file, which the run has passed over."""

        def on_train_start(self, trainer):
            (tmp_path / "net-0000.model").touch()
            (tmp_path / "net-0001.model").touch()
            trainer.state.epoch = 1

        def on_batch_end(self, trainer):
            assert (tmp_path / "net-0000.model").exists()

    assert save(tmp_path, 4, [Damaged()], CHECKPOINT_KEEP=1, CHECKPOINT_STEPS=1)[:1] == ["0001"]


def test_checkpoint_is_written_after_the_log(tmp_path):
    class Order(Callback):
        def on_log(self, trainer, values):
            self.logged = trainer.state.batch

        def on_save(self, trainer):
            assert self.logged == trainer.state.batch

    save(tmp_path, 2, [Order()], CHECKPOINT_STEPS=1)


def test_progress_bar_without_terminal(capsys):
    toy_trainer(toy_config(), 2, [ProgressBar()]).fit(toy_batches(2))
    assert capsys.readouterr().err == ""


def test_progress_bar_on_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    toy_trainer(toy_config(), 2, [ProgressBar()]).fit(toy_batches(2))
    assert "Epoch 1:" in capsys.readouterr().err
