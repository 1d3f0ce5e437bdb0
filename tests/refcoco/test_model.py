"""The RefCOCO model: invariances, gradients, and what it may choose."""

from __future__ import annotations

import pytest
import torch

from common.batch import Lengths, Text
from common.config.schema import load_config
from refcoco.config import RefCOCOConfig
from refcoco.dataset import RefCOCOBatch
from refcoco.model import ResNetVLBERT
from refcoco.task import RefCOCOTask
from tests.world import ROOT, TINY

THIN = [
    *TINY,
    "NETWORK.IMAGE_WIDTH=4",
    "NETWORK.IMAGE_FROZEN_BACKBONE_STAGES=[]",
    f"NETWORK.BERT_MODEL_NAME={ROOT / 'tests/golden/model/tiny_bert'}",
]
"""Options of a model that is built in a moment."""


def thin_task(*changes: str) -> tuple[RefCOCOTask, ResNetVLBERT]:
    torch.manual_seed(0)
    task = RefCOCOTask(load_config(RefCOCOConfig, ROOT / "cfgs/refcoco/toy.yaml", [*THIN, *changes]))
    return task, task.build_model()


def batch(boxes: tuple[int, ...] = (3, 1, 4), text: tuple[int, ...] = (5, 3, 6)) -> RefCOCOBatch:
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    count, tokens = len(boxes), sum(text)
    corner = draw(30, sum(boxes), 2).float()
    return RefCOCOBatch(
        record_ids=tuple(f"sentence {i}" for i in range(count)),
        index=torch.arange(count),
        images=draw(256, count, 3, 64, 96).to(torch.uint8),
        num_boxes=Lengths.of(boxes),
        text=Text(
            per_image=Lengths.of([1] * count),
            lengths=Lengths.of(text),
            ids=draw(600, tokens, low=20),
            types=torch.zeros(tokens, dtype=torch.int64),
            tags=torch.zeros(tokens, dtype=torch.int64),
        ),
        im_info=torch.tensor([[96.0, 64.0, 2.0, 4.0]]).expand(count, 4),
        boxes=torch.cat([corner, corner + 25], dim=1),
        label=draw(2, sum(boxes)).float(),
        ref_id=torch.arange(count) + 7,
        sent_id=torch.arange(count) + 70,
        target=torch.zeros(count, 4),
        target_region=torch.zeros(count, dtype=torch.int64),
    )


def row(full: RefCOCOBatch, index: int) -> RefCOCOBatch:
    """One image of a batch, alone."""
    one, box = slice(index, index + 1), full.num_boxes.rows() == index
    text, token = full.text, full.text.lengths.rows() == index
    return RefCOCOBatch(
        record_ids=full.record_ids[one],
        images=full.images[one],
        num_boxes=Lengths.of([full.num_boxes.sizes[index]]),
        text=Text(
            per_image=Lengths.of([1]),
            lengths=Lengths.of([text.lengths.sizes[index]]),
            **{name: getattr(text, name)[token] for name in ("ids", "types", "tags")},
        ),
        boxes=full.boxes[box],
        label=full.label[box],
        **{
            name: getattr(full, name)[one]
            for name in ("index", "im_info", "ref_id", "sent_id", "target", "target_region")
        },
    )


def test_a_row_does_not_depend_on_the_rest_of_the_batch():
    task, model = thin_task()
    model.eval()
    full = batch()
    with torch.no_grad():
        together = model(full)
        alone = [model(row(full, index)) for index in range(3)]
    assert together.logits.shape == (8,)
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in alone]), atol=1e-5, rtol=0)
    chosen = [record["box"] for record in task.predictions(together, full)]
    for index, one in enumerate(alone):
        assert task.predictions(one, row(full, index))[0]["box"] == pytest.approx(chosen[index])


def test_every_logit_is_that_of_its_own_box():
    _, model = thin_task()
    model.eval()
    full, order = batch(), torch.tensor([2, 0, 1, 3, 7, 6, 5, 4])
    with torch.no_grad():
        expected = model(full).logits[order]
        shuffled = batch()
        # Words carry the feature of box 0: they must not follow.
        first = shuffled.boxes.clone()
        shuffled.boxes.copy_(first[order])
        shuffled.text.tags.copy_(torch.tensor([1, 0, 3])[shuffled.text.lengths.rows()])
        actual = model(shuffled).logits
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


OPTIONS = [
    "NETWORK.CLASSIFIER_DROPOUT=0.1",
    "NETWORK.IMAGE_NUM_LAYERS=50",
    "NETWORK.VLBERT.visual_ln=false",
    "NETWORK.VLBERT.word_embedding_frozen=true",
    "NETWORK.VLBERT.with_pooler=true",
    "NETWORK.IMAGE_FROZEN_BN=false",
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_trainable_parameter_receives_a_gradient(option):
    task, model = thin_task(option)
    losses = task.losses(model.train()(batch()), batch())
    task.total(losses).backward()
    assert list(losses) == ["cls_loss"]
    assert torch.isfinite(losses["cls_loss"])
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without


def test_names_and_initial_values_of_the_head():
    _, model = thin_task()
    assert {name for name in model.state_dict() if name.startswith("final_mlp")} == {
        "final_mlp.0.dense.weight",
        "final_mlp.0.dense.bias",
        "final_mlp.2.weight",
        "final_mlp.2.bias",
    }
    # Xavier: uniform within sqrt(6 / (16 + 1)).
    assert 0.1 < model.final_mlp[2].weight.abs().max() <= (6 / 17) ** 0.5
    assert not any(layer.bias.any() for layer in (model.final_mlp[0].dense, model.final_mlp[2]))
    assert model.object_linguistic_embeddings.weight.shape == (1, 16)
