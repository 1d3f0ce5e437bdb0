"""Region features: from pixels through RoIAlign and the last ResNet stage, or precomputed (paper, section 3.2).

Shapes: B images, K boxes of all images, F region feature width (2048), D width of the result, M mask side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from common.batch import Batch, Ragged
from common.config.schema import ExperimentConfig
from common.models.geometry import coordinate_embeddings
from common.models.packing import Padding
from common.models.resnet import ResNet, block_of, freeze_batch_norm, make_stage

NUM_CLASSES = 81  # COCO, with the background
SEMANTIC_DIM = 128
COORDINATE_DIM = 2048  # 4 numbers x 256 wavelengths x sine and cosine
PRECOMPUTED_DIM = 2048
STRIDE = 16  # of the backbone


@dataclass(frozen=True)
class RegionFeatures:
    """Output of the region branch for K boxes.

    Attributes:
        embeddings: (K, D) visual features for the joint transformer.
        raw: (K, F) pooled features.
        class_logits: (K, 81) for the region classification loss, or None.
    """

    embeddings: Tensor
    raw: Tensor
    class_logits: Tensor | None


class ImageNormalizer(nn.Module):
    """Normalizes B, G, R bytes on the device, and sets the padding of an image to zero afterwards.

    Padding must be zero after normalization, where zero is the mean color: it reaches border features through the
    convolutions.

    Args:
        means: means of channels B, G, R on the 0..255 scale.
        stds: divisors of the channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, means: Sequence[float], stds: Sequence[float]) -> None:
        super().__init__()
        # Not in checkpoints: these values belong to the configuration.
        self.register_buffer("mean", torch.tensor(means).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(stds).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor, masked_pixel_boxes: Ragged | None = None) -> Tensor:
        """Normalizes a batch of images.

        Args:
            images: (P, 3, H, W) uint8. Float images are already normalized and returned unchanged.
            sizes: (P, 2) width and height of the images without padding.
            masked_pixel_boxes: (n, 4) int64 first and last column and row of areas to set to zero; at least P rows.
        """
        if images.is_floating_point():
            return images
        height, width = images.shape[-2:]
        x = torch.arange(width, device=images.device)
        y = torch.arange(height, device=images.device)
        shown = (y < sizes[:, 1, None])[:, :, None] & (x < sizes[:, 0, None])[:, None, :]
        if masked_pixel_boxes is not None and masked_pixel_boxes.lengths.longest:
            shown = shown & ~_covered(masked_pixel_boxes, x, y)[: len(images)]
        return ((images.float() - self.mean) / self.std) * shown[:, None]


def _covered(areas: Ragged, x: Tensor, y: Tensor) -> Tensor:
    """Returns (P, H, W) bool: pixels of columns x (W,) and rows y (H,) inside an area of their image."""
    # The end is exclusive, so that the zeros that pad a row are empty areas.
    ends = torch.cat([areas.values[:, :2], areas.values[:, 2:] + 1], dim=1)
    left, top, right, bottom = Padding.of(areas.lengths).pad(ends)[..., None].unbind(2)
    columns = ((x >= left) & (x < right)).float()
    rows = ((y >= top) & (y < bottom)).float()
    return rows.transpose(1, 2) @ columns > 0


