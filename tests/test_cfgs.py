"""The shipped yaml files hold the published values and load."""

import logging
from pathlib import Path

import pytest

from common.config.schema import dump_config, load_config
from pretrain.config import PretrainConfig
from refcoco.config import RefCOCOConfig
from vcr.config import VCRConfig
from vqa.config import VQAConfig

CFGS = Path(__file__).parents[1] / "cfgs"
SCHEMAS = {"vcr": VCRConfig, "vqa": VQAConfig, "refcoco": RefCOCOConfig, "pretrain": PretrainConfig}
FILES = sorted(CFGS.rglob("*.yaml"))


def load(name):
    return load_config(SCHEMAS[name.split("/")[0]], CFGS / f"{name}.yaml")


def values(name, *keys):
    config = load(name)
    return [config.value(key) for key in keys]


def test_there_are_the_18_published_files():
    published = [path for path in FILES if not path.name.startswith("toy")]
    folders = [path.parent.relative_to(CFGS).as_posix() for path in published]
    assert {task: folders.count(task) for task in SCHEMAS} == {
        "vcr": 6,
        "vqa": 2,
        "refcoco": 4,
        "pretrain": 6,
    }
    assert len(published) == 18


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CFGS).as_posix())
def test_it_loads_without_a_warning_and_survives_being_written(path, tmp_path, caplog):
    schema = SCHEMAS[path.parent.name]
    with caplog.at_level(logging.WARNING):
        config = load_config(schema, path)
    assert caplog.messages == []
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_config(config))
    assert load_config(schema, copy) == config


OPTIMIZATION = (
    "TRAIN.LR", "TRAIN.OPTIMIZER", "TRAIN.LR_SCHEDULE", "TRAIN.END_EPOCH", "TRAIN.WARMUP_STEPS", "TRAIN.CLIP_GRAD_NORM",
    "TRAIN.BATCH_IMAGES", "TRAIN.GRAD_ACCUMULATE_STEPS", "TRAIN.FP16",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vcr/base_q2a_4x16G_fp32", [7e-5, "SGD", "step", 20, 1000, 10, 4, 4, False]),
        ("vcr/base_qa2r_4x16G_fp32", [7e-5, "SGD", "step", 20, 1000, 10, 4, 4, False]),
        ("vcr/large_q2a_4x16G_fp16", [7e-5, "SGD", "step", 20, 1000, 10, 4, 4, True]),
        ("vcr/large_qa2r_4x16G_fp16", [7e-5, "SGD", "step", 20, 1000, 10, 4, 4, True]),
        ("vcr/large_q2a_16x16G_fp16", [7e-5, "SGD", "step", 20, 1000, 10, 4, 1, True]),
        ("vcr/large_qa2r_16x16G_fp16", [7e-5, "SGD", "step", 20, 1000, 10, 4, 1, True]),
        ("vqa/base_4x16G_fp32", [6.25e-7, "AdamW", "triangle", 5, 500, 1, 64, 1, False]),
        ("vqa/large_4x16G_fp32", [6.25e-7, "AdamW", "triangle", 5, 500, 1, 16, 4, False]),
        ("refcoco/base_detected_regions_4x16G", [8e-7, "AdamW", "triangle", 20, 3750, 1, 4, 2, False]),
        ("refcoco/base_gt_boxes_4x16G", [8e-7, "AdamW", "triangle", 20, 3750, 1, 4, 2, False]),
        ("refcoco/large_detected_regions_4x16G", [8e-7, "AdamW", "triangle", 20, 3750, 1, 2, 4, False]),
        ("refcoco/large_gt_boxes_4x16G", [8e-7, "AdamW", "triangle", 20, 3750, 1, 2, 4, False]),
        ("pretrain/base_prec_4x16G_fp32", [1e-7, "AdamW", "triangle", 10, 16000, 10, (32, 32), 1, False]),
        (
            "pretrain/base_prec_withouttextonly_4x16G_fp32",
            [1e-7, "AdamW", "triangle", 10, 8000, 10, 64, 1, False],
        ),
        ("pretrain/base_e2e_16x16G_fp16", [1e-7, "AdamW", "triangle", 10, 16000, 10, (8, 8), 1, True]),
        ("pretrain/large_prec_4x16G_fp16", [1e-7, "AdamW", "triangle", 10, 16000, 10, (32, 32), 1, True]),
        ("pretrain/large_e2e_16x16G_fp16", [1e-7, "AdamW", "triangle", 10, 16000, 10, (4, 4), 2, True]),
        ("pretrain/vis_attention_maps_coco", [0.1, "SGD", "step", 0, 1000, -1, 1, 1, False]),
    ],
)
def test_optimization_is_as_published(name, expected):
    assert values(name, *OPTIMIZATION) == expected


