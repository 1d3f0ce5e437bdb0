"""Region features of any image, from the region branch of a model: the features in region files.

Shapes: n boxes of an image, F feature width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from common.config.schema import ExperimentConfig
from common.data.images import prepare_image, resize_boxes
from common.errors import CheckpointError, ConfigError
from common.models.fast_rcnn import FastRCNN
from common.models.official_names import OfficialNames, strip_wrapper
from common.models.pretrained import Weights, load_image_backbone, load_state, read_weights, some, weights_of
from common.models.resnet import STAGE_BLOCKS

SCALES = (600, 1000)
"""Short side and maximum long side of a resized image in the published configurations of pre-training and VQA."""


PIXEL_MEANS = (102.9801, 115.9465, 122.7717)
"""Means of B, G, R in the published configurations."""


_BRANCH = "image_feature_extractor."


class RegionExtractor:
    """Computes the region features that `FastRCNN` pools, before it adds the coordinate embedding.

    Args:
        branch: region branch, with weights.
        device: device of the branch.
        scales: short side of a resized image, and maximum of the long side.

    Attributes:
        feature_dim: F.
    """

    def __init__(
        self, branch: FastRCNN, device: torch.device | str = "cpu", scales: Sequence[int] = SCALES
    ) -> None:
        self.feature_dim = branch.feature_dim
        self._branch = branch.to(device).eval()
        self._device = device
        self._scales = scales

    @classmethod
    def from_resnet_file(
        cls, path: str | Path, device: torch.device | str = "cpu", config: ExperimentConfig | None = None
    ) -> Self:
        """Builds the extractor from ResNet weights with torchvision's names, such as `resnet101-pt-vgbua-0000.model`.

        Args:
            path: the file.
            device: device of the branch.
            config: NETWORK and SCALES describe the branch. By default, depth and width are those of the file and the
                rest is as in the published pre-training configurations.

        Raises:
            CheckpointError: the file cannot be read, or holds no ResNet or another one than configured.
        """
        weights = weights_of(read_weights(path), str(path))
        if config is not None:
            branch = _branch_of(config)
        else:
            depth, width = _shape_of(weights, str(path))
            branch = FastRCNN(
                final_dim=1, depth=depth, width=width, pixel_means=PIXEL_MEANS, pixel_stds=(1.0, 1.0, 1.0)
            )
        load_image_backbone(branch, weights, str(path))
        return cls(branch, device, config.SCALES if config else SCALES)

    @classmethod
    def from_checkpoint(
        cls, config: ExperimentConfig, path: str | Path, device: torch.device | str = "cpu"
    ) -> Self:
        """Builds the extractor from the region branch of a VL-BERT checkpoint.

        Args:
            config: configuration of the run that wrote it.
            path: the checkpoint.
            device: device of the branch.

        Raises:
            ConfigError: the model has no region branch.
            CheckpointError: the file cannot be read, or has no region branch.
        """
        branch = _branch_of(config)
        # The extractor stops at the pooled feature.
        branch.obj_downsample, branch.object_embed = nn.Sequential(), None
        weights = {
            strip_wrapper(name): value for name, value in weights_of(read_weights(path), str(path)).items()
        }
        own = {
            name.removeprefix(_BRANCH): value for name, value in weights.items() if name.startswith(_BRANCH)
        }
        pooling = {
            name: value
            for name, value in own.items()
            if name.startswith(("backbone.", "roi_head", "head.0."))
        }
        if not pooling:
            raise CheckpointError(
                f"{path}: has no {_BRANCH}backbone: its model does not read pixels ({some(list(weights))})"
            )
        load_state(branch, pooling, OfficialNames(), str(path))
        return cls(branch, device, config.SCALES)

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Computes features, one image at a time, so that they do not depend on other images.

        Args:
            images: RGB.
            boxes: (n, 4) x1, y1, x2, y2 of each image, in its pixels.

        Returns:
            For each image (n, F) features of its boxes and the (F,) feature of the whole image; float32 on the CPU.
        """
        results = []
        for image, image_boxes in zip(images, boxes, strict=True):
            prepared = prepare_image(image, image.size, self._scales)
            assert prepared.pixels is not None
            all_boxes = torch.cat([image_boxes.new_tensor([prepared.whole_box]), image_boxes])
            resized = resize_boxes(all_boxes, prepared.im_info, flipped=False)
            with torch.inference_mode():
                features = self._branch.pool(
                    prepared.pixels[None].to(self._device),
                    prepared.im_info[None, :2].to(self._device),
                    resized.to(self._device),
                    torch.zeros(len(resized), dtype=torch.int64, device=self._device),
                )
            features = features.float().cpu()
            results.append((features[1:].clone(), features[0].clone()))
        return results


def _branch_of(config: ExperimentConfig) -> FastRCNN:
    if config.NETWORK.IMAGE_FEAT_PRECOMPUTED:
        raise ConfigError(
            "NETWORK.IMAGE_FEAT_PRECOMPUTED: true: this model reads precomputed features and has no region branch; "
            "use the yaml file of a model that reads pixels"
        )
    return FastRCNN.from_config(config)


def _shape_of(weights: Weights, source: str) -> tuple[int, int]:
    """Infers depth and width of a ResNet from its weights."""
    names = {strip_wrapper(name).removeprefix("backbone."): value for name, value in weights.items()}
    blocks = tuple(
        len({name for name in names if re.fullmatch(rf"layer{stage}\.\d+\.conv1\.weight", name)})
        for stage in range(1, 5)
    )
    bottlenecks = "layer1.0.conv3.weight" in names
    for depth, expected in STAGE_BLOCKS.items():
        if blocks == expected and bottlenecks == (depth >= 50) and "conv1.weight" in names:
            return depth, len(names["conv1.weight"])
    raise CheckpointError(
        f"{source}: not a ResNet of depth {', '.join(map(str, STAGE_BLOCKS))}: its stages have {blocks} blocks "
        f"({some(list(weights))})"
    )
