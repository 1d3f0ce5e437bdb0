"""What fine-tuning takes from a pre-training checkpoint."""

from __future__ import annotations

import json

import pytest
import torch

from common.config.schema import load_config
from common.models.pretrained import load_matching
from pretrain.task import PretrainTask
from refcoco.task import RefCOCOTask
from tests.world import ROOT
from vcr.task import VCRTask
from vqa.task import VQATask

TASKS = {task.name: task for task in (VCRTask, VQATask, RefCOCOTask, PretrainTask)}
NOT_IN_FILE = {
    "vcr": ("cnn_loss_reg.2.", "vlbert._module.pooler.dense.", "final_mlp.1."),
    "refcoco": ("final_mlp.2.",),
    "vqa": ("final_mlp.2.",),
    "pretrain": (),
}
NOT_USED = {
    "vcr": ("object_mask_word_embedding", "aux_text_visual_embedding", "mlm_head", "mvrc_head.region_cls_pred"),
    "refcoco": ("object_mask_word_embedding", "aux_text_visual_embedding", "mlm_head", "mvrc_head.region_cls_pred"),
    "vqa": ("object_mask_", "aux_text_visual_embedding", "mlm_head.predictions.bias", "mvrc_head"),
    "pretrain": ("object_mask_word_embedding", "mlm_head", "mvrc_head"),
}  # fmt: skip


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize(
    ("name", "source", "matched"),
    [
        ("vcr/base_q2a_4x16G_fp32", "base_e2e_16x16G_fp16", 891),
        ("vcr/large_q2a_4x16G_fp16", "large_e2e_16x16G_fp16", 1083),
        ("refcoco/base_gt_boxes_4x16G", "base_e2e_16x16G_fp16", 891),
        ("refcoco/large_detected_regions_4x16G", "large_e2e_16x16G_fp16", 1083),
        ("vqa/base_4x16G_fp32", "base_prec_4x16G_fp32", 209),
        ("vqa/large_4x16G_fp32", "large_prec_4x16G_fp16", 401),
        ("pretrain/vis_attention_maps_coco", "base_e2e_16x16G_fp16", 890),
    ],
)
def test_counts(name, source, matched, wrapper):
    folder = name.split("/")[0]
    task = TASKS[folder](load_config(TASKS[folder].config_class, ROOT / f"cfgs/{name}.yaml"))
    if folder == "vcr":
        task.tokenizer = type("Ids", (), {"cls_id": 101, "sep_id": 102})
    manifest = json.loads((ROOT / f"tests/manifests/pretrain__{source}.json").read_text())
    with torch.device("meta"):
        model = task.build_model()
        weights = {
            wrapper + entry: torch.empty(shape, dtype=getattr(torch, dtype))
            for entry, (shape, dtype) in manifest["state_dict"].items()
        }
    report = load_matching(model, task.adapt_pretrained(weights, "file"), task.state_dict_names, "file")
    internal = {task.state_dict_names.internal(entry): None for entry in report.loaded}
    assert len(task.state_dict_names.to_official(internal)) == matched
    assert all(entry.startswith(NOT_IN_FILE[folder]) for entry in report.missing)
    assert bool(report.missing) == bool(NOT_IN_FILE[folder])
    assert all(any(part in entry for part in NOT_USED[folder]) for entry in report.unused)
    assert len({part for part in NOT_USED[folder] for entry in report.unused if part in entry}) == len(
        NOT_USED[folder]
    )