@pytest.mark.parametrize(
    "path", [p for p in FILES if not p.name.startswith("toy")], ids=lambda path: path.stem
)
def test_all_share_the_network_of_their_size(path):
    network = load(path.relative_to(CFGS).with_suffix("").as_posix()).NETWORK
    bert = network.VLBERT
    size = (bert.num_hidden_layers, bert.hidden_size, bert.num_attention_heads, bert.intermediate_size)
    assert size == ((24, 1024, 16, 4096) if path.name.startswith("large") else (12, 768, 12, 3072))
    assert network.IMAGE_FINAL_DIM == bert.visual_size == bert.hidden_size
    assert (network.IMAGE_NUM_LAYERS, network.IMAGE_C5_DILATED, network.IMAGE_STRIDE_IN_1x1) == (
        101,
        True,
        True,
    )
    assert network.PIXEL_MEANS == (102.9801, 115.9465, 122.7717)
    assert (bert.visual_ln, bert.visual_scale_text_init, bert.object_word_embed_mode) == (True, 0.0, 2)
    assert (network.IMAGE_WIDTH, network.IMAGE_FROZEN_BN, network.IMAGE_SEMANTIC) == (64, True, False)


def test_what_is_special_about_each_task():
    vcr = values("vcr/large_qa2r_16x16G_fp16", "DATASET.TASK", "MODEL_PREFIX", "SCALES", "TRAIN.LR_STEP",
                 "NETWORK.CLASSIFIER_TYPE", "NETWORK.CNN_LOSS_TOP", "NETWORK.PARTIAL_PRETRAIN_SEGMB_INIT")  # fmt: skip
    assert vcr == ["QA2R", "vl-bert_large_r_res101", (600, 1200), (14.0, 18.0), "1fc", True, True]
    vqa = values("vqa/base_4x16G_fp32", "DATASET.BOXES", "DATASET.TRAIN_IMAGE_SET", "NETWORK.CLASSIFIER_TYPE",
                 "NETWORK.CLASSIFIER_PRETRAINED", "NETWORK.IMAGE_FEAT_PRECOMPUTED", "SCALES")  # fmt: skip
    assert vqa == ["10-100ada", "train2014+val2014", "mlm", True, True, (600, 1000)]
    for kind, boxes in (
        ("detected_regions", ["proposal+gt", "proposal", "proposal"]),
        ("gt_boxes", ["gt"] * 3),
    ):
        keys = ("DATASET.TRAIN_BOXES", "DATASET.VAL_BOXES", "DATASET.TEST_BOXES")
        assert values(f"refcoco/base_{kind}_4x16G", *keys) == boxes
    assert values("refcoco/large_gt_boxes_4x16G", "TRAIN.ASPECT_GROUPING", "DATASET.SPLIT_BY") == [
        True,
        "unc",
    ]
    pretrain = values(
        "pretrain/base_e2e_16x16G_fp16", "OUTPUT_PATH", "DATASET.1.MIN_SEQ_LEN", "TRAIN.LOSS_LOGGERS"
    )
    assert pretrain[:2] == ["./output/pretrain/vl-bert", 64]
    assert pretrain[2] == (
        ("mlm_loss_wvc", "MLMLossWVC"), ("mlm_loss_aux", "MLMLossAUX"), ("mvrc_loss", "MVRCLoss")
    )  # fmt: skip
    assert values("pretrain/vis_attention_maps_coco", "GPUS", "MODULE", "NUM_WORKERS_PER_GPU") == [
        "0",
        "ResNetVLBERTForAttentionVis",
        2,
    ]
