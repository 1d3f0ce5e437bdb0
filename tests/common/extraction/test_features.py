import numpy as np
import pytest
import torch
from PIL import Image

from common.batch import Batch, Sample, TextSequence
from common.config.schema import parse_config
from common.data.collate import collate
from common.data.images import prepare_image, resize_boxes
from common.errors import CheckpointError, ConfigError
from common.extraction.features import PIXEL_MEANS, RegionExtractor
from common.models.fast_rcnn import FastRCNN
from pretrain.config import PretrainConfig

CPU = torch.device("cpu")
BOXES = torch.tensor([[3.0, 4, 30, 20], [0, 0, 59, 39]])


def pictures():
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in (noise[0], noise[1, :, :30], noise[2])]


def config(**network):
    values = {
        "SCALES": [64, 96],
        "NETWORK": {"IMAGE_NUM_LAYERS": 18, "IMAGE_WIDTH": 4, "PIXEL_MEANS": [9.0, 8.0, 7.0], **network},
    }
    values["NETWORK"] |= {"WITH_REL_LOSS": False}
    return parse_config(PretrainConfig, values, "test")


def branch(**changes):
    torch.manual_seed(0)
    model = FastRCNN(
        **{"final_dim": 3, "depth": 18, "width": 4, "dilated": False, "stride_in_1x1": False} | changes
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # no layer is without an effect
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def resnet_file(model, path):
    """As torchvision names it."""
    state = {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}
    names = {key: key.replace("roi_head_feature_extractor.", "layer4.") for key in state if "obj_" not in key}
    torch.save({new: state[old] for old, new in names.items()}, path)
    return path


def checkpoint_file(model, path):
    state = {f"module.image_feature_extractor.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": {**state, "module.vlbert.x": torch.ones(2)}}, path)
    return path


def trained_with(model, image, scales):
    """The features (n + 1, F) that the model sees in training, the whole picture first."""
    picture = prepare_image(image, image.size, scales)
    boxes = torch.cat([torch.tensor([picture.whole_box], dtype=torch.float32), BOXES])
    text = TextSequence(*(np.zeros(1, np.int64) for _ in range(3)))
    sample = Sample(
        index=0, record_id="", image=picture.pixels, padded_size=picture.size[::-1], im_info=picture.im_info,
        boxes=resize_boxes(boxes, picture.im_info, flipped=False), texts=(text,),
    )  # fmt: skip
    with torch.inference_mode():
        return model(collate([sample], Batch)).raw


def test_features_are_those_of_training(tmp_path):
    model = branch(pixel_means=(9.0, 8.0, 7.0))
    extractor = RegionExtractor.from_checkpoint(config(), checkpoint_file(model, tmp_path / "c"))
    images = pictures()
    found = extractor(images, [BOXES, BOXES[:0], BOXES])
    for index in (0, 2):
        expected = trained_with(model, images[index], (64, 96))
        torch.testing.assert_close(found[index][0], expected[1:])
        torch.testing.assert_close(found[index][1], expected[0])
    assert found[1][0].shape == (0, extractor.feature_dim) == (0, 32)
    assert not torch.allclose(found[0][1], found[2][1])


def test_a_resnet_file_tells_its_shape(tmp_path):
    model = branch(dilated=True, stride_in_1x1=True, depth=50, width=2, pixel_means=PIXEL_MEANS)
    extractor = RegionExtractor.from_resnet_file(resnet_file(model, tmp_path / "r"))
    image = pictures()[0].resize((6, 4))
    (found,) = extractor([image], [BOXES / 10])
    assert found[0].shape == (2, 64)
    torch.testing.assert_close(found[1], trained_with(model, image, (600, 1000))[0])


def test_a_yaml_file_describes_another_resnet(tmp_path):
    model = branch(pixel_means=(9.0, 8.0, 7.0))
    extractor = RegionExtractor.from_resnet_file(resnet_file(model, tmp_path / "r"), CPU, config())
    (found,) = extractor(pictures()[:1], [BOXES])
    torch.testing.assert_close(found[1], trained_with(model, pictures()[0], (64, 96))[0])
    with pytest.raises(CheckpointError, match="shapes differ from the configured model"):
        RegionExtractor.from_resnet_file(tmp_path / "r", CPU, config(IMAGE_WIDTH=8))


def test_a_picture_does_not_depend_on_the_others():
    """Not even in its last bits, with a network as wide as published ones."""
    extractor = RegionExtractor(branch(depth=50, width=64), CPU, (96, 96))
    (noise, _, _) = pictures()
    for found in extractor([noise] * 4, [BOXES] * 4):
        assert torch.equal(found[0], extractor([noise], [BOXES])[0][0])


def test_very_small_and_very_long_pictures(tmp_path):
    extractor = RegionExtractor.from_checkpoint(config(), checkpoint_file(branch(), tmp_path / "c"), CPU)
    images = [Image.new("RGB", (1, 1)), Image.new("RGB", (2000, 20))]
    for found in extractor(images, [torch.zeros(1, 4), torch.zeros(1, 4)]):
        assert found[0].isfinite().all()


def test_files_of_something_else(tmp_path):
    checkpoint = checkpoint_file(branch(), tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"c: not a ResNet of depth 18, .* have \(0, 0, 0, 0\) blocks"):
        RegionExtractor.from_resnet_file(checkpoint, CPU)
    with pytest.raises(
        CheckpointError, match=r"r: has no image_feature_extractor\.backbone: its model does not read"
    ):
        RegionExtractor.from_checkpoint(config(), resnet_file(branch(), tmp_path / "r"), CPU)
    with pytest.raises(CheckpointError, match=r"c: .*shapes differ"):
        RegionExtractor.from_checkpoint(config(IMAGE_WIDTH=8), checkpoint, CPU)
    with pytest.raises(CheckpointError, match=r"c: does not belong to the configured model; .* names"):
        RegionExtractor.from_checkpoint(config(IMAGE_NUM_LAYERS=34), checkpoint, CPU)
    with pytest.raises(
        ConfigError, match="IMAGE_FEAT_PRECOMPUTED: true: this model reads precomputed features"
    ):
        RegionExtractor.from_checkpoint(config(IMAGE_FEAT_PRECOMPUTED=True), checkpoint, CPU)
