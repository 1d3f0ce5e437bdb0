import logging
import random
import re

import numpy as np
import pytest
import torch
from torch import nn

from common.cli import run as run_cli
from common.cli import train as main
from common.config.schema import ExperimentConfig, dump_config, load_config
from common.errors import ConfigError
from common.models.pretrained import read_weights
from common.training import task as build
from common.training.checkpoint import config_of
from common.training.optim import effective_batch_size
from tests.common.training.toy import ToyTask, toy_config


def arguments(cfg, *more):
    return main.train_parser("toy").parse_args(["--cfg", str(cfg), "--model-dir", str(cfg.parent), *more])


def output(cfg):
    return cfg.parent / "out" / "toy.cfg" / "toytrain_train"


def test_train_writes_all_files(cfg):
    assert run_cli.run(lambda: main.train_net(arguments(cfg), ToyTask)) == 0
    folder = output(cfg)
    (log,) = folder.glob("*.log")
    assert re.fullmatch(r"toy\.cfg_\d{4}-\d\d-\d\d-\d\d-\d\d\.log", log.name)
    assert {path.name for path in folder.iterdir()} == {
        *("net-0000.model", "net-0001.model", "net-best.model", "tensorboard_logs"),
        *("resolved.yaml", "pretrained.txt", "toy.cfg.yaml", "toy.py", log.name),
    }
    text = log.read_text()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} training args:Namespace", text, re.M)
    for line in (
        "effective batch size 4, base lr 0.04, 3 steps per epoch",
        "PROGRESS: 50.00%",
        "Best Val Acc",
    ):
        assert line in text
    assert "|linear.weight    |torch.float32    |(1, 2)    |2    |" in text
    assert "Epoch[1] Batch [2]\tSpeed" in text
    assert load_config(ExperimentConfig, folder / "resolved.yaml").TRAIN.LR == 0.01


def test_train_resumes_without_pretrained_weights(cfg, monkeypatch):
    main.train_net(arguments(cfg, "--set", "TRAIN.END_EPOCH=1"), ToyTask)
    monkeypatch.setattr(
        ToyTask, "load_pretrained", lambda self, model: pytest.fail("pretrained weights were read")
    )
    _, resumed = main.train_net(arguments(cfg), ToyTask)
    saved = read_weights(output(cfg) / "net-0001.model")
    assert (saved["epoch"], saved["batch"], saved["global_step"]) == (2, 0, 6)
    assert saved["versions"]["torch"] == str(torch.__version__)
    monkeypatch.undo()
    rank, straight = main.train_net(arguments(cfg, "--model-dir", str(cfg.parent / "b")), ToyTask)
    assert rank is None
    assert torch.equal(straight.linear.weight, resumed.linear.weight)


def test_do_test_uses_the_best_checkpoint(cfg, caplog):
    main.train_net(arguments(cfg, "--do-test"), ToyTask)
    folder = output(cfg).parent / "toytest_test"
    assert {path.name for path in folder.iterdir()} == {"net_test_ckpt_Q2AR.model", "net_toy.txt"}
    assert (folder / "net_test_ckpt_Q2AR.model").samefile(output(cfg) / "net-best.model")
    assert len((folder / "net_toy.txt").read_text().splitlines()) == 12


def test_train_rejects_unwritable_output_folder(cfg):
    (cfg.parent / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"OUTPUT_PATH: .*toytrain_train: not writable"):
        main.train_net(arguments(cfg), ToyTask)


def test_train_flags_override_keys(cfg):
    args = arguments(
        cfg, "--set", "TRAIN.LR=0.5", "--set", "VAL.BATCH_IMAGES=2", "--partial-pretrain", "a: b.model"
    )
    config = main.load_train_config(args, ToyTask)
    assert config.TRAIN.LR == 0.5
    assert config.VAL.BATCH_IMAGES == 2
    assert config.NETWORK.PARTIAL_PRETRAIN == "a: b.model"
    assert str(cfg.parent / "out") == config.OUTPUT_PATH
    assert effective_batch_size(config.TRAIN, 1) == 4


def test_train_rejects_zero_epochs(cfg):
    with pytest.raises(ConfigError, match=r"TRAIN\.END_EPOCH: 0: must be at least 1"):
        main.load_train_config(arguments(cfg, "--set", "TRAIN.END_EPOCH=0"), ToyTask)


def test_run_missing_config_has_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--cfg", str(tmp_path / "none.yaml")])
    with pytest.raises(SystemExit) as stop:
        main.train_main(ToyTask)
    assert stop.value.code == 2
    assert "none.yaml" in capsys.readouterr().err


def test_parameter_table():
    model = nn.Linear(5, 4)
    model.bias.requires_grad = False
    rule = "-" * (10 + 17 + 10 + 6 + 5)
    assert main.parameter_table(model).splitlines() == [
        ">> Trainable Parameters:",
        rule,
        "|Name      |Dtype            |Shape     |#Params|",
        rule,
        "|weight    |torch.float32    |(4, 5)    |20    |",
        rule,
        ">> # TrainableParams:    \t0.00\tM",
        ">> # NonTrainableParams: \t0.00\tM",
        ">> # TotalParams:        \t0.00\tM",
    ]


def test_seed_everything():
    def draw():
        main.seed_everything(7)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_with_seed_keeps_the_saved_seed(caplog):
    config = toy_config()
    saved = config_of({"config": dump_config(config.model_copy(update={"RNG_SEED": 77}))})
    with caplog.at_level(logging.INFO):
        assert main.with_seed(config, {}, 5).RNG_SEED == 5
        assert main.with_seed(config, saved, 5).RNG_SEED == 77
    assert "RNG_SEED -1: this run uses 77" in caplog.text
    assert main.with_seed(config.model_copy(update={"RNG_SEED": 6}), saved, 5).RNG_SEED == 6
    for other in ({}, {"config": {"RNG_SEED": 77}}, {"config": "of another program"}):
        assert main.with_seed(config, config_of(other), 5).RNG_SEED == 5


def test_build_dataloader_per_split():
    config = toy_config(BATCH_IMAGES=5).model_copy(update={"RNG_SEED": 0, "NUM_WORKERS_PER_GPU": 0})
    task = ToyTask(config)
    assert [len(build.build_dataloader(task, split)) for split in ("train", "val")] == [3, 12]
    batches = {split: build.build_dataloader(task, split).batch_sampler for split in ("train", "val")}
    assert {split: (value.shuffle, value.pad) for split, value in batches.items()} == {
        **{"train": (True, True), "val": (False, False)},
    }
