"""The VCR model: options, invariances, gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.batch import Lengths, Text
from common.config.schema import load_config
from common.errors import ConfigError, DataError
from vcr.config import VCRConfig
from vcr.dataset import VCRBatch
from vcr.model import ResNetVLBERT
from vcr.task import VCRTask

ROOT = Path(__file__).parents[2]
THIN = [
    "NETWORK.IMAGE_WIDTH=4",
    "NETWORK.IMAGE_FROZEN_BACKBONE_STAGES=[]",
    "NETWORK.IMAGE_FINAL_DIM=16",
    "NETWORK.VLBERT.visual_size=16",
    "NETWORK.VLBERT.hidden_size=16",
    "NETWORK.VLBERT.intermediate_size=16",
    "NETWORK.VLBERT.num_hidden_layers=2",
    f"NETWORK.BERT_MODEL_NAME={ROOT / 'tests/golden/model/tiny_bert'}",
    "NETWORK.ENABLE_CNN_REG_LOSS=true",
    "NETWORK.CNN_LOSS_TOP=true",
]
"""Options of a model that is built in a moment."""


def thin_config(*changes: str) -> VCRConfig:
    return load_config(VCRConfig, ROOT / "cfgs/vcr/toy_q2a.yaml", [*THIN, *changes])


def thin_task(*changes: str) -> tuple[VCRTask, ResNetVLBERT]:
    torch.manual_seed(0)
    task = VCRTask(thin_config(*changes))
    return task, task.build_model()


def batch(
    boxes: tuple[int, ...] = (3, 2), text: tuple[tuple[int, ...], ...] = ((7, 9, 8, 6), (5, 4, 9, 3))
) -> VCRBatch:
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int, low: int = 0) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    count, lengths = len(boxes), [length for row in text for length in row]
    corner = draw(30, sum(boxes), 2).float()
    tags = [draw(n, length) for n, row in zip(boxes, text, strict=True) for length in row]
    return VCRBatch(
        record_ids=tuple(f"val-{i}" for i in range(count)),
        index=torch.arange(count),
        images=draw(256, count, 3, 64, 96).to(torch.uint8),
        num_boxes=Lengths.of(boxes),
        text=Text(
            per_image=Lengths.of([len(row) for row in text]),
            lengths=Lengths.of(lengths),
            ids=draw(600, sum(lengths), low=20),
            types=draw(2, sum(lengths)),
            tags=torch.cat(tags),
        ),
        im_info=torch.tensor([[96.0, 64.0, 1.0, 1.0]]).expand(count, 4),
        boxes=torch.cat([corner, corner + 25], dim=1),
        box_classes=draw(81, sum(boxes)),
        box_masks=draw(2, sum(boxes), 7, 7).bool(),
        label=draw(4, count),
    )


def row(full: VCRBatch, index: int) -> VCRBatch:
    """One image of a batch, alone."""
    box = full.num_boxes.rows() == index
    sequence = full.text.per_image.rows() == index
    token = sequence[full.text.lengths.rows()]
    sizes = [size for size, mine in zip(full.text.lengths.sizes, sequence.tolist(), strict=True) if mine]
    text = Text(
        per_image=Lengths.of([len(sizes)]),
        lengths=Lengths.of(sizes),
        ids=full.text.ids[token],
        types=full.text.types[token],
        tags=full.text.tags[token],
    )
    return VCRBatch(
        record_ids=full.record_ids[index : index + 1],
        index=full.index[index : index + 1],
        images=full.images[index : index + 1],
        num_boxes=Lengths.of([full.num_boxes.sizes[index]]),
        text=text,
        im_info=full.im_info[index : index + 1],
        boxes=full.boxes[box],
        box_classes=full.box_classes[box],
        box_masks=full.box_masks[box],
        label=full.label[index : index + 1],
    )


@pytest.mark.parametrize("mode", [1, 2, 3])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(mode):
    _, model = thin_task(f"NETWORK.VLBERT.object_word_embed_mode={mode}")
    model.eval()
    full = batch()
    with torch.no_grad():
        together = model(full).logits
        alone = torch.cat([model(row(full, index)).logits for index in range(2)])
    assert together.shape == (2, 4)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


OPTIONS = [
    "NETWORK.BLIND=true",
    "NETWORK.NO_GROUNDING=true",
    "NETWORK.NO_OBJ_ATTENTION=true",
    "NETWORK.CNN_LOSS_TOP=false",
    "NETWORK.ENABLE_CNN_REG_LOSS=false",
    "NETWORK.CLASSIFIER_TYPE=2fc",
    "NETWORK.CLASSIFIER_SIGMOID=true",
    "NETWORK.IMAGE_SEMANTIC=true",
    "NETWORK.IMAGE_NUM_LAYERS=50",
    "NETWORK.VLBERT.visual_ln=false",
    "NETWORK.VLBERT.object_word_embed_mode=1",
    "NETWORK.VLBERT.object_word_embed_mode=3",
    "NETWORK.VLBERT.position_padding_idx=1",
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_trainable_parameter_receives_a_gradient(option):
    task, model = thin_task(option)
    outputs = model.train()(batch())
    losses = task.losses(outputs, batch())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without


def test_a_blind_model_sees_nothing():
    task, model = thin_task("NETWORK.BLIND=true")
    model.eval()
    seen, other = batch(), batch()
    other.images.zero_()
    assert torch.equal(model(seen).logits, model(other).logits)
    assert list(task.losses(model(seen), seen)) == ["ans_loss"]
    assert model.image_feature_extractor is None
    assert not any(value.requires_grad for value in model.vlbert.visual_parameters())


def test_grounding_gives_each_word_its_own_box():
    changed = batch()
    changed.text.tags.zero_()
    for option, same in (("NETWORK.NO_GROUNDING=true", True), ("NETWORK.NO_GROUNDING=false", False)):
        _, model = thin_task(option)
        model.eval()
        assert torch.equal(model(batch()).logits, model(changed).logits) == same


def test_region_loss_without_regions_is_zero():
    task, model = thin_task("NETWORK.NO_OBJ_ATTENTION=true")
    losses = task.losses(model(batch()), batch())
    assert losses["cnn_regularization_loss"].item() == 0


def test_a_text_that_is_too_long_names_its_record():
    _, model = thin_task("NETWORK.VLBERT.max_position_embeddings=10")
    model(batch(text=((7, 8, 8, 6), (5, 4, 8, 3))))
    with pytest.raises(DataError, match="record val-0: a text of 9 tokens; the model takes 8"):
        model(batch())


def test_a_vocabulary_larger_than_the_table():
    with pytest.raises(ConfigError, match=r"NETWORK.VLBERT.vocab_size: 500.* has 600 words"):
        thin_task("NETWORK.VLBERT.vocab_size=500")


def test_object_words():
    expected = {1: (81, 16), 2: (1, 16)}
    for mode, shape in expected.items():
        _, model = thin_task(f"NETWORK.VLBERT.object_word_embed_mode={mode}")
        assert tuple(model.object_linguistic_embeddings.weight.shape) == shape
    assert thin_task("NETWORK.VLBERT.object_word_embed_mode=3")[1].object_linguistic_embeddings is None
