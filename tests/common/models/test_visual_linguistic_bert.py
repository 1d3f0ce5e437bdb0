"""The joint transformer: options, special words, limits."""

from __future__ import annotations

import pytest
import torch

from common.batch import Lengths
from common.config.sections import VLBertConfig
from common.models.visual_linguistic_bert import (
    NUM_SPECIAL_WORDS,
    PackedInputs,
    VisualLinguisticBert,
    VisualLinguisticBertForPretraining,
)

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "visual_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}


def inputs(visual_size: int = 8) -> PackedInputs:
    generator = torch.Generator().manual_seed(1)
    return PackedInputs(
        text_lengths=Lengths.of([2, 3]),
        text_ids=torch.tensor([1, 2, 3, 4, 5]),
        text_types=torch.tensor([0, 0, 0, 1, 1]),
        text_visual=torch.tensor([0, 0, 1, 1, 2]),
        region_lengths=Lengths.of([1, 2]),
        region_visual=torch.tensor([0, 1, 2]),
        region_words=torch.randn(3, 8, generator=generator),
        visual=torch.randn(3, visual_size, generator=generator),
    )


def config(**changes) -> VLBertConfig:
    """`NETWORK.VLBERT` of a tiny model."""
    return VLBertConfig(**{**SIZES, **changes})


def build(**changes) -> VisualLinguisticBert:
    torch.manual_seed(0)
    return VisualLinguisticBert(config(**changes)).eval()


@pytest.mark.parametrize(
    "options", [{"visual_ln": True}, {"visual_scale_text_init": 0.5}, {"visual_size": 6}]
)
def test_roles(options):
    encoded = build(**options)(inputs(options.get("visual_size", 8)))
    assert encoded.text().shape == (5, 8)
    assert encoded.regions().shape == (3, 8)
    assert torch.equal(encoded.first(), encoded.text()[[0, 2]])


def test_a_zero_scale_hides_the_picture():
    model, given = build(), inputs()
    blank = PackedInputs(**{**vars(given), "visual": torch.zeros_like(given.visual)})
    assert torch.equal(model(given).output.hidden, model(blank).output.hidden)
    seeing = build(visual_scale_object_init=1.0)
    assert not torch.equal(seeing(given).output.hidden, seeing(blank).output.hidden)


def test_special_words_train_while_the_table_is_fixed():
    model = build(vocab_size=NUM_SPECIAL_WORDS + 5, word_embedding_frozen=True)
    assert not model.word_embeddings.weight.requires_grad
    ids = torch.tensor([3, NUM_SPECIAL_WORDS + 1])
    assert torch.equal(model.words(ids), model.word_embeddings(ids))
    model.words(ids).sum().backward()
    grad = model.special_word_embeddings.weight.grad
    assert grad[3].sum() == 8
    assert grad.sum() == 8


def test_initial_values():
    model = build(
        hidden_size=64, vocab_size=4000, visual_ln=True, visual_size=64, visual_scale_text_init=0.25
    )
    assert model.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.visual_ln_text.weight.unique().tolist() == [0.25]
    assert model.visual_ln_object.weight.unique().tolist() == [0.0]
    assert model.encoder.layer[0].intermediate.dense.bias.abs().max() == 0


def test_pretraining_heads_are_optional_and_in_the_order_of_the_files():
    model = VisualLinguisticBertForPretraining(config(), with_mlm_head=False, num_region_classes=7)
    heads = [name for name in model.state_dict() if "head" in name]
    assert heads[0].startswith("relationsip_head.")
    assert heads[-1] == "mvrc_head.region_cls_pred.bias"
    assert len(model.state_dict()[heads[-1]]) == 7


def test_visual_parameters():
    model = build(visual_ln=True)
    names = {id(value): name for name, value in model.named_parameters()}
    found = {names[id(value)].split(".")[0] for value in model.visual_parameters()}
    assert found == {"visual_ln_text", "visual_ln_object"}
