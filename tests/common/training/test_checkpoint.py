import os
import random

import numpy as np
import pytest
import torch

from common.config.sections import TrainConfig
from common.errors import CheckpointError
from common.models.official_names import OfficialNames
from common.models.pretrained import read_weights
from common.training import checkpoint
from tests.common.training.toy import ToyModel


def test_checkpoint_file_names():
    folder = checkpoint.Path("out")
    assert str(checkpoint.epoch_file(folder, "net", 7)) == "out/net-0007.model"
    assert str(checkpoint.best_file(folder, "net")) == "out/net-best.model"


def test_write_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net-0000.model"
    checkpoint.write({"state_dict": {"a": torch.ones(1)}}, path)

    def half(state, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(CheckpointError, match=r"net-0000\.model: cannot write the checkpoint: No space left"):
        checkpoint.write({}, path)
    assert read_weights(path)["state_dict"]["a"].item() == 1
    assert os.listdir(tmp_path) == ["net-0000.model"]


@pytest.mark.parametrize("can_link", [True, False])
def test_link_replaces_the_target(tmp_path, monkeypatch, can_link):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("new")
    target.write_text("old")
    if not can_link:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("not supported")))
    checkpoint.link(source, target)
    assert target.read_text() == "new"
    assert target.samefile(source) == can_link
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_model_state_is_float32_by_official_names():
    state = checkpoint.model_state(ToyModel().half(), OfficialNames((("linear.", "official._module."),)))
    assert {name: value.dtype for name, value in state.items()} == {
        "official._module.weight": torch.float32,
        "official._module.bias": torch.float32,
    }


def test_rng_state_round_trip(tmp_path):
    checkpoint.write({"rng": [checkpoint.rng_state()]}, tmp_path / "x")

    def draw():
        return random.random(), np.random.rand(), np.random.standard_normal(), torch.rand(1).item()

    np.random.standard_normal()
    checkpoint.load_rng_state(read_weights(tmp_path / "x")["rng"][0])
    first = draw()
    checkpoint.load_rng_state(read_weights(tmp_path / "x")["rng"][0])
    assert draw() == first


def optimizer_of(*sizes, **options):
    groups = [{"params": [torch.nn.Parameter(torch.ones(size))], "initial_lr": 0.1} for size in sizes]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, **options)


def trained(*sizes):
    optimizer = optimizer_of(*sizes)
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones_like(group["params"][0])
    optimizer.step()
    return optimizer


def test_load_optimizer_keeps_configured_options():
    optimizer = optimizer_of(2, weight_decay=0.5)
    optimizer.param_groups[0]["initial_lr"] = 0.7
    checkpoint.load_optimizer(optimizer, trained(2).state_dict(), "file")
    assert optimizer.param_groups[0]["initial_lr"] == 0.7
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert torch.equal(
        optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"], torch.ones(2)
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 3), r"net: its optimizer has parameter groups of \[1\]"),
        ((3,), r"momentum_buffer of parameter 0 has shape"),
    ],
)
def test_load_optimizer_rejects_other_model(sizes, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_optimizer(optimizer_of(*sizes), trained(2).state_dict(), "net")


def test_load_optimizer_rejects_other_optimizer():
    sgd, adam = trained(2), torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(CheckpointError, match=r"keeps momentum_buffer, Adam does not; .* TRAIN\.OPTIMIZER"):
        checkpoint.load_optimizer(adam, sgd.state_dict(), "net")
    adam.param_groups[0]["params"][0].grad = torch.ones(2)
    adam.step()
    with pytest.raises(CheckpointError, match=r"keeps exp_avg, exp_avg_sq, SGD does not"):
        checkpoint.load_optimizer(optimizer_of(2), adam.state_dict(), "net")


def train(**values):
    return TrainConfig(**{"END_EPOCH": 6, **values})


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        (train(), {0, 1, 2}, [2, 1, 0]),
        (train(), {0, 5, 7}, [5, 0]),
        (train(BEGIN_EPOCH=3), {2}, []),
        (train(AUTO_RESUME=False), {0, 1}, []),
        (train(RESUME=True, BEGIN_EPOCH=2), {0, 1, 2}, [1]),
    ],
)
def test_resume_epochs(config, files, expected):
    assert checkpoint.resume_epochs(config, files.__contains__) == expected


def resumed(folder, **values):
    """File name, epoch and batch of the resume point."""
    path, epoch, batch, state = checkpoint.find_resume_point(folder, "net", train(**values))
    assert state == read_weights(path)
    return path.name, epoch, batch


def save(folder, *epochs):
    for epoch in epochs:
        checkpoint.write({"epoch": epoch + 1}, checkpoint.epoch_file(folder, "net", epoch))


def test_find_resume_point_skips_damaged_checkpoint(tmp_path, caplog):
    save(tmp_path, 0, 1)
    newest = checkpoint.epoch_file(tmp_path, "net", 1)
    newest.write_bytes(newest.read_bytes()[:100])
    assert resumed(tmp_path) == ("net-0000.model", 1, 0)
    assert "net-0001.model" in caplog.text
    with pytest.raises(CheckpointError, match="net-0001"):
        checkpoint.find_resume_point(tmp_path, "net", train(RESUME=True, BEGIN_EPOCH=2))


