"""The VQA model: options, invariances, gradients."""

from __future__ import annotations

import pytest
import torch

from common.batch import Lengths, Text
from common.config.schema import load_config
from common.errors import DataError
from tests.world import ROOT
from vqa.config import VQAConfig
from vqa.dataset import VQABatch, assemble_question
from vqa.model import ResNetVLBERT
from vqa.task import VQATask

ANSWERS = 7
THIN = [
    "NETWORK.IMAGE_WIDTH=4",
    "NETWORK.IMAGE_NUM_LAYERS=18",
    "NETWORK.IMAGE_FINAL_DIM=16",
    "NETWORK.PIXEL_MEANS=[102.9801, 115.9465, 122.7717]",
    "NETWORK.PIXEL_STDS=[1.0, 1.0, 1.0]",
    "NETWORK.VLBERT.visual_size=16",
    "NETWORK.VLBERT.hidden_size=16",
    "NETWORK.VLBERT.intermediate_size=16",
    "NETWORK.VLBERT.num_hidden_layers=2",
    f"NETWORK.BERT_MODEL_NAME={ROOT / 'tests/golden/model/tiny_bert'}",
    f"DATASET.ANSWER_VOCAB_SIZE={ANSWERS}",
]
"""Options of a model that is built in a moment."""

PIXELS = "NETWORK.IMAGE_FEAT_PRECOMPUTED=false"


def thin_config(*changes: str) -> VQAConfig:
    return load_config(VQAConfig, ROOT / "cfgs/vqa/toy.yaml", [*THIN, *changes])


def thin_task(*changes: str) -> tuple[VQATask, ResNetVLBERT]:
    torch.manual_seed(0)
    task = VQATask(thin_config(*changes))
    return task, task.build_model()


def batch(boxes: tuple[int, ...] = (3, 2), questions: tuple[int, ...] = (6, 3), first: int = 0) -> VQABatch:
    """Images of their own, drawn from their numbers, so that batches of other images can be compared."""
    tokenizer = VQATask(thin_config()).tokenizer
    parts, texts = [], []
    for number, (count, length) in enumerate(zip(boxes, questions, strict=True), start=first):
        generator = torch.Generator().manual_seed(number)
        corner = torch.randint(30, (count, 2), generator=generator).float()
        parts.append(
            (
                torch.cat([corner, corner + 25], dim=1),
                torch.randn(count, 2048, generator=generator),
                torch.randint(256, (3, 64, 96), generator=generator).to(torch.uint8),
                torch.rand(ANSWERS, generator=generator),
            )
        )
        pieces = torch.randint(20, 600, (length,), generator=generator).tolist()
        texts.append(assemble_question(pieces, tokenizer))
    places, features, images, labels = zip(*parts, strict=True)
    return VQABatch(
        record_ids=tuple(str(1000 + number) for number in range(len(boxes))),
        index=torch.arange(len(boxes)),
        images=torch.stack(images),
        num_boxes=Lengths.of(boxes),
        text=Text(
            per_image=Lengths.of([1] * len(boxes)),
            lengths=Lengths.of([len(text) for text in texts]),
            ids=torch.cat([torch.from_numpy(text.ids) for text in texts]),
            types=torch.cat([torch.from_numpy(text.types) for text in texts]),
            tags=torch.cat([torch.from_numpy(text.tags) for text in texts]),
        ),
        im_info=torch.tensor([[96.0, 64.0, 1.0, 1.0]]).expand(len(boxes), 4),
        boxes=torch.cat(places),
        box_features=torch.cat(features),
        label=torch.stack(labels),
    )


@pytest.mark.parametrize("options", [(), (PIXELS,), ("NETWORK.NO_GROUNDING=true",)])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(options):
    _, model = thin_task(*options)
    model.eval()
    with torch.no_grad():
        together = model(batch()).logits
        alone = torch.cat([model(batch((3,), (6,))).logits, model(batch((2,), (3,), first=1)).logits])
    assert together.shape == (2, ANSWERS)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


OPTIONS = [
    PIXELS,
    "NETWORK.NO_GROUNDING=true",
    "NETWORK.CLASSIFIER_TYPE=1fc",
    "NETWORK.CLASSIFIER_TYPE=2fc",
    "NETWORK.CLASSIFIER_TYPE=mlm",
    "NETWORK.VLBERT.visual_ln=false",
    "NETWORK.VLBERT.with_pooler=true",
    "NETWORK.VLBERT.position_padding_idx=1",
    "NETWORK.VLBERT.word_embedding_frozen=true",
]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_trainable_parameter_receives_a_gradient(option):
    task, model = thin_task(option)
    losses = task.losses(model.train()(batch()), batch())
    assert torch.isfinite(losses["ans_loss"])
    losses["ans_loss"].backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without


def test_a_pooler_is_kept_and_not_trained():
    _, model = thin_task("NETWORK.VLBERT.with_pooler=true")
    frozen = [name for name, value in model.named_parameters() if not value.requires_grad]
    assert frozen == ["vlbert.pooler.dense.weight", "vlbert.pooler.dense.bias"]


def test_the_answer_stands_at_the_mask():
    _, model = thin_task("NETWORK.CLASSIFIER_TYPE=1fc")
    model.eval()
    states, full = [], batch()
    model.final_mlp.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    with torch.no_grad():
        model(full)
        encoded = model.encode(full, model.region_features(full)).text()
    masks = (full.text.ids == VQATask(thin_config()).tokenizer.mask_id).nonzero().flatten()
    assert masks.tolist() == [8, 15]
    torch.testing.assert_close(states[0], encoded[masks])


def test_without_grounding_the_words_carry_nothing():
    full = batch()
    _, model = thin_task("NETWORK.NO_GROUNDING=true")
    visual, rows = model.text_visual(full, model.region_features(full))
    assert visual.shape == (6, 16)
    assert not visual[rows].any()
    _, model = thin_task()
    visual, rows = model.text_visual(full, model.region_features(full))
    assert rows.tolist() == [0] * 10 + [3] * 7
    assert visual.shape == (5, 16)


def test_a_text_that_is_too_long_names_its_record():
    _, model = thin_task("NETWORK.VLBERT.max_position_embeddings=11")
    with pytest.raises(DataError, match="record 1000: a text of 10 tokens; the model takes 9"):
        model(batch())
