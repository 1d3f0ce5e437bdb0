"""Selection of the task by the yaml file."""

from __future__ import annotations

import pytest

import vl_bert
from common.errors import ConfigError
from tests.world import ROOT

MODELS = {
    "vcr": vl_bert.VCRPredictor,
    "vqa": vl_bert.VQAPredictor,
    "refcoco": vl_bert.RefCOCOPredictor,
    "pretrain": vl_bert.PretrainedModel,
}


@pytest.mark.parametrize("path", sorted((ROOT / "cfgs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_model_class_of_repository_configs(path):
    assert vl_bert.model_class(vl_bert.read_config(path)) is MODELS[path.parent.name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: {}", "DATASET.DATASET: None: must be one of vcr, vqa, "),
        ("DATASET: {DATASET: imagenet}", "DATASET.DATASET: 'imagenet': must be one of vcr, vqa, "),
        ("DATASET: []", "DATASET.0.DATASET: None: must be one of vcr, vqa, "),
    ],
)
def test_read_config_without_known_dataset_raises(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        vl_bert.read_config(tmp_path / "x.yaml")


def test_read_config_override_selects_task(tmp_path):
    (tmp_path / "x.yaml").write_text("_BASE_: %s\nDATASET: {DATASET: null}" % (ROOT / "cfgs/vqa/toy.yaml"))
    config = vl_bert.read_config(tmp_path / "x.yaml", ["DATASET.DATASET=vqa"])
    assert vl_bert.model_class(config) is vl_bert.VQAPredictor