def save_state(folder, name, epoch, batch, **more):
    checkpoint.write({"epoch": epoch, "batch": batch, **more}, folder / f"net-{name}.model")


@pytest.mark.parametrize(
    ("latest", "previous", "chosen", "position"),
    [
        ((2, 3), (2, 1), "net-latest.model", (2, 3)),
        ((2, 0), (1, 5), "net-0001.model", (2, 0)),  # two names of one file
        ((1, 9), (1, 5), "net-0001.model", (2, 0)),
        ((7, 1), (2, 1), "net-previous.model", (2, 1)),  # latest is beyond END_EPOCH
    ],
)
def test_find_resume_point_takes_the_furthest_state(tmp_path, latest, previous, chosen, position):
    save(tmp_path, 0, 1)
    save_state(tmp_path, "latest", *latest)
    save_state(tmp_path, "previous", *previous)
    assert resumed(tmp_path) == (chosen, *position)
    assert resumed(tmp_path, RESUME=True, BEGIN_EPOCH=1) == ("net-0000.model", 1, 0)
    assert checkpoint.find_resume_point(tmp_path, "net", train(AUTO_RESUME=False)) is None


@pytest.mark.parametrize(
    ("resumed_at", "epoch", "chosen"),
    # Interrupted; state of another run; ended, so that RESUME trains the epoch again.
    [(2, 3, "net-latest.model"), (None, 3, "net-0001.model"), (2, 6, "net-0001.model")],
)
def test_resume_uses_only_its_own_latest_state(tmp_path, resumed_at, epoch, chosen):
    save(tmp_path, 0, 1, 4)
    save_state(tmp_path, "latest", epoch, 0, resumed=resumed_at)
    position = (3, 0) if chosen == "net-latest.model" else (2, 0)
    assert resumed(tmp_path, RESUME=True, BEGIN_EPOCH=2) == (chosen, *position)


def test_resume_skips_damaged_latest_state(tmp_path, caplog):
    save(tmp_path, 1)
    (tmp_path / "net-latest.model").write_bytes(b"")
    assert resumed(tmp_path, RESUME=True, BEGIN_EPOCH=2) == ("net-0001.model", 2, 0)
    assert "net-latest.model" in caplog.text


def test_read_detects_any_changed_byte(tmp_path):
    path = tmp_path / "net-0000.model"
    checkpoint.write({"state_dict": {"a": torch.arange(1000.0)}, "epoch": 1}, path)
    whole = path.read_bytes()
    assert checkpoint.read(path)["epoch"] == 1
    place = whole.index(torch.arange(500.0, 600.0).numpy().tobytes())
    for spoilt in (
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
        whole[:-30],
        whole[: len(whole) // 2],
        b"",
        b"text",
    ):
        path.write_bytes(spoilt)
        with pytest.raises(CheckpointError, match=r"net-0000\.model: (damaged|truncated)"):
            checkpoint.read(path)


def test_read_accepts_the_old_format(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x", _use_new_zipfile_serialization=False)
    assert checkpoint.read(tmp_path / "x") == {"state_dict": {}}


def test_find_resume_point_rejects_latest_without_position(tmp_path):
    save(tmp_path, 0)
    checkpoint.write({"state_dict": {"a": torch.ones(1)}}, tmp_path / "net-latest.model")
    with pytest.raises(CheckpointError, match=r"net-latest\.model: not the state of a training run"):
        checkpoint.find_resume_point(tmp_path, "net", train())


@pytest.mark.parametrize(
    ("keep", "epoch", "left"), [(0, 5, [0, 1, 3, 5, 10000]), (2, 5, [3, 5, 10000]), (1, 3, [3, 5, 10000])]
)
def test_prune_keeps_the_newest(tmp_path, keep, epoch, left):
    save(tmp_path, 0, 1, 3, 5, 10000)
    others = {
        "net-best.model",
        "net-latest.model",
        "net-x-0000.model",
        "other-0000.model",
        "net-0000.model.txt",
    }
    for name in others:
        (tmp_path / name).touch()
    checkpoint.prune(tmp_path, "net", keep, epoch)
    expected = {checkpoint.epoch_file(tmp_path, "net", number).name for number in left}
    assert {path.name for path in tmp_path.iterdir()} == others | expected


def test_find_resume_point_with_only_damaged_files(tmp_path):
    checkpoint.epoch_file(tmp_path, "net", 0).write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        checkpoint.find_resume_point(tmp_path, "net", train())


def test_find_resume_point_without_files(tmp_path):
    assert checkpoint.find_resume_point(tmp_path, "net", train()) is None
    with pytest.raises(CheckpointError, match="net-0003"):
        checkpoint.find_resume_point(tmp_path, "net", train(RESUME=True, BEGIN_EPOCH=4))
