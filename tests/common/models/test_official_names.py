"""The name map of checkpoints: bijective, and equal to the manifests in names, shapes, dtypes and order."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.config.schema import load_config
from common.models.official_names import OfficialNames
from pretrain.task import PretrainTask
from refcoco.task import RefCOCOTask
from vcr.task import VCRTask
from vqa.task import VQATask

ROOT = Path(__file__).parents[3]
NAMES = OfficialNames((("vlbert.", "vlbert._module."),))
TASKS = {task.name: task for task in (VCRTask, VQATask, RefCOCOTask, PretrainTask)}
MANIFESTS = sorted(path for name in TASKS for path in (ROOT / "tests/manifests").glob(f"{name}__*.json"))


def manifest(path: Path) -> dict:
    content = json.loads(path.read_text())
    if "same_as" not in content:
        return content
    name = content["same_as"] if content["same_as"].endswith(".json") else content["same_as"] + ".json"
    return manifest(path.parent / name)


def test_every_published_configuration_has_a_manifest():
    published = {
        f"{name}__{path.stem}"
        for name in TASKS
        for path in (ROOT / "cfgs" / name).glob("*.yaml")
        if "toy" not in path.name
    }
    assert {path.stem for path in MANIFESTS} == published


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_state_dict_equals_the_manifest(path):
    expected = manifest(path)
    task_class = TASKS[path.stem.partition("__")[0]]
    yaml = ROOT / "cfgs" / (path.stem.replace("__", "/") + ".yaml")
    task = task_class(load_config(task_class.config_class, yaml))
    task.tokenizer = SimpleNamespace(cls_id=101, sep_id=102)
    with torch.device("meta"):
        model = task.build_model()
    state = task.state_dict_names.to_official(model.state_dict())
    found = {
        name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()
    }
    assert list(found.items()) == list(expected["state_dict"].items())
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    assert {task.state_dict_names.official(name) for name in trainable} == set(expected["trainable"])
    assert sum(value.numel() for value in model.parameters()) == expected["num_params"]


def test_round_trip_is_the_identity():
    internal = {
        "image_feature_extractor.roi_head_feature_extractor.0.conv1.weight": 1,
        "image_feature_extractor.obj_downsample.1.bias": 2,
        "vlbert.word_embeddings.weight": 3,
        "vlbert.mlm_head.predictions.bias": 4,
        "final_mlp.1.weight": 5,
    }
    official = NAMES.to_official(internal)
    assert list(official) == [
        "image_feature_extractor.roi_head_feature_extractor.0.conv1.weight",
        "image_feature_extractor.head.0.0.conv1.weight",
        "image_feature_extractor.obj_downsample.1.bias",
        "vlbert._module.word_embeddings.weight",
        "vlbert._module.mlm_head.predictions.bias",
        "vlbert._module.mlm_head.predictions.decoder.weight",
        "final_mlp.1.weight",
    ]
    assert NAMES.from_official(official, internal) == internal


def test_of_two_aliases_the_later_wins():
    known = {"a.roi_head_feature_extractor.w"}
    state = {"a.roi_head_feature_extractor.w": 1, "a.head.0.w": 2}
    assert NAMES.from_official(state, known) == {"a.roi_head_feature_extractor.w": 2}


def test_wrappers_are_stripped_and_strangers_kept():
    assert NAMES.from_official({"module.module.x": 1, "module.y": 2}, {"x"}) == {"x": 1, "module.y": 2}


def test_the_relationship_of_head_0_needs_a_whole_component():
    assert NAMES.internal("mlm_head.0.weight") == "mlm_head.0.weight"
