"""Features of boxes in any picture, from the region branch of a model: what region files hold.

Letters: n boxes of a picture, K of all, F feature width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from common.batch import Lengths
from common.config.schema import ExperimentConfig
from common.data.images import prepare_image, resize_boxes, target_size
from common.errors import CheckpointError, ConfigError
from common.extraction.batching import computed_together
from common.models.fast_rcnn import FastRCNN
from common.models.official_names import OfficialNames, strip_wrapper
from common.models.pretrained import Weights, load_image_backbone, load_state, read_weights, some, weights_of
from common.models.resnet import STAGE_BLOCKS

SCALES = (600, 1000)
"""Short and longest side of a resized picture in the published configurations of pre-training and VQA."""


PIXEL_MEANS = (102.9801, 115.9465, 122.7717)
"""Of B, G, R in the published configurations."""


_BRANCH = "image_feature_extractor."


class PooledFeatures(NamedTuple):
    """What the network sees in a picture; on the CPU, float32.

    Attributes:
        regions: (n, F) features of its boxes.
        whole: (F,) feature of the box around the whole picture.
    """

    regions: Tensor
    whole: Tensor


class RegionExtractor:
    """Computes the features that `FastRCNN` pools, before it adds the place of a box.

    Args:
        branch: the network, with weights.
        device: where it computes.
        scales: length of the short side of a resized picture, and limit of the long one.

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
        """Takes a ResNet in torchvision's naming, such as `resnet101-pt-vgbua-0000.model`.

        Args:
            path: the file.
            device: where to compute.
            config: its NETWORK and SCALES describe the network; by default depth and width are those of the file,
                and the rest that of the published configurations of pre-training.

        Raises:
            CheckpointError: the file cannot be read, or is not a ResNet or another than `config` describes.
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
        """Takes the region branch of a VL-BERT checkpoint.

        Args:
            config: of the experiment that wrote it.
            path: the checkpoint.
            device: where to compute.

        Raises:
            ConfigError: the model has no region branch.
            CheckpointError: the file cannot be read, or does not hold the branch.
        """
        branch = _branch_of(config)
        # What is behind the pooled feature does not belong to it.
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
                f"{path}: has no {_BRANCH}backbone, it is no model that reads pixels ({some(list(weights))})"
            )
        load_state(branch, pooling, OfficialNames(), str(path))
        return cls(branch, device, config.SCALES)

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[Tensor]) -> list[PooledFeatures]:
        """Returns the features of every picture.

        Args:
            images: RGB.
            boxes: (n, 4) x1, y1, x2, y2 of each, in its pixels.
        """
        found: dict[int, PooledFeatures] = {}
        sizes = (target_size(*image.size, self._scales) for image in images)
        for members in computed_together(sizes, self._device):
            pooled = self._pooled([images[place] for place in members], [boxes[place] for place in members])
            found.update(zip(members, pooled, strict=True))
        return [found[place] for place in range(len(images))]

    def _pooled(self, images: Sequence[Image.Image], boxes: Sequence[Tensor]) -> list[PooledFeatures]:
        """As `__call__`, for pictures of one size."""
        pictures = [prepare_image(image, image.size, self._scales) for image in images]
        placed = [
            resize_boxes(torch.cat([own.new_tensor([picture.whole]), own]), picture.im_info, flipped=False)
            for picture, own in zip(pictures, boxes, strict=True)
        ]
        lengths = Lengths.of([len(rows) for rows in placed], self._device)
        with torch.inference_mode():
            raw = self._branch.pool(
                torch.stack([picture.pixels for picture in pictures if picture.pixels is not None]).to(
                    self._device
                ),
                torch.stack([picture.im_info[:2] for picture in pictures]).to(self._device),
                torch.cat(placed).to(self._device),
                lengths.rows(),
            )
        parts = torch.split(raw.float().cpu(), list(lengths.sizes))
        # Parts of one tensor would keep all of it in memory.
        return [PooledFeatures(part[1:].clone(), part[0].clone()) for part in parts]


def _branch_of(config: ExperimentConfig) -> FastRCNN:
    if config.NETWORK.IMAGE_FEAT_PRECOMPUTED:
        raise ConfigError(
            "NETWORK.IMAGE_FEAT_PRECOMPUTED: true: this model reads features and has no network that computes them; "
            "name the yaml file of one that reads pixels"
        )
    return FastRCNN.from_config(config)


def _shape_of(weights: Weights, source: str) -> tuple[int, int]:
    """Returns depth and width of a ResNet, as its file shows them."""
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
