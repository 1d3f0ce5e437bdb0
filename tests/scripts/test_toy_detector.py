"""The toy detector: what it is shown, that it learns, and the file that pre-training from pixels starts from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.cli.run import run
from common.config.schema import dump_config, load_config
from common.data.collate import collate
from pretrain.config import PretrainConfig
from pretrain.task import PretrainTask
from scripts.toy import detector
from scripts.toy.world import COLOURS, KINDS
from tests.world import ROOT

CFG = ROOT / "cfgs/pretrain/toy_e2e.yaml"
BALL = [kind.noun for kind in KINDS].index("ball")


@pytest.fixture
def write_cfg(tmp_path):
    """Writes the toy yaml with a small branch and changes; returns its path and what it says."""

    def write(*changes):
        path = tmp_path / "cfg.yaml"
        out = f"NETWORK.PARTIAL_PRETRAIN={tmp_path}/out/detector.model"
        path.write_text(
            dump_config(load_config(PretrainConfig, CFG, [out, "NETWORK.IMAGE_WIDTH=2", *changes]))
        )
        return path, load_config(PretrainConfig, path)

    return write


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr(detector, "SCENES", 20)


def test_boxes_are_around_what_their_numbers_say():
    config = load_config(PretrainConfig, CFG)
    scenes, again = (detector.draw(20, config, "train") for _ in range(2))
    assert all(torch.equal(a.image, b.image) for a, b in zip(scenes, again, strict=True))
    assert not torch.equal(scenes[0].image, detector.draw(1, config, "val")[0].image)
    balls = 0
    for scene in scenes:
        assert len(scene.boxes) == len(scene.kinds) == len(scene.colours)
        width, height = scene.im_info[:2].tolist()
        assert scene.image.shape == (3, height, width)
        x1, y1, x2, y2 = scene.boxes.unbind(1)
        assert ((x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height) & (x2 > x1 + 8) & (y2 > y1 + 8)).all()
        for x, y, kind, colour in zip((x1 + x2) / 2, (y1 + y2) / 2, scene.kinds, scene.colours, strict=True):
            if kind == BALL:  # its middle is its colour, up to a shade of 8 percent and the resizing
                balls += 1
                pixel = scene.image[:, int(y), int(x)].flip(0).numpy().astype(float)
                np.testing.assert_allclose(pixel, list(COLOURS.values())[colour], atol=24)
    assert balls


def test_some_steps_lower_the_loss_and_all_of_the_branch_learns():
    config = load_config(PretrainConfig, CFG)
    scenes = detector.draw(6, config, "train")
    batch = collate(scenes, detector.BoxedBatch)
    torch.manual_seed(0)
    learner = detector.Detector.from_config(config)
    before = {name: value.clone() for name, value in learner.named_parameters()}
    at_first = learner.loss(batch).item()
    detector.train(learner, scenes, 30, seed=1)
    assert learner.loss(batch).item() < 0.7 * at_first
    assert not [name for name, value in learner.named_parameters() if torch.equal(value, before[name])]


def test_pretraining_starts_from_the_file_and_an_existing_one_is_left(write_cfg, tmp_path):
    path, config = write_cfg()
    command = ["--cfg", str(path), "--steps", "2"]
    assert run(lambda: detector.main(command)) == 0
    out = tmp_path / "out/detector.model"
    weights = torch.load(out, weights_only=True)["state_dict"]
    task = PretrainTask(config)
    model = task.build_model()
    (report,) = task.load_pretrained(model)
    assert not report.unused
    mine = {name for name in model.state_dict() if name.startswith("image_feature_extractor.")}
    assert set(report.loaded) == mine
    mean = weights["image_feature_extractor.backbone.bn1.running_mean"]
    assert mean.abs().sum() > 0  # the statistics that frozen batch norm reads
    torch.testing.assert_close(model.image_feature_extractor.backbone.bn1.running_mean, mean)
    out.write_bytes(b"mine")
    assert run(lambda: detector.main(command)) == 0
    assert out.read_bytes() == b"mine"
    assert [file.name for file in out.parent.iterdir()] == ["detector.model"]


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ((), ["--steps", "0"], "--steps 0: must be at least 1"),
        (
            ("NETWORK.IMAGE_FEAT_PRECOMPUTED=true",),
            [],
            "NETWORK.IMAGE_FEAT_PRECOMPUTED: must be false: the detector reads pixels",
        ),
        (("NETWORK.PARTIAL_PRETRAIN=",), [], "NETWORK.PARTIAL_PRETRAIN: names no file to write"),
    ],
)
def test_mistakes_are_one_message(write_cfg, capfd, tmp_path, changes, flags, message):
    path, _ = write_cfg(*changes)
    assert run(lambda: detector.main(["--cfg", str(path), "--steps", "1", *flags])) == 2
    written = capfd.readouterr().err
    assert message in written
    assert "Traceback" not in written
    assert not (tmp_path / "out").exists()
