"""Which task a yaml file belongs to."""

from __future__ import annotations

import pytest

import vl_bert
from common.errors import ConfigError
from tests.world import ROOT

OF_FOLDER = {
    "vcr": vl_bert.VCRPredictor,
    "vqa": vl_bert.VQAPredictor,
    "refcoco": vl_bert.RefCOCOPredictor,
    "pretrain": vl_bert.PretrainedModel,
}


@pytest.mark.parametrize("path", sorted((ROOT / "cfgs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_this_repository(path):
    assert vl_bert.model_class(path) is OF_FOLDER[path.parent.name]
    assert vl_bert.read_config(path).TRAIN is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: {}", "DATASET.DATASET: None: must be one of vcr, vqa, "),
        ("DATASET: {DATASET: imagenet}", "DATASET.DATASET: 'imagenet': must be one of vcr, vqa, "),
        ("DATASET: []", "DATASET.0.DATASET: None: must be one of vcr, vqa, "),
    ],
)
def test_a_file_that_does_not_tell(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        vl_bert.model_class(tmp_path / "x.yaml")


def test_a_setting_tells(tmp_path):
    (tmp_path / "x.yaml").write_text("TRAIN: {}")
    assert vl_bert.model_class(tmp_path / "x.yaml", ["DATASET.DATASET=vqa"]) is vl_bert.VQAPredictor
