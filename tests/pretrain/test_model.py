"""The pre-training models: hidden regions, texts alone, heads on labelled places."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from common.batch import TextSequence
from common.config.schema import load_config
from common.data.collate import collate
from pretrain.config import PretrainConfig
from pretrain.dataset import PretrainBatch, PretrainSample
from pretrain.task import PretrainTask
from tests.world import ROOT

CLASSES = 9
THIN = [
    "NETWORK.IMAGE_WIDTH=4",
    "NETWORK.IMAGE_NUM_LAYERS=18",
    "NETWORK.IMAGE_FINAL_DIM=16",
    "NETWORK.VLBERT.visual_size=16",
    "NETWORK.VLBERT.hidden_size=16",
    "NETWORK.VLBERT.num_attention_heads=4",
    "NETWORK.VLBERT.intermediate_size=16",
    "NETWORK.VLBERT.num_hidden_layers=2",
    "NETWORK.VLBERT.vocab_size=600",
    "NETWORK.VLBERT.visual_scale_text_init=1.0",
    "NETWORK.VLBERT.visual_scale_object_init=1.0",
    "NETWORK.VLBERT.initializer_range=0.2",
    f"NETWORK.VLBERT.visual_region_classes={CLASSES}",
]
"""Options of a model that is built in a moment."""

FILES = {
    "multitask": "base_prec_4x16G_fp32",
    "single": "base_prec_withouttextonly_4x16G_fp32",
    "pixels": "base_e2e_16x16G_fp16",
    "attention": "vis_attention_maps_coco",
}
ALL_LOSSES = ("NETWORK.WITH_REL_LOSS=true", "NETWORK.VLBERT.with_pooler=true")
RAW = "NETWORK.MASK_RAW_PIXELS"


def thin_task(name: str, *changes: str) -> PretrainTask:
    file = ROOT / f"cfgs/pretrain/{FILES[name]}.yaml"
    return PretrainTask(load_config(PretrainConfig, file, [*THIN, *changes]))


def build(name: str, *changes: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return thin_task(name, *changes).build_model()


def picture(
    number: int, boxes: int, words: int, *, hidden=(1,), places=(1, 2), pixels=False
) -> PretrainSample:
    """A sample drawn from its number: the whole image and `boxes` regions; those of `hidden` are labelled."""
    generator = torch.Generator().manual_seed(number)
    corner = torch.randint(40, (boxes, 2), generator=generator).float()
    whole = torch.tensor([[0.0, 0.0, 95.0, 63.0]])
    regions = torch.tensor(hidden, dtype=torch.int64)
    found = torch.cat([whole, torch.cat([corner, corner + 20], dim=1)])
    return PretrainSample(
        index=number,
        record_id=str(number),
        image=torch.randint(256, (3, 64, 96), generator=generator).to(torch.uint8) if pixels else None,
        padded_size=(64, 96),
        im_info=torch.tensor([96.0, 64.0, 1.0, 1.0]),
        boxes=found,
        texts=(TextSequence.plain(torch.randint(20, 600, (words,), generator=generator).tolist()),),
        box_features=None if pixels else torch.randn(boxes + 1, 2048, generator=generator),
        relationship=torch.tensor([number % 2]),
        masked_token_index=torch.tensor(places, dtype=torch.int64),
        word_labels=torch.arange(len(places)) + 30,
        masked_region_index=regions,
        region_labels=torch.randn(len(hidden), CLASSES, generator=generator).softmax(1),
        masked_regions=torch.isin(torch.arange(boxes + 1), regions),
        masked_pixel_boxes=found[regions].long() if pixels else None,
    )


def text(number: int, words: int, *, places=(0,), pixels=False) -> PretrainSample:
    """A text alone."""
    generator = torch.Generator().manual_seed(number)
    return PretrainSample(
        index=number,
        record_id=str(number),
        image=None,
        padded_size=(0, 0),
        im_info=torch.zeros(4),
        boxes=torch.zeros(0, 4),
        texts=(TextSequence.plain(torch.randint(20, 600, (words,), generator=generator).tolist()),),
        box_features=None if pixels else torch.zeros(0, 2048),
        relationship=torch.zeros(0, dtype=torch.int64),
        masked_token_index=torch.tensor(places, dtype=torch.int64),
        word_labels=torch.arange(len(places)) + 40,
        masked_region_index=torch.zeros(0, dtype=torch.int64),
        region_labels=torch.zeros(0, CLASSES),
        masked_regions=torch.zeros(0, dtype=torch.bool),
        masked_pixel_boxes=torch.zeros(0, 4, dtype=torch.int64) if pixels else None,
    )


def batch(*samples: PretrainSample) -> PretrainBatch:
    return collate(samples, PretrainBatch)


def mixed(pixels: bool = False) -> PretrainBatch:
    return batch(
        picture(1, 3, 6, pixels=pixels),
        picture(2, 2, 4, hidden=(1, 2), places=(3,), pixels=pixels),
        text(3, 9, places=(0, 8), pixels=pixels),
        text(4, 2, pixels=pixels),
    )


CASES = pytest.mark.parametrize(
    ("name", "changes", "pixels"),
    [
        ("multitask", ALL_LOSSES, False),
        ("pixels", ALL_LOSSES, True),
        ("pixels", (f"{RAW}=false", *ALL_LOSSES), True),
    ],
)


@CASES
def test_a_row_does_not_depend_on_the_rest_of_the_batch(name, changes, pixels):
    model = build(name, *changes).eval()
    with torch.no_grad():
        together = model(mixed(pixels))
        first = model(batch(picture(1, 3, 6, pixels=pixels)))
        last = model(batch(text(4, 2, pixels=pixels)))
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(together.relationship_logits[:1], first.relationship_logits, **close)
    torch.testing.assert_close(together.word_logits[:2], first.word_logits, **close)
    torch.testing.assert_close(together.region_logits[:1], first.region_logits, **close)
    torch.testing.assert_close(together.word_logits[-1:], last.word_logits, **close)
    assert (len(last.relationship_logits), len(last.region_logits)) == (0, 0)


@CASES
def test_heads_run_on_labelled_places(name, changes, pixels):
    model, inputs = build(name, *changes).eval(), mixed(pixels)
    with torch.no_grad():
        few, encoded = model(inputs), model.encode(inputs, model.region_features(inputs))
        bert = model.vlbert
        all_words = bert.mlm_head(encoded.text(), bert.word_embeddings.weight)
        all_regions = bert.mvrc_head(encoded.regions())
    assert few.relationship_logits.shape == (2, 2)
    assert few.word_logits.shape == (6, 600)
    assert few.region_logits.shape == (3, CLASSES)
    assert (all_words.shape, all_regions.shape) == ((21, 600), (7, CLASSES))
    places = [1, 2, 9, 10, 18, 19]
    torch.testing.assert_close(few.word_logits, all_words[places], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few.region_logits, all_regions[[1, 5, 6]], atol=1e-5, rtol=1e-5)


@CASES
def test_every_trained_parameter_gets_a_gradient_even_without_a_label(name, changes, pixels):
    task, model = thin_task(name, *changes), build(name, *changes).train()
    bare = batch(picture(1, 2, 4, hidden=(), places=(), pixels=pixels), text(2, 3, places=(), pixels=pixels))
    for inputs in (bare, mixed(pixels)):
        losses = task.losses(model(inputs), inputs)
        assert list(losses) == ["relationship_loss", "mlm_loss_wvc", "mlm_loss_aux", "mvrc_loss"]
        assert all(loss.isfinite() for loss in losses.values())
        model.zero_grad()
        task.total(losses).backward()
        missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_position_embeddings_freeze_on_request():
    for frozen in (True, False):
        model = build("multitask", f"NETWORK.VLBERT.pos_embedding_frozen={str(frozen).lower()}")
        assert model.vlbert.position_embeddings.weight.requires_grad != frozen


def test_an_unused_pooler_is_frozen():
    model = build("multitask", "NETWORK.VLBERT.with_pooler=true")
    assert not any(p.requires_grad for p in model.vlbert.pooler.parameters())
    assert all(p.requires_grad for p in build("multitask", *ALL_LOSSES).vlbert.pooler.parameters())


@CASES
def test_hidden_regions_are_hidden(name, changes, pixels):
    model, shown = build(name, *changes).eval(), picture(1, 2, 4, pixels=pixels)
    raw = pixels and f"{RAW}=false" not in changes
    shown = replace(shown, masked_pixel_boxes=shown.masked_pixel_boxes if raw else None)
    with torch.no_grad():
        before = model(batch(shown)).region_logits
        if pixels:
            x, y = shown.boxes[1, :2].int().tolist()
            shown.image[:, y : y + 21, x : x + 21] = 0
        else:
            shown.box_features[1] = 7
        # The whole image looks at the same pixels where these are not blank.
        same = raw or not pixels
        assert torch.allclose(model(batch(shown)).region_logits, before, atol=1e-6) == same
        shown.masked_regions[1] = False
        shown = replace(shown, masked_pixel_boxes=shown.masked_pixel_boxes[:0] if raw else None)
        assert not torch.allclose(model(batch(shown)).region_logits, before, atol=1e-4)


def test_a_learned_vector_stands_for_the_feature_of_a_hidden_region():
    model = build("pixels", f"{RAW}=false").eval()
    inputs = batch(picture(1, 2, 4, pixels=True))
    hidden = model.region_features(inputs).embeddings
    with torch.no_grad():
        model.object_mask_visual_embedding.weight.add_(1)
    changed = (model.region_features(inputs).embeddings != hidden).any(dim=1)
    assert changed.tolist() == [False, True, False]


def test_texts_alone_carry_a_vector_of_their_own():
    model, inputs = build("multitask").eval(), mixed()
    with torch.no_grad():
        before = model(inputs).word_logits
        model.aux_text_visual_embedding.weight.add_(1)
        changed = (model(inputs).word_logits != before).any(dim=1)
    assert changed.tolist() == [False, False, False, True, True, True]


def test_initial_values():
    model = build("multitask", "NETWORK.VLBERT.hidden_size=256", "NETWORK.VLBERT.visual_size=256",
                  "NETWORK.IMAGE_FINAL_DIM=256")  # fmt: skip
    assert model.object_mask_visual_embedding.weight.abs().max() == 0
    for table in ("object_linguistic", "object_mask_word", "aux_text_visual"):
        name = f"{table}_embedding" + "s" * (table == "object_linguistic")
        assert getattr(model, name).weight.std().item() == pytest.approx(0.2, rel=0.15)


def test_attention_maps_of_all_layers():
    model = build("attention").eval()
    with torch.no_grad():
        output = model(batch(picture(1, 2, 4, pixels=True), text(3, 5, pixels=True))).output
    assert [tuple(maps.shape) for maps in output.attention] == [(2, 4, 8, 8)] * 2
