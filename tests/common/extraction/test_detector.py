import argparse

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from common.cli.box_flags import add_box_flags, detector_from_flags
from common.data.coco import CLASS_NAMES
from common.errors import CheckpointError, DataError, UsageError
from common.extraction.detector import TorchvisionDetector, detector_names

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def pictures():
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in (noise[0], noise[1, :30], noise[2])]


@pytest.fixture(scope="module")
def weights():
    """Random weights that see something."""
    torch.manual_seed(0)
    model = get_model(SMALL, weights=None, weights_backbone=None)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=9.0)
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.bias, std=2.0)
    return model.state_dict()


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "w.pth"
    torch.save(weights, path)
    return path


def test_finds_what_torchvision_finds(weights, file):
    model = get_model(SMALL, weights=None, weights_backbone=None, box_score_thresh=0.03).eval()
    model.load_state_dict(weights)
    (image, _, _) = pictures()
    with torch.inference_mode():
        (expected,) = model([torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255))])
    assert len(expected["labels"]) > 3
    (found,) = TorchvisionDetector(SMALL, file, CPU, 0.03)([image])
    torch.testing.assert_close(found.boxes, expected["boxes"].clamp(max=torch.tensor([59.0, 39, 59, 39])))
    torch.testing.assert_close(found.scores, expected["scores"])
    assert (found.scores.diff() <= 0).all()
    categories = model_categories()
    for ours, label in zip(found.class_ids.tolist(), expected["labels"].tolist(), strict=True):
        theirs = categories[label].replace(" ", "")
        assert (CLASS_NAMES[ours] if ours else "N/A") == theirs


def model_categories():
    from torchvision.models.detection import FasterRCNN_MobileNet_V3_Large_320_FPN_Weights as Weights

    return Weights.COCO_V1.meta["categories"]


def test_all_labels_are_our_classes(file):
    detector = TorchvisionDetector(SMALL, file)
    assert detector.score_threshold == 0.2
    named = [CLASS_NAMES[number].lower() for number in detector._classes.tolist()]
    categories = [name.replace(" ", "").lower() for name in model_categories()]
    assert named == [name if name != "n/a" else "__background__" for name in categories]


def test_a_picture_does_not_depend_on_the_others(file):
    detector = TorchvisionDetector(SMALL, file, CPU, 0.03)
    for picture, together in zip(pictures(), detector(pictures()), strict=True):
        (alone,) = detector([picture])
        assert len(alone.boxes)
        assert torch.equal(alone.boxes, together.boxes)
        assert alone.class_ids.tolist() == together.class_ids.tolist()


def test_limits(file):
    assert len(TorchvisionDetector(SMALL, file, CPU, 0.0, 3)(pictures())[0].boxes) == 3
    none = TorchvisionDetector(SMALL, file, CPU, 1.0)(pictures())[0]
    assert (none.boxes.shape, none.class_ids.shape) == ((0, 4), (0,))


def test_narrow_pictures(file):
    """The long side becomes 640: of 3 x 4000 pixels nothing is left."""
    detector = TorchvisionDetector(SMALL, file, CPU)
    for size in ((4000, 3), (1, 20_000), (641, 1)):
        with pytest.raises(
            DataError, match=f"{size[0]} x {size[1]} pixels is too narrow .* long side to 640"
        ):
            detector([Image.new("RGB", size)])
    assert len(detector([Image.new("RGB", size) for size in ((1, 640), (7, 4480))])) == 2


def test_from_flags(file):
    parser = argparse.ArgumentParser()
    add_box_flags(parser)
    flags = [
        "--detector",
        SMALL,
        "--detector-weights",
        str(file),
        "--max-boxes",
        "2",
        "--score-threshold",
        "0",
    ]
    finder = detector_from_flags(parser.parse_args(flags), CPU)
    assert [len(found.boxes) for found in finder(pictures())] == [2, 2, 2]


def test_files_of_all_kinds(weights, tmp_path):
    """As torchvision's training writes it, and of a frozen batch norm."""
    torch.save({"model": weights, "epoch": 3}, tmp_path / "a.pth")
    torch.save({key: value for key, value in weights.items() if "num_batches" not in key}, tmp_path / "b.pth")
    first, second = (
        TorchvisionDetector(SMALL, tmp_path / name, CPU, 0.03)(pictures())[0] for name in ("a.pth", "b.pth")
    )
    assert torch.equal(first.boxes, second.boxes)


@pytest.mark.parametrize(("frozen", "epsilon"), [(True, 0.0), (False, 1e-5)])
def test_published_weights_have_no_epsilon(tmp_path, frozen, epsilon):
    name = "fasterrcnn_resnet50_fpn"
    weights = get_model(name, weights=None, weights_backbone=None).state_dict()
    kept = {key: value for key, value in weights.items() if not (frozen and "num_batches" in key)}
    torch.save(kept, tmp_path / "w.pth")
    detector = TorchvisionDetector(name, tmp_path / "w.pth", CPU)
    assert detector._model.backbone.body.bn1.eps == epsilon


def test_wrong_files_and_names(file, tmp_path):
    with pytest.raises(
        UsageError, match=r"no such detector; did you mean fasterrcnn_resnet50_fpn_v2.*ssd300_vgg16"
    ):
        TorchvisionDetector("fasterrcnn_resnet50_fpn_v3", file, CPU)
    with pytest.raises(CheckpointError, match=r"w\.pth: does not belong to the configured model; .*names"):
        TorchvisionDetector("ssdlite320_mobilenet_v3_large", file, CPU)
    with pytest.raises(CheckpointError, match=r"--detector-weights: .*none: no such file"):
        TorchvisionDetector(SMALL, tmp_path / "none", CPU)
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(CheckpointError, match="text: truncated, or not a PyTorch file"):
        TorchvisionDetector(SMALL, tmp_path / "text", CPU)
    assert "keypointrcnn_resnet50_fpn" not in detector_names()
