import numpy as np
import pytest
import torch

from common.cli.run import run
from common.config.schema import dump_config, load_config
from common.data.collate import collate
from pretrain.config import PretrainConfig
from pretrain.task import PretrainTask
from scripts.toy import detector
from scripts.toy.world import CATEGORIES, COLORS
from tests.world import ROOT

CFG = ROOT / "cfgs/pretrain/toy_e2e.yaml"
BALL = [category.noun for category in CATEGORIES].index("ball")

pytestmark = pytest.mark.integration


@pytest.fixture
def write_cfg(tmp_path, monkeypatch):
    """Writes the toy yaml with a small branch; returns its path."""
    monkeypatch.setattr(detector, "SCENES", 20)

    def write(*overrides):
        path = tmp_path / "cfg.yaml"
        out = f"NETWORK.PARTIAL_PRETRAIN={tmp_path}/out/detector.model"
        config = load_config(PretrainConfig, CFG, [out, "NETWORK.IMAGE_WIDTH=2", *overrides])
        path.write_text(dump_config(config))
        return path

    return write


def test_draw_scenes_labels_match_the_pixels():
    config = load_config(PretrainConfig, CFG)
    scenes, again = (detector.draw_scenes(20, config, "train") for _ in range(2))
    assert all(torch.equal(a.image, b.image) for a, b in zip(scenes, again, strict=True))
    assert not torch.equal(scenes[0].image, detector.draw_scenes(1, config, "val")[0].image)
    balls = 0
    for scene in scenes:
        assert len(scene.boxes) == len(scene.category) == len(scene.color)
        width, height = scene.im_info[:2].tolist()
        assert scene.image.shape == (3, height, width)
        x1, y1, x2, y2 = scene.boxes.unbind(1)
        assert ((x1 >= 0) & (y1 >= 0) & (x2 < width) & (y2 < height) & (x2 > x1 + 8) & (y2 > y1 + 8)).all()
        for x, y, category, color in zip(
            (x1 + x2) / 2, (y1 + y2) / 2, scene.category, scene.color, strict=True
        ):
            if category == BALL:  # its center has its color, up to a shade of 8 percent and the resizing
                balls += 1
                pixel = scene.image[:, int(y), int(x)].flip(0).numpy().astype(float)
                np.testing.assert_allclose(pixel, list(COLORS.values())[color], atol=24)
    assert balls


def test_train_lowers_the_loss_and_updates_every_parameter():
    config = load_config(PretrainConfig, CFG)
    scenes = detector.draw_scenes(6, config, "train")
    batch = collate(scenes, detector.LabeledImageBatch)
    torch.manual_seed(0)
    model = detector.Detector.from_config(config)
    before = {name: value.clone() for name, value in model.named_parameters()}
    initial_loss = model.loss(batch).item()
    detector.train(model, scenes, 30, seed=1)
    assert model.loss(batch).item() < 0.7 * initial_loss
    assert not [name for name, value in model.named_parameters() if torch.equal(value, before[name])]


def test_pretraining_loads_the_checkpoint_and_an_existing_file_is_kept(write_cfg, tmp_path):
    path = write_cfg()
    command = ["--cfg", str(path), "--steps", "2"]
    assert run(lambda: detector.main(command)) == 0
    out = tmp_path / "out/detector.model"
    weights = torch.load(out, weights_only=True)["state_dict"]
    task = PretrainTask(load_config(PretrainConfig, path))
    model = task.build_model()
    (report,) = task.load_pretrained(model)
    assert not report.unused
    assert set(report.loaded) == {
        name for name in model.state_dict() if name.startswith("image_feature_extractor.")
    }
    mean = weights["image_feature_extractor.backbone.bn1.running_mean"]
    assert mean.abs().sum() > 0  # the statistics that frozen batch norm uses
    torch.testing.assert_close(model.image_feature_extractor.backbone.bn1.running_mean, mean)
    out.write_bytes(b"existing")
    assert run(lambda: detector.main(command)) == 0
    assert out.read_bytes() == b"existing"
    assert [file.name for file in out.parent.iterdir()] == ["detector.model"]


@pytest.mark.parametrize(
    ("overrides", "flags", "message"),
    [
        ([], ["--steps", "0"], "--steps 0: must be at least 1"),
        (["NETWORK.IMAGE_FEAT_PRECOMPUTED=true"], [], "NETWORK.IMAGE_FEAT_PRECOMPUTED: must be false"),
        (["NETWORK.PARTIAL_PRETRAIN="], [], "NETWORK.PARTIAL_PRETRAIN: empty: set it or give --out FILE"),
    ],
)
def test_main_rejects_bad_input(write_cfg, capfd, tmp_path, overrides, flags, message):
    path = write_cfg(*overrides)
    assert run(lambda: detector.main(["--cfg", str(path), "--steps", "1", *flags])) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
