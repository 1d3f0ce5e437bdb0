import pytest
import torch

from common.cli import evaluate
from common.config import schema
from common.errors import ConfigError
from tests.common.training.toy import ToyTask


def load_evaluation(cfg, *flags, split="test"):
    args = evaluate.checkpoint_parser("toy", "split").parse_args(
        ["--cfg", str(cfg), "--model-dir", str(cfg.parent), *flags]
    )
    return evaluate.load_evaluation(args, ToyTask, split)


def test_load_evaluation_defaults(cfg):
    evaluation = load_evaluation(cfg)
    assert evaluation.path == cfg.parent / "out/toy.cfg/toytrain_train/net-best.model"
    assert evaluation.output_dir == cfg.parent / "out/toy.cfg/toytest_test"
    assert evaluation.output_dir.is_dir()
    assert evaluation.task.config.TEST.BATCH_IMAGES == 1


def test_load_evaluation_flags_override_the_yaml_file(cfg):
    results = cfg.parent / "results"
    flags = ("--ckpt", "x.model", "--bs", "7", "--split", "new", "--result-path", str(results))
    evaluation = load_evaluation(cfg, *flags, "--set", "VAL.SHUFFLE=true", split="val")
    assert (str(evaluation.path), evaluation.output_dir) == ("x.model", results)
    config = evaluation.task.config
    assert (config.VAL.BATCH_IMAGES, config.VAL.SHUFFLE) == (7, False)
    assert (config.DATASET.VAL_IMAGE_SET, config.DATASET.TEST_IMAGE_SET) == ("new", "toytest")
    with pytest.raises(ConfigError, match=r"--set VAL.BATCH_IMAGES=0|VAL.BATCH_IMAGES: 0"):
        load_evaluation(cfg, "--bs", "0", split="val")


def test_load_evaluation_reads_yaml_and_checkpoint_once(cfg, monkeypatch):
    reads = []

    def record(function):
        def call(path, *args, **kwargs):
            reads.append(path)
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr(evaluate, "load_yaml", record(schema.load_yaml))
    monkeypatch.setattr(schema, "load_yaml", evaluate.load_yaml)
    monkeypatch.setattr(torch, "load", record(torch.load))
    path = cfg.parent / "x.model"
    weights = ToyTask(schema.load_config(schema.ExperimentConfig, cfg)).build_model().state_dict()
    torch.save({"state_dict": weights, "config": "RNG_SEED: 77"}, path)
    reads.clear()
    evaluation = load_evaluation(cfg, "--ckpt", str(path), "--set", "RNG_SEED=-1", "--split", "new")
    assert evaluation.task.config.RNG_SEED == 77
    assert not evaluation.load_model().training
    assert reads == [cfg, path]
