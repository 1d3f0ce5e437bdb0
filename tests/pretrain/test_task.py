"""Losses, metrics and data of pre-training."""

from __future__ import annotations

import math

import pytest
import torch

from common.data.tokenizer import SPECIAL_TOKENS
from common.errors import CheckpointError, ConfigError
from common.training.task import build_dataloader
from pretrain.model import PretrainOutputs
from tests.pretrain.test_model import ALL_LOSSES, CLASSES, batch, mixed, picture, text, thin_task
from tests.world import ROOT

FIRST = "NETWORK.{}_LOSS_NORM_IN_BATCH_FIRST=true"
HALF = math.log(2)


def outputs(inputs, word_gaps, region_gaps=()):
    """Logits of two words or regions each; a gap of 0 costs log 2."""
    words, regions = torch.zeros(len(word_gaps), 600), torch.zeros(len(region_gaps), CLASSES)
    words[:, 2:] = regions[:, 2:] = -1e9
    words[:, 0], regions[:, 0] = torch.tensor(word_gaps), torch.tensor(region_gaps)
    inputs.word_labels[:] = 1
    inputs.region_labels[:] = 0
    inputs.region_labels[:, 1] = 1
    return PretrainOutputs(torch.tensor([[0.0, 0.0]] * inputs.num_images), words, regions)


def cost(gap):
    return math.log(1 + math.exp(gap))


def test_losses_are_means_over_labels():
    inputs = mixed()
    found = thin_task("multitask").losses(outputs(inputs, [0.0, 1, 2, 3, 4, 5], [1.0, 2, 3]), inputs)
    assert found["mlm_loss_wvc"].item() == pytest.approx((cost(0) + cost(1) + cost(2)) / 3)
    assert found["mlm_loss_aux"].item() == pytest.approx((cost(3) + cost(4) + cost(5)) / 3)
    assert found["mvrc_loss"].item() == pytest.approx((cost(1) + cost(2) + cost(3)) / 3, rel=1e-5)
    assert found["relationship_loss"].item() == pytest.approx(HALF)


def test_losses_of_each_sample_first():
    inputs = mixed()
    task = thin_task("multitask", FIRST.format("MLM"), FIRST.format("MVRC"))
    found = task.losses(outputs(inputs, [0.0, 1, 2, 3, 4, 5], [1.0, 2, 3]), inputs)
    assert found["mlm_loss_wvc"].item() == pytest.approx(((cost(0) + cost(1)) / 2 + cost(2)) / 2, rel=1e-3)
    assert found["mlm_loss_aux"].item() == pytest.approx(((cost(3) + cost(4)) / 2 + cost(5)) / 2, rel=1e-3)
    assert found["mvrc_loss"].item() == pytest.approx((cost(1) + (cost(2) + cost(3)) / 2) / 2, rel=1e-3)


def test_a_single_corpus_has_one_word_loss():
    inputs = batch(picture(1, 3, 6))
    found = thin_task("single").losses(outputs(inputs, [0.0, 1], [1.0]), inputs)
    assert found["mlm_loss"].item() == pytest.approx((cost(0) + cost(1)) / 2)
    assert "mlm_loss_aux" not in found


def test_heads_that_are_off_have_no_loss_and_no_metric():
    task, inputs = thin_task("single", "NETWORK.WITH_MLM_LOSS=false"), batch(picture(1, 3, 6))
    alone = PretrainOutputs(None, None, torch.zeros(1, CLASSES))
    assert list(task.losses(alone, inputs)) == ["mvrc_loss"]
    assert list(task.metrics(alone, inputs, "val")) == ["MVRCAccuracy"]


def test_metrics():
    inputs = mixed()
    logits = outputs(inputs, [-1.0, -1, 1, -1, 1, 1], [1.0, -1, -1])
    inputs.region_labels[2] = 0  # no label
    found = thin_task("multitask", *ALL_LOSSES).metrics(logits, inputs, "train")
    values = {name: (total.item(), count.item()) for name, (total, count) in found.items()}
    # Of equal logits the first wins: caption 1 belongs, caption 2 (label 0) does not.
    assert list(values.items()) == [
        ("RelAcc", (1, 2)),
        ("MLMAccWVC", (2, 3)),
        ("MLMAccAUX", (1, 3)),
        ("MVRCAccuracy", (1, 2)),
    ]


