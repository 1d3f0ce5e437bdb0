"""Shapes, strides, freezing, and the fusion of fixed batch norm into its convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.models.resnet import Bottleneck, ResNet, block_of, conv_bn, make_stage


@pytest.mark.parametrize(("depth", "channels"), [(18, 32), (34, 32), (50, 128)])
def test_trunk_has_stride_16_rounded_up(depth, channels):
    model = ResNet(depth, width=8)
    stages = list(model.stages(torch.randn(1, 3, 50, 70)))
    assert [tuple(stage.shape[2:]) for stage in stages] == [(13, 18), (13, 18), (7, 9), (4, 5)]
    assert stages[-1].shape[1] == model.out_channels == channels


def test_an_unknown_depth_is_named():
    with pytest.raises(ValueError, match="77"):
        block_of(77)


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_where_the_stride_sits(stride_in_1x1):
    block = make_stage(50, 1, width=8, stride=2, stride_in_1x1=stride_in_1x1)[0]
    assert isinstance(block, Bottleneck)
    assert block.conv1.stride == ((2, 2) if stride_in_1x1 else (1, 1))
    assert block.conv2.stride == ((1, 1) if stride_in_1x1 else (2, 2))


def test_a_dilated_stage_keeps_the_map():
    stage = make_stage(18, 3, width=4, stride=1, dilation=2)
    assert stage(torch.randn(2, 16, 14, 14)).shape == (2, 32, 14, 14)
    assert stage[0].conv1.dilation == (2, 2)


def test_fixed_batch_norm_is_part_of_the_convolution():
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
    nn.init.uniform_(bn.weight), nn.init.uniform_(bn.bias)
    bn.running_mean.uniform_(), bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 5, 5)
    bn.eval()
    torch.testing.assert_close(conv_bn(x, conv, bn), bn(conv(x)))
    bn.train()
    before = bn.running_mean.clone()
    conv_bn(x, conv, bn)
    assert not torch.equal(bn.running_mean, before)


def test_frozen_stages():
    model = ResNet(18, width=4)
    model.freeze([1, 3])
    frozen = {name.split(".")[0] for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {"conv1", "bn1", "layer2"}
