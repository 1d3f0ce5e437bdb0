"""Box geometry against stored numbers."""

from __future__ import annotations

import pytest
import torch

from common.models.geometry import coordinate_embeddings, pairwise_iou


def test_coordinate_embedding_of_the_spec():
    embedded = coordinate_embeddings(
        torch.tensor([[10.0, 20.0, 110.0, 70.0]]), torch.tensor([[200.0, 100.0]])
    )
    assert embedded.shape == (1, 4, 512)
    centre_x, centre_y, width, height = embedded[0]
    assert centre_x[[0, 1, 2, 255]].tolist() == pytest.approx(
        [-0.988031, -0.799816, -0.149017, 0.030816], abs=1e-5
    )
    assert centre_y[[256, 257, 511]].tolist() == pytest.approx([0.525322, 0.983787, 0.998932], abs=1e-5)
    assert torch.equal(width, height)
    assert embedded.sum().item() == pytest.approx(604.0444, abs=1e-2)


def test_iou_counts_corner_pixels():
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    others = torch.tensor(
        [[0.0, 0.0, 9.0, 9.0], [5.0, 0.0, 14.0, 9.0], [5.0, 5.0, 14.0, 14.0], [20.0, 20.0, 30.0, 30.0]]
    )
    assert pairwise_iou(boxes, others)[0].tolist() == pytest.approx([1, 1 / 3, 25 / 175, 0])