@pytest.mark.parametrize(
    ("name", "changes", "metric"),
    [
        ("multitask", (), "MLMAccWVC"),
        ("single", (), "MLMAcc"),
        ("single", ("NETWORK.WITH_MLM_LOSS=false",), "MVRCAccuracy"),
        ("single", ("NETWORK.WITH_MLM_LOSS=false", "NETWORK.WITH_MVRC_LOSS=false", *ALL_LOSSES), "RelAcc"),
    ],
)
def test_the_metric_that_decides(name, changes, metric):
    assert thin_task(name, *changes).best_metric == metric


def test_a_batch_of_texts_alone_can_be_evaluated():
    task, inputs = thin_task("multitask", *ALL_LOSSES), batch(text(1, 4), text(2, 3))
    model = task.build_model().eval()
    with torch.no_grad():
        found = model(inputs)
    losses = task.losses(found, inputs)
    assert losses["mlm_loss_aux"] > 0
    assert losses["mlm_loss_wvc"] == losses["mvrc_loss"] == losses["relationship_loss"] == 0
    total, count = task.metrics(found, inputs, "val")["MLMAccWVC"]
    assert (total, count) == (0, 0)


@pytest.mark.parametrize("name", ["multitask", "attention"])
def test_from_scratch_reads_no_language_file(name, caplog):
    caplog.set_level("INFO")
    options = (
        "NETWORK.BERT_PRETRAINED=/nowhere/bert",
        "NETWORK.PARTIAL_PRETRAIN=",
        "NETWORK.IMAGE_PRETRAINED=",
    )
    model = thin_task(name, *options).build_model()
    with pytest.raises(CheckpointError, match=r"NETWORK.BERT_PRETRAINED: /nowhere/bert-0000\.model: no such"):
        thin_task(name, *options).load_pretrained(model)
    assert thin_task(name, *options, "NETWORK.VLBERT.from_scratch=true").load_pretrained(model) == []
    assert "NETWORK.VLBERT.from_scratch: true; the language model starts from random values" in caplog.text


@pytest.mark.parametrize("kept", [True, False])
def test_special_words_start_from_the_checkpoint_that_fills_the_model(tmp_path, kept):
    frozen = ("NETWORK.VLBERT.word_embedding_frozen=true", "NETWORK.VLBERT.vocab_size=1000")
    path = tmp_path / "x.model"
    task = thin_task("multitask", *frozen, f"NETWORK.PARTIAL_PRETRAIN={path}")
    table, special = "vlbert.word_embeddings.weight", "vlbert.special_word_embeddings.weight"
    weights = {table: torch.ones(1000, 16)} | ({special: torch.zeros(1000, 16)} if kept else {})
    torch.save({"state_dict": weights}, path)
    model = task.build_model()
    task.load_pretrained(model)
    assert model.state_dict()[special].unique().tolist() == [0.0 if kept else 1.0]


def test_a_vocabulary_beyond_the_word_table(tmp_path):
    # A word that stands twice has the id of its last line: 6 words, ids up to 6.
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "dog", "dog"]))
    options = [f"NETWORK.BERT_MODEL_NAME={tmp_path}", "NETWORK.VLBERT.vocab_size="]
    assert thin_task("multitask", options[0], f"{options[1]}7").tokenizer.vocab["dog"] == 6
    with pytest.raises(ConfigError, match=r"NETWORK\.VLBERT\.vocab_size: 6, but the vocabulary .* 7 words"):
        _ = thin_task("multitask", options[0], f"{options[1]}6").tokenizer


def test_there_is_no_test_split(tmp_path):
    task = thin_task("multitask", f"NETWORK.BERT_MODEL_NAME={ROOT}/tests/golden/model/tiny_bert")
    assert not task.test_tasks()
    with pytest.raises(ConfigError, match="no test split"):
        build_dataloader(task, "test")
