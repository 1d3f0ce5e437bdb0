"""Weight files in all their layouts, and what is wrong with them."""

from __future__ import annotations

import os
import pickle
import warnings

import pytest
import torch
from torch import nn

from common.errors import CheckpointError
from common.models.fast_rcnn import FastRCNN
from common.models.official_names import OfficialNames
from common.models.pretrained import (
    language_name,
    load_image_backbone,
    load_language_model,
    load_matching,
    load_state,
    read_weights,
    rename_prefixes,
    weights_of,
)
from common.models.visual_linguistic_bert import VisualLinguisticBert, VisualLinguisticBertForPretraining
from tests.common.models.test_visual_linguistic_bert import config

NAMES = OfficialNames()


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


def bert_file(prefix: str = "bert.", weight: str = "weight", bias: str = "bias", rows: int = 2) -> dict:
    model = VisualLinguisticBert(config(with_pooler=True))
    result = {}
    for ours, value in model.state_dict().items():
        name = ours.replace("embedding_LayerNorm", "LayerNorm")
        if not ours.startswith(
            ("encoder.", "pooler.", "embedding_LayerNorm", "word_", "position_", "token_type_")
        ):
            continue
        if not ours.startswith(("encoder.", "pooler.")):
            name = f"embeddings.{name}"
        if "LayerNorm" in name:
            name = name.replace("weight", weight).replace("bias", bias)
        result[prefix + name] = (
            torch.randn_like(value)[:rows] if "token_type" in name else torch.randn_like(value)
        )
    return result


@pytest.mark.parametrize("prefix", ["bert.", "roberta.", "module.bert.", ""])
@pytest.mark.parametrize(("weight", "bias"), [("weight", "bias"), ("gamma", "beta")])
def test_language_files_in_all_spellings(prefix, weight, bias):
    model, weights = VisualLinguisticBert(config()), bert_file(prefix, weight, bias)
    before = model.token_type_embeddings.weight[2].clone()
    report = load_language_model(model, weights, "f")
    assert torch.equal(model.word_embeddings.weight, weights[f"{prefix}embeddings.word_embeddings.weight"])
    assert torch.equal(model.embedding_LayerNorm.weight, weights[f"{prefix}embeddings.LayerNorm.{weight}"])
    assert torch.equal(model.token_type_embeddings.weight[2], before)
    assert {name.split(".")[-2] for name in report.unused} == {"dense"}  # the pooler, which this model lacks


def test_one_segment_row_serves_all_segments():
    model = VisualLinguisticBertForPretraining(config(), with_mlm_head=False)
    weights = bert_file("roberta.", rows=1)
    load_language_model(model, weights, "f")
    row = weights["roberta.embeddings.token_type_embeddings.weight"]
    assert torch.equal(model.token_type_embeddings.weight, row.expand(3, -1))


def test_the_word_head_needs_no_decoder():
    model = VisualLinguisticBertForPretraining(config())
    weights = bert_file()
    head = {k: torch.randn_like(v) for k, v in model.state_dict().items() if k.startswith("mlm_head.")}
    weights |= {k.replace("mlm_head.", "cls."): v for k, v in head.items()}
    load_language_model(model, weights, "f")
    assert torch.equal(model.mlm_head.predictions.bias, head["mlm_head.predictions.bias"])


def test_roberta_names_of_the_word_head():
    assert language_name("lm_head.layer_norm.weight") == "mlm_head.predictions.transform.LayerNorm.weight"
    assert language_name("lm_head.bias") == "mlm_head.predictions.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("bert.encoder.layer.0.output.dense.bias"),
            "lacks encoder.layer.0.output.dense.bias",
        ),
        (
            lambda w: w.update({"bert.embeddings.position_embeddings.weight": torch.zeros(9, 8)}),
            r"\(9, 8\) in the file",
        ),
        (
            lambda w: [w.pop(k) for k in list(w) if "pooler" not in k] and w.update(x=torch.zeros(1)),
            "lacks|none of its",
        ),
    ],
)
def test_a_language_file_that_does_not_fit(change, message):
    weights = bert_file()
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_language_model(VisualLinguisticBert(config(with_pooler=True)), weights, "f")


def test_special_words_start_from_the_file():
    model = VisualLinguisticBert(config(vocab_size=1000, word_embedding_frozen=True))
    weights = bert_file()
    weights["bert.embeddings.word_embeddings.weight"] = torch.randn(1000, 8)
    load_language_model(model, weights, "f")
    assert torch.equal(
        model.special_word_embeddings.weight, weights["bert.embeddings.word_embeddings.weight"]
    )


