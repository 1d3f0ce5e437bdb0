"""The commands of pre-training on a small world: training, validation, resuming, fine-tuning from the result."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch

from common.config.schema import load_config
from common.training.callbacks import Callback
from common.training.optim import build_optimizer, build_schedule
from common.training.task import build_dataloader
from common.training.trainer import Trainer
from pretrain.config import PretrainConfig
from pretrain.task import PretrainTask
from tests.pretrain.world import World

METRICS = ["MLMAccWVC", "MLMAccAUX", "MVRCAccuracy", "MLMLossWVC", "MLMLossAUX", "MVRCLoss"]
TEXTS_ALONE = 52
"""Lines of both text files together."""


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train() == 0
    return world


def validated(line: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"(\w+)=([-\d.]+)", line)}


def test_training_writes_what_the_readme_says(trained):
    folder = trained.checkpoint().parent
    names = {path.name for path in folder.iterdir()}
    assert {"resolved.yaml", "model.py", "toy-0000.model", "toy-best.model", "tensorboard_logs"} <= names
    log = next(folder.glob("*.log")).read_text()
    assert "Best Val MLMAccWVC:" in log
    (line,) = re.findall(r"\tVal-(.*)", log)
    assert list(validated(line)) == METRICS
    assert list(validated(re.findall(r"Train-(.*)", log)[0])) == METRICS


def test_validation_is_the_same_every_time(trained, capsys):
    log = next(trained.checkpoint().parent.glob("*.log")).read_text()
    expected = validated(re.findall(r"\tVal-(.*)", log)[0])
    for _ in range(2):
        assert trained.evaluate("val", *trained.model(), "--result-name", "x") == 0
        printed = dict(line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line)
        assert {name: float(value) for name, value in printed.items()} == pytest.approx(expected, abs=2e-6)
    (found,) = json.loads((trained.out / "results/x_val.json").read_text())
    assert found == pytest.approx(expected, abs=2e-6)
    flags = (*trained.model(), "--result-name", "y", "--split", "train", "--bs", "5")
    assert trained.evaluate("val", *flags) == 0
    (other,) = json.loads((trained.out / "results/y_train.json").read_text())
    assert other != found


def test_a_seed_that_was_left_open_is_the_one_of_the_run(world):
    open_seed = "RNG_SEED=-1"
    assert world.train(open_seed) == 0
    expected = validated(re.findall(r"\tVal-(.*)", next(world.out.rglob("*.log")).read_text())[0])
    assert world.evaluate("val", *world.model(), "--result-name", "x", changes=(open_seed,)) == 0
    (found,) = json.loads((world.out / "results/x_val.json").read_text())
    assert found == pytest.approx(expected, abs=2e-6)


def test_losses_are_means_over_labels_whatever_the_batches(trained):
    found = {}
    for size in ("1", "5"):
        flags = (*trained.model(), "--result-name", f"b{size}", "--bs", size)
        assert trained.evaluate("val", *flags) == 0
        (found[size],) = json.loads((trained.out / f"results/b{size}_val.json").read_text())
    for name in ("MLMLossWVC", "MVRCLoss"):
        assert found["1"][name] == pytest.approx(found["5"][name], rel=1e-5)


def test_the_parameters_are_those_of_an_official_file(trained):
    state = torch.load(trained.checkpoint(), weights_only=True)["state_dict"]
    word_table, decoder = (
        state[f"vlbert.{name}.weight"] for name in ("word_embeddings", "mlm_head.predictions.decoder")
    )
    assert torch.equal(word_table, decoder)


def test_there_is_nothing_to_test(world, caplog):
    assert world.train(flags=("--do-test",)) == 0
    assert "--do-test: pretrain has no test split" in caplog.text


def test_a_model_of_attention_maps_has_nothing_to_evaluate(trained, capsys):
    changes = ("MODULE=ResNetVLBERTForAttentionVis", "TRAIN.END_EPOCH=0")
    assert trained.evaluate("val", *trained.model(), changes=changes) == 2
    assert "MODULE: ResNetVLBERTForAttentionVis: restores nothing" in capsys.readouterr().err


def test_a_missing_text_is_named(world, capsys):
    (world.corpus / "bc1g.doc").unlink()
    assert world.train() == 1
    assert "bc1g.doc" in capsys.readouterr().err
    assert not list(world.out.rglob("*.model"))


def prepared(world: World, *changes: str) -> tuple[PretrainTask, Trainer]:
    task = PretrainTask(load_config(PretrainConfig, world.cfg, [*world.settings(list(changes))[1::2]]))
    torch.manual_seed(3)
    model = task.build_model()
    train = task.config.TRAIN
    optimizer = build_optimizer(train, dict(model.named_parameters()), 1)
    return task, Trainer(task, model, optimizer, build_schedule(train, optimizer, 7))


class Recorder(Callback):
    """Notes which records were trained on, and what a checkpoint would hold after some steps."""

    def __init__(self, stop: int = -1) -> None:
        self.seen: list[tuple[str, ...]] = []
        self.saved: dict = {}
        self.stop = stop

    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.state.global_batch + 1 == self.stop:
            self.saved = copy.deepcopy(trainer.state_dict())


def spied(loader, recorder):
    load = loader.dataset.__getitems__

    def noted(keys):
        samples = load(keys)
        recorder.seen.append(tuple(f"{key.source}/{key.epoch}/{key.index}" for key in keys))
        return samples

    loader.dataset.__getitems__ = noted
    return loader


@pytest.mark.parametrize("stop", [3, 9])
def test_a_run_resumed_inside_an_epoch_continues_all_corpora(world, stop):
    # 26 captions are 7 batches of 4; 52 texts are 6 of 10: their second pass begins inside the first epoch.
    changes = ("TRAIN.END_EPOCH=2", "TRAIN.BATCH_IMAGES=[4,10]")
    straight, resumed = Recorder(stop), Recorder()
    task, trainer = prepared(world, *changes)
    trainer.callbacks = [straight]
    trainer.fit(spied(build_dataloader(task, "train"), straight))
    assert len(straight.seen) == 14
    texts = [key for keys in straight.seen for key in keys if key.startswith("1/0/")]
    assert sorted(texts) == sorted(f"1/0/{index}" for index in range(TEXTS_ALONE))
    assert straight.seen[6][-1].startswith("1/1/")
    task, other = prepared(world, *changes)
    other.load_state_dict(straight.saved, "file", 0)
    other.fit(spied(build_dataloader(task, "train"), resumed))
    assert resumed.seen == straight.seen[stop:]
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
