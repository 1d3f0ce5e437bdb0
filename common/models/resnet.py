"""ResNet backbone, and the stage that serves as RoI head (He et al., 2016).

Shapes: N images or regions, C channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

STAGE_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def conv_bn(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """Convolution and batch norm. With fixed statistics both are one convolution, which saves an activation."""
    if bn.training:
        return bn(conv(x))  # type: ignore[no-any-return]
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
    weight = conv.weight * scale[:, None, None, None]
    bias = bn.bias - bn.running_mean * scale
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation)


class _Block(nn.Module):
    """Shortcut of the residual blocks."""

    expansion = 1
    downsample: nn.Sequential | None

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        conv, bn = self.downsample
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        return conv_bn(x, conv, bn)


class BasicBlock(_Block):
    """Two 3x3 convolutions (ResNet-18 and -34) with the stride in the first."""

    def __init__(
        self,
        inputs: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        downsample: nn.Sequential | None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            inputs, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(conv_bn(x, self.conv1, self.bn1))
        out = conv_bn(out, self.conv2, self.bn2)
        return F.relu_(out + self._shortcut(x))


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolutions with the stride in the first (Caffe) or second (torchvision)."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        stride_in_1x1: bool,
        downsample: nn.Sequential | None,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, planes, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(
            planes, planes, 3, stride=second, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(conv_bn(x, self.conv1, self.bn1))
        out = F.relu_(conv_bn(out, self.conv2, self.bn2))
        out = conv_bn(out, self.conv3, self.bn3)
        return F.relu_(out + self._shortcut(x))


def block_of(depth: int) -> type[BasicBlock] | type[Bottleneck]:
    if depth not in STAGE_BLOCKS:
        raise ValueError(f"ResNet depth {depth}: use one of {sorted(STAGE_BLOCKS)}")
    return BasicBlock if depth < 50 else Bottleneck


def make_stage(
    depth: int, stage: int, *, width: int, stride: int, dilation: int = 1, stride_in_1x1: bool = False
) -> nn.Sequential:
    """Builds a residual stage.

    Args:
        depth: 18, 34, 50, 101 or 152.
        stage: 0..3 for `layer1` .. `layer4`.
        width: channels of the first stage, 64 in published models.
        stride: stride of the first block.
        dilation: dilation of the 3x3 convolutions (in basic blocks only of the first one).
        stride_in_1x1: see `Bottleneck`.
    """
    block = block_of(depth)
    planes = width * 2**stage
    inputs = width if stage == 0 else planes // 2 * block.expansion
    outputs = planes * block.expansion
    blocks = []
    for index in range(STAGE_BLOCKS[depth][stage]):
        block_stride = stride if index == 0 else 1
        downsample = None
        if block_stride != 1 or inputs != outputs:
            downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=block_stride, bias=False), nn.BatchNorm2d(outputs)
            )
        blocks.append(
            block(
                inputs,
                planes,
                stride=block_stride,
                dilation=dilation,
                stride_in_1x1=stride_in_1x1,
                downsample=downsample,
            )
        )
        inputs = outputs
    return nn.Sequential(*blocks)


def freeze_batch_norm(module: nn.Module) -> None:
    """Freezes scale and shift of every batch norm. Its statistics are frozen by keeping it in evaluation mode."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.requires_grad_(False)


class ResNet(nn.Module):
    """Backbone up to stride 16: `conv1`, `layer1` .. `layer3`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: channels of the first stage; 64 in published models.
        stride_in_1x1: see `Bottleneck`.
    """

    def __init__(self, depth: int, *, width: int = 64, stride_in_1x1: bool = False) -> None:
        super().__init__()
        self.out_channels = width * 4 * block_of(depth).expansion
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = make_stage(depth, 0, width=width, stride=1, stride_in_1x1=stride_in_1x1)
        self.layer2 = make_stage(depth, 1, width=width, stride=2, stride_in_1x1=stride_in_1x1)
        self.layer3 = make_stage(depth, 2, width=width, stride=2, stride_in_1x1=stride_in_1x1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, images: Tensor) -> Iterator[Tensor]:
        """Yields the outputs of the four stages for images (N, 3, H, W), with strides 4, 4, 8, 16."""
        x = F.relu_(conv_bn(images, self.conv1, self.bn1))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        yield x
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
            yield x

    def forward(self, images: Tensor) -> Tensor:
        """Maps (N, 3, H, W) to (N, out_channels, H / 16, W / 16), rounded up."""
        for x in self.stages(images):  # noqa: B007 - frees earlier stages as soon as possible
            pass
        return x

    def freeze(self, stages: Collection[int]) -> None:
        """Freezes stages 1 (`conv1`) to 4 (`layer3`)."""
        parts = {1: (self.conv1, self.bn1), 2: (self.layer1,), 3: (self.layer2,), 4: (self.layer3,)}
        for stage in stages:
            for part in parts.get(stage, ()):
                part.requires_grad_(False)