class FastRCNN(nn.Module):
    """Fast R-CNN region features with the geometry embedding of VL-BERT (paper, section 3.2).

    Args:
        final_dim: D.
        depth: ResNet depth; None for precomputed features, without a backbone.
        width: channels of the first ResNet stage.
        dilated: last stage with dilation 2 on 14x14 (otherwise stride 2, 7x7).
        stride_in_1x1: whether bottlenecks have their stride in the first 1x1 convolution.
        semantic: whether to append an embedding of the box class.
        classify: whether to build the classifier of the region classification loss.
        frozen_stages: 1..4 of the backbone, 5 the RoI head.
        frozen_bn: whether batch norm keeps statistics, scale and shift.
        pixel_means: B, G, R means of `ImageNormalizer`.
        pixel_stds: B, G, R divisors.

    Attributes:
        feature_dim: F.
    """

    def __init__(
        self,
        *,
        final_dim: int,
        depth: int | None,
        width: int = 64,
        dilated: bool = True,
        stride_in_1x1: bool = True,
        semantic: bool = False,
        classify: bool = False,
        frozen_stages: Sequence[int] = (),
        frozen_bn: bool = True,
        pixel_means: Sequence[float] = (0.0, 0.0, 0.0),
        pixel_stds: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.frozen_bn = frozen_bn
        self.has_pixels = depth is not None
        self.feature_dim = PRECOMPUTED_DIM
        if depth is not None:
            self.normalize = ImageNormalizer(pixel_means, pixel_stds)
            self.backbone = ResNet(depth, width=width, stride_in_1x1=stride_in_1x1)
            self.feature_dim = width * 8 * block_of(depth).expansion
        self.object_embed = nn.Embedding(NUM_CLASSES, SEMANTIC_DIM) if semantic else None
        if depth is not None:
            self.roi_head_feature_extractor = make_stage(
                depth,
                3,
                width=width,
                stride=1 if dilated else 2,
                dilation=2 if dilated else 1,
                stride_in_1x1=stride_in_1x1,
            )
        self.regularizing_predictor = nn.Linear(self.feature_dim, NUM_CLASSES) if classify else None
        inputs = COORDINATE_DIM + self.feature_dim + (SEMANTIC_DIM if semantic else 0)
        self.obj_downsample = nn.Sequential(nn.Dropout(0.1), nn.Linear(inputs, final_dim), nn.ReLU())
        if depth is not None:
            self._freeze(frozen_stages)

    @classmethod
    def from_config(cls, config: ExperimentConfig, *, classify: bool = False) -> FastRCNN:
        network = config.NETWORK
        return cls(
            final_dim=network.IMAGE_FINAL_DIM,
            depth=None if network.IMAGE_FEAT_PRECOMPUTED else network.IMAGE_NUM_LAYERS,
            width=network.IMAGE_WIDTH,
            dilated=network.IMAGE_C5_DILATED,
            stride_in_1x1=network.IMAGE_STRIDE_IN_1x1,
            semantic=network.IMAGE_SEMANTIC,
            classify=classify,
            frozen_stages=network.IMAGE_FROZEN_BACKBONE_STAGES,
            frozen_bn=network.IMAGE_FROZEN_BN,
            pixel_means=network.PIXEL_MEANS or (0.0, 0.0, 0.0),
            pixel_stds=network.PIXEL_STDS or (1.0, 1.0, 1.0),
        )

    def _freeze(self, stages: Sequence[int]) -> None:
        self.backbone.freeze(stages)
        if 5 in stages:
            self.roi_head_feature_extractor.requires_grad_(False)
        if self.frozen_bn:
            freeze_batch_norm(self)

    def train(self, mode: bool = True) -> FastRCNN:
        """Sets training mode, except for frozen batch norm, which stays in evaluation mode.

        Disabling its gradients is not enough: in training mode, batch norm normalizes by the statistics of the batch
        and updates the running ones.
        """
        super().train(mode)
        if self.frozen_bn:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(
        self,
        batch: Batch,
        *,
        masked: Tensor | None = None,
        mask_embedding: Tensor | None = None,
        masked_pixel_boxes: Ragged | None = None,
    ) -> RegionFeatures:
        """Computes the features of every box of a batch.

        Args:
            batch: images or precomputed features, boxes, `im_info`, and classes and instance masks if any.
            masked: (K,) bool, boxes whose feature is replaced by `mask_embedding`.
            mask_embedding: (F,).
            masked_pixel_boxes: see `ImageNormalizer`.
        """
        image_of_box = batch.num_boxes.rows()
        if self.has_pixels:
            assert batch.images is not None
            sizes = batch.im_info[: len(batch.images), :2]
            raw = self.pool(
                batch.images,
                sizes,
                batch.boxes,
                image_of_box,
                masks=batch.box_masks,
                masked_pixel_boxes=masked_pixel_boxes,
            )
        else:
            assert batch.box_features is not None
            raw = batch.box_features
        # The classifier sees the features before the mask embedding replaces any.
        logits = None if self.regularizing_predictor is None else self.regularizing_predictor(raw)
        features = raw
        if masked is not None and mask_embedding is not None:
            features = torch.where(masked[:, None], mask_embedding.to(raw.dtype), raw)
        # Sines of large angles need float32, under autocast too.
        with torch.autocast(raw.device.type, enabled=False):
            coordinates = coordinate_embeddings(batch.boxes, batch.im_info[image_of_box, :2]).flatten(1)
        # The order of the parts is that of the input columns of `obj_downsample` in published checkpoints.
        parts = [coordinates.to(features.dtype), features]
        if self.object_embed is not None:
            parts.append(self.object_embed(batch.box_classes))
        return RegionFeatures(self.obj_downsample(torch.cat(parts, dim=1)), raw, logits)

    def pool(
        self,
        images: Tensor,
        sizes: Tensor,
        boxes: Tensor,
        image_of_box: Tensor,
        *,
        masks: Tensor | None = None,
        masked_pixel_boxes: Ragged | None = None,
    ) -> Tensor:
        """Returns (K, F): the mean of the RoI head's map of every box, within its instance mask if there is one.

        Args:
            images: (P, 3, H, W), see `ImageNormalizer`.
            sizes: (P, 2) width and height of the images.
            boxes: (K, 4) in pixels of the images.
            image_of_box: (K,) int64.
            masks: (K, M, M) bool or float.
            masked_pixel_boxes: see `ImageNormalizer`.
        """
        # Imported here: torchvision takes two seconds and 90 MB of every process.
        from torchvision.ops import roi_align

        trunk = self.backbone(self.normalize(images, sizes, masked_pixel_boxes))
        # Coordinates and bilinear sampling stay in float32 under autocast: half precision cannot represent them.
        with torch.autocast(trunk.device.type, enabled=False):
            rois = torch.cat([image_of_box[:, None].float(), boxes.float()], dim=1)
            # One sample per bin and no half-pixel shift (aligned=False), as in the reference.
            regions = roi_align(
                trunk.float(), rois, (14, 14), spatial_scale=1 / STRIDE, sampling_ratio=1, aligned=False
            )
        maps = self.roi_head_feature_extractor(regions.to(trunk.dtype))
        if masks is None:
            return cast(Tensor, maps.mean(dim=(2, 3)))
        # As in the reference, the mean divides by the size of the map, whatever the mask covers.
        masks = masks.to(maps.dtype).flatten(1)
        return torch.bmm(maps.flatten(2), masks[:, :, None]).squeeze(2) / masks.shape[1]
