"""Losses, predictions and the start from a pre-training checkpoint."""

from __future__ import annotations

import pytest
import torch

from common.errors import CheckpointError
from tests.vcr.test_model import batch, thin_config, thin_task
from vcr.model import VCROutputs
from vcr.task import VCRTask

RULES = [
    "vlbert.mvrc_head.transform->cnn_loss_reg.0",
    "module.vlbert.mvrc_head.transform->module.cnn_loss_reg.0",
    "module.vlbert->module.vlbert._module",
    "vlbert->vlbert._module",
]
PRETRAINED = [
    f"NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES=[{', '.join(RULES)}]",
    "NETWORK.PARTIAL_PRETRAIN_SEGMB_INIT=true",
]


def outputs(**changes) -> VCROutputs:
    return VCROutputs(**{"logits": torch.tensor([[1.0, -1.0, 0.0, 2.0]]), **changes})


def one(label: int = 3, conditions: int = 1):
    return batch(boxes=(2,), text=((3,) * (4 * conditions),)).__class__(
        **{**vars(batch(boxes=(2,), text=((3,) * (4 * conditions),))), "label": torch.tensor([label])}
    )


def test_losses_by_hand():
    softmax = VCRTask(thin_config()).losses(outputs(), one())
    assert softmax["ans_loss"].item() == pytest.approx(0.440190, abs=1e-6)
    task = VCRTask(
        thin_config("NETWORK.CLASSIFIER_SIGMOID=true", "NETWORK.CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT=3")
    )
    assert task.losses(outputs(), one())["ans_loss"].item() == pytest.approx(0.450076, abs=1e-6)
    regions = outputs(region_logits=torch.zeros(2, 81), region_classes=torch.tensor([0, 80]))
    assert task.losses(regions, one())["cnn_regularization_loss"].item() == pytest.approx(4.394449, abs=1e-6)


def test_loss_weights():
    task = VCRTask(thin_config("NETWORK.ANS_LOSS_WEIGHT=2", "NETWORK.CNN_LOSS_WEIGHT=0.5"))
    assert task.loss_weights == {"ans_loss": 2, "cnn_regularization_loss": 0.5}


def test_accuracy():
    total, count = VCRTask(thin_config()).metrics(outputs(), one(), "val")["Acc"]
    assert (total.item(), count.item()) == (1, 1)


def test_predictions_are_shares_of_each_group_of_four():
    task = VCRTask(thin_config())
    (record,) = task.predictions(outputs(logits=torch.arange(16.0).view(1, 16)), one(conditions=4))
    expected = [0.032059, 0.087144, 0.236883, 0.643914] * 4
    assert record["probabilities"] == pytest.approx(expected, abs=1e-6)
    assert record["logits"] == list(range(16))
    assert (record["annot_id"], record["label"]) == ("val-0", 3)


@pytest.fixture
def pretrained():
    """A pre-training checkpoint for the thin model, and that model."""
    _, model = thin_task()
    names = VCRTask.state_dict_names
    state = {}
    for official, value in names.to_official(model.state_dict()).items():
        name = official.replace("vlbert._module.", "vlbert.")
        name = name.replace("cnn_loss_reg.0.", "vlbert.mvrc_head.transform.")
        if not name.startswith(("final_mlp", "cnn_loss_reg")):
            state[name] = torch.randn_like(value) if value.is_floating_point() else value
    for part, shape in (("weight", (2, 16)), ("bias", (2,))):
        state[f"vlbert.relationsip_head.caption_image_relationship.{part}"] = torch.randn(shape)
    state["object_mask_word_embedding.weight"] = torch.randn(1, 16)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_partial_pretrain(tmp_path, pretrained, prefix, dtype):
    path = tmp_path / "pretrained.model"
    state = {prefix + k: v.to(dtype) if v.is_floating_point() else v for k, v in pretrained.items()}
    torch.save({"state_dict": state}, path)
    task, model = thin_task(*PRETRAINED, f"NETWORK.PARTIAL_PRETRAIN={path}")
    report = task.load_pretrained(model)[-1]

    def given(name: str) -> torch.Tensor:
        return state[prefix + name].float()

    assert torch.equal(model.cnn_loss_reg[0].dense.weight, given("vlbert.mvrc_head.transform.dense.weight"))
    segments = model.vlbert.token_type_embeddings.weight
    assert torch.equal(segments[1], segments[0])
    assert torch.equal(segments[2], given("vlbert.token_type_embeddings.weight")[2])
    head = given("vlbert.relationsip_head.caption_image_relationship.weight")
    assert torch.equal(model.final_mlp[1].weight, head[1:] - head[:1])
    assert "object_mask_word_embedding.weight" in report.unused
    assert report.missing == ("cnn_loss_reg.2.weight", "cnn_loss_reg.2.bias")


def test_the_relationship_head_is_optional_and_for_one_layer_only(tmp_path, pretrained):
    path = tmp_path / "pretrained.model"
    torch.save({"state_dict": pretrained}, path)
    for option in ("NETWORK.LOAD_REL_HEAD=false", "NETWORK.CLASSIFIER_TYPE=2fc"):
        task, model = thin_task(*PRETRAINED, option, f"NETWORK.PARTIAL_PRETRAIN={path}")
        before = model.final_mlp[1].weight.clone()
        task.load_pretrained(model)
        assert torch.equal(model.final_mlp[1].weight, before)


def test_a_checkpoint_that_no_rule_is_for(tmp_path):
    path = tmp_path / "other.model"
    torch.save({"state_dict": {"encoder.weight": torch.ones(1)}}, path)
    task, model = thin_task(*PRETRAINED, f"NETWORK.PARTIAL_PRETRAIN={path}")
    with pytest.raises(CheckpointError, match=r"no rule of NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES matches"):
        task.load_pretrained(model)
