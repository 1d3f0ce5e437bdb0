"""Losses, predictions, official accuracy, and what the answer head starts from."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from common.errors import CheckpointError, ConfigError
from tests.vqa.test_model import batch, thin_config, thin_task
from tests.world import ROOT
from vqa.model import VQAOutputs
from vqa.questions import Questions, Row
from vqa.task import VQATask
from vqa.val import accuracies

RULES = [
    "vlbert.mlm_head.predictions.transform->final_mlp.0",
    "module.vlbert.mlm_head.predictions.transform->module.final_mlp.0",
    "vlbert->vlbert",
    "module.vlbert->module.vlbert",
]


@pytest.fixture
def answers(tmp_path):
    """Options that name a vocabulary of seven answers."""
    path = tmp_path / "answers.txt"
    path.write_text("yes\n<unk>\nw001\nw002\nw001 w002\n\u0300\nw001\n")
    return (f"DATASET.ANSWER_VOCAB_FILE={path}",)


def test_the_loss_by_hand():
    full = batch()
    full.label[:] = torch.tensor([1.0, 0.3, 0, 0, 0, 0, 0])
    logits = torch.zeros(2, 7)
    logits[:, 0] = 2
    (loss,) = VQATask(thin_config()).losses(VQAOutputs(logits), full).values()
    # log(1 + exp(-2)) once and log 2 six times: the sum over the answers.
    assert loss.item() == pytest.approx(0.126928 + 6 * 0.693147, abs=1e-5)


def test_soft_accuracy():
    full = batch()
    full.label[:] = torch.tensor([[0, 0.3, 0, 0, 0, 0, 1], [0.6, 0, 0, 0, 0, 0, 0]])
    logits = torch.eye(7)[[1, 0]]
    total, count = VQATask(thin_config()).metrics(VQAOutputs(logits), full, "val")["SoftAcc"]
    assert (total.item(), count.item()) == (pytest.approx(0.9), 2)


def test_predictions_are_never_unk(answers):
    task = VQATask(thin_config(*answers))
    logits = torch.tensor([[0.0, 9, 1, 1, 0, 0, 0], [-5.0, 9, -6, -6, -6, -6, -6]])
    assert task.predictions(VQAOutputs(logits), batch()) == [
        {"question_id": 1000, "answer": "w001"},
        {"question_id": 1001, "answer": "yes"},
    ]


def test_a_vocabulary_of_nothing_else(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("<unk>")
    task = VQATask(thin_config(f"DATASET.ANSWER_VOCAB_FILE={path}", "DATASET.ANSWER_VOCAB_SIZE=1"))
    records = task.predictions(VQAOutputs(torch.zeros(2, 1)), batch())
    assert [record["answer"] for record in records] == ["<unk>"] * 2


def test_answers_that_stand_twice_are_listed_once(answers, caplog):
    task = VQATask(thin_config(*answers))
    assert task.vocabulary is task.vocabulary
    assert [record.getMessage() for record in caplog.records] == [
        "DATASET.ANSWER_VOCAB_FILE: 1 answers are duplicates, and only the first of each can be right: 'w001'"
    ]


def test_the_result_file(tmp_path):
    task = VQATask(thin_config("DATASET.TEST_IMAGE_SET=test-dev2015"))
    path = task.result_file(tmp_path, "net")
    assert path.name == "net_vqa2_test-dev2015.json"
    task.write_predictions([{"question_id": 3, "answer": "caf\u00e9"}], path)
    assert json.loads(path.read_text()) == [{"question_id": 3, "answer": "caf\u00e9"}]


def test_official_accuracy_by_answer_type():
    questions = Questions(
        [
            [
                Row(1, 1, "a", ["yes"] * 10, "yes/no"),
                Row(2, 1, "b", ["no"] * 9 + ["yes"], "yes/no"),
                Row(3, 1, "c", ["two"] * 10, "number"),
            ]
        ]
    )
    records = [
        {"question_id": number, "answer": answer} for number, answer in ((1, "yes"), (2, "yes"), (3, "2"))
    ]
    found = accuracies(records, questions)
    assert list(found) == ["overall", "yes/no", "number"]
    assert found == pytest.approx({"overall": 230 / 3, "yes/no": 65, "number": 100})
    assert list(accuracies(records[:1], Questions([[Row(1, 1, "a", ["yes"])]]))) == ["overall"]


# --- Initial values ----------------------------------------------------------------------------------------


def test_the_classifier_starts_from_words(answers):
    task, model = thin_task(*answers, "NETWORK.CLASSIFIER_PRETRAINED=true")
    before = model.final_mlp[2].weight.clone()
    task.load_pretrained(model)
    after, words = model.final_mlp[2].weight, model.vlbert.word_embeddings.weight
    one, two = (task.tokenizer.token_id(word) for word in ("w001", "w002"))
    torch.testing.assert_close(after[2], words[one])
    torch.testing.assert_close(after[4], (words[one] + words[two]) / 2)
    assert torch.equal(after[5], before[5]), "an answer without pieces keeps its row"
    assert not model.final_mlp[2].bias.any()


def test_words_for_one_layer(answers):
    options = (*answers, "NETWORK.CLASSIFIER_PRETRAINED=true", "NETWORK.CLASSIFIER_TYPE=1fc")
    task, model = thin_task(*options)
    task.load_pretrained(model)
    words = model.vlbert.word_embeddings.weight
    torch.testing.assert_close(model.final_mlp[1].weight[2], words[task.tokenizer.token_id("w001")])


def test_words_are_not_as_wide_as_two_layers():
    with pytest.raises(ConfigError, match=r"NETWORK.CLASSIFIER_PRETRAINED: .*2fc"):
        thin_config("NETWORK.CLASSIFIER_PRETRAINED=true", "NETWORK.CLASSIFIER_TYPE=2fc")


def pretraining(prefix: str = "") -> dict[str, torch.Tensor]:
    """A pre-training checkpoint for the thin model."""
    task, model = thin_task()
    torch.manual_seed(1)
    state = {}
    for ours, value in task.state_dict_names.to_official(model.state_dict()).items():
        name = ours.replace("final_mlp.0.", "vlbert.mlm_head.predictions.transform.")
        if not name.startswith("final_mlp"):
            state[prefix + name] = torch.randn_like(value)
    state[prefix + "object_mask_word_embedding.weight"] = torch.randn(1, 16)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_partial_pretrain_comes_before_the_words(tmp_path, answers, prefix):
    path = tmp_path / "pretrained.model"
    state = pretraining(prefix)
    torch.save({"state_dict": state}, path)
    task, model = thin_task(
        *answers,
        f"NETWORK.PARTIAL_PRETRAIN={path}",
        f"NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES=[{', '.join(RULES)}]",
        "NETWORK.CLASSIFIER_PRETRAINED=true",
    )
    report = task.load_pretrained(model)[-1]
    assert report.missing == ("final_mlp.2.weight", "final_mlp.2.bias")
    assert report.unused == ("object_mask_word_embedding.weight",)
    transform = state[prefix + "vlbert.mlm_head.predictions.transform.dense.weight"]
    assert torch.equal(model.final_mlp[0].dense.weight, transform)
    words = state[prefix + "vlbert.word_embeddings.weight"]
    torch.testing.assert_close(model.final_mlp[2].weight[2], words[task.tokenizer.token_id("w001")])


SPELLINGS = [
    ("embedding_LayerNorm", "LayerNorm"),
    ("LayerNorm.weight", "LayerNorm.gamma"),
    ("LayerNorm.bias", "LayerNorm.beta"),
]


def language_file(folder, keep: str = "") -> str:
    """A BERT file of the old spelling for the thin model; returns the option that names it."""
    _, model = thin_task()
    torch.manual_seed(2)
    state = {}
    for ours, value in model.vlbert.state_dict().items():
        if ours.startswith(("visual_", "end_")):
            continue
        name = ours if ours.startswith("encoder.") else f"embeddings.{ours}"
        for new, old in SPELLINGS:
            name = name.replace(new, old)
        state[f"bert.{name}"] = torch.randn_like(value)
    head = {"dense.weight": (16, 16), "dense.bias": (16,), "LayerNorm.gamma": (16,), "LayerNorm.beta": (16,)}
    for name, shape in head.items():
        if keep in name:
            state[f"cls.predictions.transform.{name}"] = torch.randn(shape)
    torch.save(state, folder / "bert-0000.model")
    return f"NETWORK.BERT_PRETRAINED={folder / 'bert'}"


def test_the_transform_comes_from_the_language_file(tmp_path):
    option = language_file(tmp_path)
    state = torch.load(tmp_path / "bert-0000.model")
    task, model = thin_task(option)
    task.load_pretrained(model)
    transform = model.final_mlp[0]
    assert torch.equal(transform.dense.weight, state["cls.predictions.transform.dense.weight"])
    assert torch.equal(transform.LayerNorm.bias, state["cls.predictions.transform.LayerNorm.beta"])
    task, model = thin_task(option, "NETWORK.CLASSIFIER_TYPE=1fc")
    task.load_pretrained(model)
    assert torch.equal(model.vlbert.word_embeddings.weight, state["bert.embeddings.word_embeddings.weight"])


def test_a_language_file_without_the_whole_transform(tmp_path, caplog):
    task, model = thin_task(language_file(tmp_path, keep="nothing"))
    with caplog.at_level(logging.WARNING):
        task.load_pretrained(model)
    assert "bert-0000.model: has no masked-word head; the answer head starts from random" in caplog.text
    task, model = thin_task(language_file(tmp_path, keep="dense"))
    with pytest.raises(CheckpointError, match=r"bert-0000.model: .*LayerNorm.weight, LayerNorm.bias"):
        task.load_pretrained(model)


@pytest.mark.parametrize(
    ("trained", "validated", "said"),
    [("train2014+val2014", "minival2014", "minival2014"), ("train2014", "val2014", "")],
)
def test_a_validation_split_that_is_trained_on_is_said(trained, validated, said, caplog):
    data = ROOT / "tests/golden/data/fixture/coco"
    changes = [
        f"DATASET.DATASET_PATH={data}",
        f"DATASET.ANSWER_VOCAB_FILE={data / 'vqa/answers_vqa.txt'}",
        "DATASET.ANSWER_VOCAB_SIZE=39",
        f"DATASET.TRAIN_IMAGE_SET={trained}",
        f"DATASET.VAL_IMAGE_SET={validated}",
    ]
    VQATask(thin_config(*changes)).build_dataset("val")
    expected = f"DATASET.VAL_IMAGE_SET: {validated}: the model trains on {said} too"
    assert (expected in caplog.text) == bool(said)
    caplog.clear()
    VQATask(thin_config(*changes)).build_dataset("train")
    assert "VAL_IMAGE_SET" not in caplog.text
