"""The region branch on a thin backbone."""

from __future__ import annotations

import pytest
import torch

from common.batch import Batch, Lengths, Ragged, Text
from common.models.fast_rcnn import COORDINATE_DIM, FastRCNN, ImageNormalizer


def batch(**changes) -> Batch:
    generator = torch.Generator().manual_seed(0)
    none = Lengths.of([0, 0])
    empty = torch.zeros(0, dtype=torch.int64)
    fields = {
        "record_ids": ("a", "b"),
        "index": torch.arange(2),
        "images": torch.randint(0, 256, (2, 3, 48, 64), generator=generator, dtype=torch.uint8),
        "num_boxes": Lengths.of([2, 1]),
        "text": Text(none, Lengths.of([]), empty, empty, empty),
        "im_info": torch.tensor([[64.0, 40.0, 1.0, 1.0], [50.0, 48.0, 1.0, 1.0]]),
        "boxes": torch.tensor([[0.0, 0.0, 63.0, 39.0], [5.0, 5.0, 20.0, 30.0], [0.0, 0.0, 49.0, 47.0]]),
    }
    return Batch(**{**fields, **changes})


def build(**changes) -> FastRCNN:
    torch.manual_seed(0)
    options = {
        "final_dim": 6,
        "depth": 18,
        "width": 4,
        "pixel_means": (100.0, 110.0, 120.0),
        "pixel_stds": (2.0, 2.0, 2.0),
    }
    return FastRCNN(**{**options, **changes}).eval()


def test_widths_follow_the_backbone():
    features = build()(batch())
    assert features.embeddings.shape == (3, 6)
    assert features.raw.shape == (3, 32)
    assert build(depth=50)(batch()).raw.shape == (3, 128)
    assert build().obj_downsample[1].in_features == COORDINATE_DIM + 32


def test_bytes_are_normalised_inside_the_picture_only():
    normalize = ImageNormalizer((100.0, 110.0, 120.0), (2.0, 2.0, 2.0))
    images = torch.full((1, 3, 2, 3), 130, dtype=torch.uint8)
    out = normalize(images, torch.tensor([[2.0, 1.0]]))
    assert out[0, :, 0, 0].tolist() == [15, 10, 5]
    assert out[0, :, 0, 2].tolist() == [0, 0, 0]
    assert out[0, :, 1, 0].tolist() == [0, 0, 0]
    assert torch.equal(normalize(out, torch.ones(1, 2)), out)
    assert not normalize.state_dict()


def test_blank_areas_are_zero():
    normalize = ImageNormalizer((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    images = torch.full((2, 3, 4, 5), 3, dtype=torch.uint8)
    areas = torch.tensor([[1, 0, 2, 1], [4, 3, 9, 9], [0, 2, 0, 2]])
    masked_pixel_boxes = Ragged(Lengths.of([2, 1, 0]), areas)  # the last row is a text
    first, second = normalize(images, torch.tensor([[5.0, 4.0], [5.0, 3.0]]), masked_pixel_boxes)[
        :, 0
    ].tolist()
    assert first == [[2, 0, 0, 2, 2], [2, 0, 0, 2, 2], [2, 2, 2, 2, 2], [2, 2, 2, 2, 0]]
    assert second == [[2, 2, 2, 2, 2], [2, 2, 2, 2, 2], [0, 2, 2, 2, 2], [0, 0, 0, 0, 0]]
    none = Ragged(Lengths.of([0, 0]), areas[:0])
    assert normalize(images, torch.tensor([[5.0, 4.0]] * 2), none).min() == 2


def test_instance_masks_cut_the_mean():
    model, ones = build(), torch.ones(3, 14, 14, dtype=torch.bool)
    plain = model(batch()).raw
    torch.testing.assert_close(model(batch(box_masks=ones)).raw, plain)
    assert model(batch(box_masks=~ones)).raw.abs().max() == 0


def test_a_region_does_not_depend_on_the_other_boxes():
    model, both = build(), batch()
    alone = batch(
        record_ids=("a",),
        images=both.images[:1],
        num_boxes=Lengths.of([1]),
        im_info=both.im_info[:1],
        boxes=both.boxes[1:2],
    )
    torch.testing.assert_close(model(both).embeddings[1:2], model(alone).embeddings, atol=1e-5, rtol=1e-5)


def test_masked_regions_take_the_given_feature():
    model, embedding = build(), torch.randn(32, requires_grad=True)
    masked = torch.tensor([False, True, False])
    plain, replaced = model(batch()), model(batch(), masked=masked, mask_embedding=embedding)
    assert torch.equal(plain.embeddings[[0, 2]], replaced.embeddings[[0, 2]])
    assert torch.equal(plain.raw, replaced.raw)
    replaced.embeddings.sum().backward()
    assert embedding.grad.abs().sum() > 0


def test_precomputed_features_need_no_trunk():
    model = FastRCNN(final_dim=6, depth=None, semantic=True)
    assert not any("backbone" in name for name in model.state_dict())
    features = torch.rand(3, 2048)
    out = model(batch(images=None, box_features=features, box_classes=torch.tensor([0, 1, 80])))
    assert torch.equal(out.raw, features)


def test_classifier_of_the_regularisation_loss():
    assert build(classify=True)(batch()).class_logits.shape == (3, 81)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_stays_fixed_in_training(frozen):
    model = build(frozen_bn=frozen)
    before = model.backbone.bn1.running_mean.clone()
    assert model.train() is model
    model(batch())
    assert torch.equal(before, model.backbone.bn1.running_mean) == frozen
    assert model.backbone.bn1.weight.requires_grad != frozen
    assert model.roi_head_feature_extractor[0].bn1.training != frozen


def test_stage_five_is_the_roi_head():
    model = build(frozen_stages=[1, 5])
    assert not any(p.requires_grad for p in model.roi_head_feature_extractor.parameters())
    assert not model.backbone.conv1.weight.requires_grad
    assert model.backbone.layer1[0].conv1.weight.requires_grad