def resnet_file(model: FastRCNN, prefix: str = "") -> dict:
    names = {"backbone.": "", "roi_head_feature_extractor.": "layer4."}
    result = {"fc.weight": torch.zeros(1)}
    for name, value in model.state_dict().items():
        for ours, theirs in names.items():
            if name.startswith(ours) and "num_batches_tracked" not in name:
                result[prefix + theirs + name.removeprefix(ours)] = torch.randn_like(value)
    return result


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_image_files(prefix):
    model = FastRCNN(final_dim=4, depth=18, width=4)
    weights = resnet_file(model, prefix)
    report = load_image_backbone(model, weights, "f")
    assert torch.equal(model.backbone.conv1.weight, weights[f"{prefix}conv1.weight"])
    assert torch.equal(model.roi_head_feature_extractor[1].bn2.bias, weights[f"{prefix}layer4.1.bn2.bias"])
    assert report.unused == ("fc.weight",)


def test_an_image_file_needs_its_last_stage():
    model = FastRCNN(final_dim=4, depth=18, width=4)
    weights = resnet_file(model)
    del weights["layer4.0.conv1.weight"]
    with pytest.raises(CheckpointError, match="layer4 is incomplete"):
        load_image_backbone(model, weights, "f")


def test_an_image_file_of_another_width():
    with pytest.raises(CheckpointError, match="shapes differ"):
        load_image_backbone(
            FastRCNN(final_dim=4, depth=18, width=8),
            resnet_file(FastRCNN(final_dim=4, depth=18, width=4)),
            "f",
        )


@pytest.mark.parametrize("zipped", [True, False])
def test_both_file_formats(tmp_path, zipped):
    path = tmp_path / "x.model"
    torch.save({"state_dict": {"a": torch.ones(2)}}, path, _use_new_zipfile_serialization=zipped)
    assert weights_of(read_weights(path), "x")["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"not a checkpoint at all", "truncated"),
        (pickle.dumps(Evil()), "refused"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    path = tmp_path / "x.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message), warnings.catch_warnings():
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code(tmp_path, zipped):
    path = tmp_path / "x.model"
    torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"x\.model: refused"):
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_checkpoint(tmp_path, zipped, share):
    path = tmp_path / "x.model"
    torch.save({"state_dict": {"a": torch.randn(1000)}}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"x\.model: truncated"):
        read_weights(path)


def test_other_content(tmp_path):
    torch.save([1], tmp_path / "list.model")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_weights(tmp_path / "list.model")
    with pytest.raises(CheckpointError, match=r"KEY: .*no such file"):
        read_weights(tmp_path / "missing.model", "KEY")
    with pytest.raises(CheckpointError, match="holds no tensor"):
        weights_of({"epoch": 1}, "x")


def linear() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3))
    nn.init.zeros_(model[0].weight)
    return model


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_whole_checkpoints(prefix, dtype):
    model = linear()
    state = {
        f"{prefix}{name}": torch.ones_like(value, dtype=dtype) for name, value in model.state_dict().items()
    }
    load_state(model, state, NAMES, "f")
    assert model[0].weight.unique().tolist() == [1]
    assert model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.bias": None}, "1 names of the model are missing: 0.bias"),
        ({"1.bias": torch.zeros(1)}, "1 names of the file are unknown: 1.bias"),
        ({"0.weight": torch.zeros(3, 3)}, r"0.weight is \(3, 3\) in the file and \(3, 2\) here"),
    ],
)
def test_whole_checkpoints_that_do_not_fit(change, message):
    model = linear()
    state = {**{name: torch.ones_like(value) for name, value in model.state_dict().items()}, **change}
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        load_state(model, state, NAMES, "f")
    assert model[0].weight.unique().tolist() == [0], "nothing is loaded from a file that does not fit"


def test_partial_load_reports_all_three_sides():
    model = linear()
    report = load_matching(model, {"module.0.weight": torch.ones(3, 2), "x": torch.ones(1)}, NAMES, "f")
    assert (report.loaded, report.missing, report.unused) == (("0.weight",), ("0.bias",), ("x",))
    assert str(report).endswith("1 entries loaded, 1 of the model not in the file, 1 of the file not used")
    assert "unused: x\n" in report.details()
    with pytest.raises(CheckpointError, match="none of its 1 names"):
        load_matching(model, {"x": torch.ones(1)}, NAMES, "f")


def test_the_first_rule_that_matches_renames_once():
    rules = ["a.b->c", "a->d", "c->e"]
    renamed = rename_prefixes({"a.b.x": torch.ones(1), "a.y": torch.ones(1), "z": torch.ones(1)}, rules, "f")
    assert list(renamed) == ["c.x", "d.y", "z"]
    with pytest.raises(CheckpointError, match=r"no rule of NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES"):
        rename_prefixes({"z": torch.ones(1)}, rules, "f")
