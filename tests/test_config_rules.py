"""Combinations of settings that cannot work are refused, those that can are not."""

import logging
from pathlib import Path

import pytest
import yaml

from common.config.schema import dump_config, load_config
from common.errors import ConfigError
from pretrain.config import PretrainConfig
from refcoco.config import RefCOCOConfig
from vcr.config import VCRConfig
from vqa.config import VQAConfig

CFGS = Path(__file__).parents[1] / "cfgs"
FILES = {
    "vcr": (VCRConfig, "vcr/base_q2a_4x16G_fp32.yaml"),
    "vqa": (VQAConfig, "vqa/base_4x16G_fp32.yaml"),
    "refcoco": (RefCOCOConfig, "refcoco/base_gt_boxes_4x16G.yaml"),
    "multitask": (PretrainConfig, "pretrain/base_e2e_16x16G_fp16.yaml"),
    "pretrain": (PretrainConfig, "pretrain/base_prec_withouttextonly_4x16G_fp32.yaml"),
    "attention": (PretrainConfig, "pretrain/vis_attention_maps_coco.yaml"),
}


def load(name, overrides):
    schema, file = FILES[name]
    return load_config(schema, CFGS / file, overrides.split())


@pytest.mark.parametrize(
    ("name", "overrides", "key"),
    [
        ("vcr", "MODULE=", "MODULE"),
        ("vcr", "SCALES=[]", "SCALES"),
        ("vcr", "SCALES=[600,500]", "SCALES"),
        ("vcr", "TRAIN.BATCH_IMAGES=[4]", "TRAIN.BATCH_IMAGES"),
        ("vcr", "NETWORK.PIXEL_STDS=[]", "NETWORK.PIXEL_STDS"),
        ("vcr", "NETWORK.PIXEL_MEANS=[]", "NETWORK.PIXEL_MEANS"),
        ("vcr", "NETWORK.IMAGE_FINAL_DIM=512", "NETWORK.IMAGE_FINAL_DIM"),
        ("vcr", "NETWORK.BERT_MODEL_NAME=./model/roberta-base", "NETWORK.BERT_MODEL_NAME"),
        ("vcr", "NETWORK.VLBERT.num_attention_heads=7", "NETWORK.VLBERT.hidden_size"),
        (
            "vcr",
            "NETWORK.VLBERT.word_embedding_frozen=true NETWORK.VLBERT.vocab_size=999",
            "NETWORK.VLBERT.vocab_size",
        ),
        ("vcr", "TRAIN.BEGIN_EPOCH=20", "TRAIN.END_EPOCH"),
        ("vcr", "TRAIN.RESUME=true", "TRAIN.BEGIN_EPOCH"),
        ("vcr", "TRAIN.LR_STEP=18,14", "TRAIN.LR_STEP"),
        ("vcr", "TRAIN.LR_STEP=14,14", "TRAIN.LR_STEP"),
        ("vcr", "DATASET.DATASET=", "DATASET.DATASET"),
        ("vcr", "DATASET.TASK=Q2AR", "DATASET.TASK"),
        ("vcr", "DATASET.MASK_SIZE=7", "DATASET.MASK_SIZE"),
        ("vcr", "NETWORK.IMAGE_C5_DILATED=false", "DATASET.MASK_SIZE"),
        ("vcr", "NETWORK.VLBERT.with_pooler=false", "NETWORK.VLBERT.with_pooler"),
        ("vcr", "NETWORK.IMAGE_FEAT_PRECOMPUTED=true", "NETWORK.IMAGE_FEAT_PRECOMPUTED"),
        ("vcr", "NETWORK.ANSWER_FIRST=true NETWORK.QA_ONE_SENT=true", "NETWORK.QA_ONE_SENT"),
        ("vcr", "NETWORK.CLASSIFIER_TYPE=mlm", "NETWORK.CLASSIFIER_TYPE"),
        ("vcr", "TRAIN.ASPECT_GROUPING=true", "TRAIN.ASPECT_GROUPING"),
        ("vqa", "NETWORK.IMAGE_SEMANTIC=true", "NETWORK.IMAGE_SEMANTIC"),
        (
            "vqa",
            "NETWORK.ENABLE_CNN_REG_LOSS=true NETWORK.IMAGE_FEAT_PRECOMPUTED=false",
            "NETWORK.ENABLE_CNN_REG_LOSS",
        ),
        ("vqa", "NETWORK.VLBERT.object_word_embed_mode=3", "NETWORK.VLBERT.object_word_embed_mode"),
        ("vqa", "NETWORK.CLASSIFIER_TYPE=2fc", "NETWORK.CLASSIFIER_PRETRAINED"),
        ("vqa", "NETWORK.ANS_LOSS_TYPE=ce", "NETWORK.ANS_LOSS_TYPE"),
        ("vqa", "DATASET.BOXES=37", "DATASET.BOXES"),
        ("refcoco", "NETWORK.IMAGE_FEAT_PRECOMPUTED=true", "NETWORK.IMAGE_FEAT_PRECOMPUTED"),
        ("refcoco", "NETWORK.IMAGE_SEMANTIC=true", "NETWORK.IMAGE_SEMANTIC"),
        ("refcoco", "DATASET.SPLIT_BY=umd", "DATASET.SPLIT_BY"),
        ("refcoco", "DATASET.PACKED_REGIONS=a.packed", "DATASET.PACKED_REGIONS"),
        ("refcoco", "DATASET.DATASET=refcocog DATASET.SPLIT_BY=unc", "DATASET.SPLIT_BY"),
        ("pretrain", "NETWORK.WITH_REL_LOSS=true", "NETWORK.VLBERT.with_pooler"),
        ("pretrain", "NETWORK.WITH_MLM_LOSS=false NETWORK.WITH_MVRC_LOSS=false", "NETWORK.WITH_MLM_LOSS"),
        ("pretrain", "NETWORK.IMAGE_SEMANTIC=true", "NETWORK.IMAGE_SEMANTIC"),
        ("pretrain", "TRAIN.ASPECT_GROUPING=true", "TRAIN.ASPECT_GROUPING"),
        ("pretrain", "MODULE=ResNetVLBERTForPretrainingMultitask", "DATASET"),
        ("pretrain", "DATASET.DATASET=general_corpus", "DATASET.DATASET"),
        (
            "pretrain",
            "DATASET.DATASET=coco_captions NETWORK.WITH_MVRC_LOSS=false TRAIN.LOSS_LOGGERS=[]",
            "NETWORK.IMAGE_FEAT_PRECOMPUTED",
        ),
        ("attention", "NETWORK.WITH_MVRC_LOSS=true", "NETWORK.VLBERT.visual_region_classes"),
        ("multitask", "MODULE=ResNetVLBERTForPretraining", "DATASET"),
        ("multitask", "DATASET.1.DATASET=conceptual_captions", "DATASET.1.DATASET"),
        ("multitask", "DATASET.1.DATASET=", "DATASET.1.DATASET"),
        ("multitask", "DATASET.0.DATASET=general_corpus", "DATASET.0.DATASET"),
        ("multitask", "DATASET.1.SEQ_LEN=511", "DATASET.1.SEQ_LEN"),
        (
            "multitask",
            "DATASET.1.SEQ_LEN=509 NETWORK.VLBERT.position_padding_idx=1",
            "DATASET.1.SEQ_LEN",
        ),
        ("multitask", "VAL.BATCH_IMAGES=8", "VAL.BATCH_IMAGES"),
        ("multitask", "TEST.BATCH_IMAGES=[8,8,8]", "TEST.BATCH_IMAGES"),
        (
            "multitask",
            "NETWORK.VLBERT.visual_size=96 NETWORK.IMAGE_FINAL_DIM=96",
            "NETWORK.VLBERT.visual_size",
        ),
        ("attention", "NETWORK.WITH_REL_LOSS=true", "NETWORK.WITH_REL_LOSS"),
        ("attention", "DATASET.PACKED_REGIONS=a.packed", "DATASET.PACKED_REGIONS"),
        ("attention", "TRAIN.END_EPOCH=1", "TRAIN.END_EPOCH"),
    ],
)
def test_it_is_refused_once_under_its_key(name, overrides, key):
    with pytest.raises(ConfigError, match=rf": {key}: .*must") as caught:
        load(name, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vcr", "NETWORK.IMAGE_C5_DILATED=false DATASET.MASK_SIZE=7"),
        ("vcr", "NETWORK.IMAGE_NUM_LAYERS=18 NETWORK.IMAGE_WIDTH=16"),
        ("vcr", "NETWORK.CLASSIFIER_TYPE=2fc NETWORK.CLASSIFIER_SIGMOID=false"),
        ("vcr", "NETWORK.BERT_MODEL_NAME=/home/roberta/bert-base-uncased"),
        ("vcr", "TRAIN.BEGIN_EPOCH=3 TRAIN.RESUME=true"),
        ("vqa", "NETWORK.CLASSIFIER_TYPE=2fc NETWORK.CLASSIFIER_PRETRAINED=false"),
        ("vqa", "NETWORK.IMAGE_FEAT_PRECOMPUTED=false NETWORK.ENABLE_CNN_REG_LOSS=false"),
        ("vqa", "DATASET.BOXES=36 DATASET.ANSWER_NORMALISE=both DATASET.ON_BAD_DATA=skip"),
        ("refcoco", "DATASET.DATASET=refcoco DATASET.SPLIT_BY=google"),
        ("refcoco", "DATASET.PROPOSAL_SOURCE=vg DATASET.PACKED_REGIONS=a.packed"),
        ("pretrain", "NETWORK.WITH_REL_LOSS=true NETWORK.VLBERT.with_pooler=true"),
        (
            "multitask",
            "NETWORK.WITH_MLM_LOSS=false TRAIN.LOSS_LOGGERS=[[mvrc_loss,MVRCLoss]] TRAIN.LR_MULT=[]",
        ),
        ("multitask", "DATASET.1.SEQ_LEN=510"),
        ("multitask", "DATASET.1.SEQ_LEN=508 NETWORK.VLBERT.position_padding_idx=1"),
        ("attention", "NETWORK.WITH_MVRC_LOSS=true NETWORK.VLBERT.visual_region_classes=81"),
    ],
)
def test_it_is_accepted_in_silence(name, overrides, caplog):
    with caplog.at_level(logging.WARNING):
        load(name, overrides)
    assert caplog.messages == []


def test_sections_are_counted_not_printed():
    with pytest.raises(ConfigError, match=r"DATASET: a list of 2 sections: must be one dataset with"):
        load("multitask", "MODULE=ResNetVLBERTForPretraining")
    with pytest.raises(ConfigError, match=r"DATASET: one section: must be a list of datasets with"):
        load("pretrain", "MODULE=ResNetVLBERTForPretrainingMultitask")


def test_a_logger_without_its_loss_is_noted(caplog):
    with caplog.at_level(logging.WARNING):
        load("multitask", "NETWORK.WITH_MLM_LOSS=false")
    (message,) = caplog.messages
    assert "TRAIN.LOSS_LOGGERS" in message
    assert "has no mlm_loss_wvc, mlm_loss_aux and will show 0 for it; it has mvrc_loss" in message


@pytest.mark.parametrize(
    ("name", "values", "names"),
    [
        ("base_prec_4x16G_fp32", {}, ["MLMLossWVC", "MLMLossAUX", "MVRCLoss"]),
        ("base_prec_withouttextonly_4x16G_fp32", {}, ["MLMLoss", "MVRCLoss"]),
        ("base_prec_withouttextonly_4x16G_fp32", {"WITH_MLM_LOSS": False}, ["MVRCLoss"]),
    ],
)
def test_all_losses_of_the_model_are_logged_unless_told_otherwise(name, values, names, tmp_path):
    tree = yaml.safe_load((CFGS / "pretrain" / f"{name}.yaml").read_text())
    del tree["TRAIN"]["LOSS_LOGGERS"]
    tree["NETWORK"].update(values)
    file = tmp_path / "cfg.yaml"
    file.write_text(yaml.safe_dump(tree))
    config = load_config(PretrainConfig, file)
    assert [shown for _, shown in config.TRAIN.LOSS_LOGGERS] == names
    file.write_text(dump_config(config))
    assert load_config(PretrainConfig, file) == config


def test_the_split_of_refcocog_has_its_own_default():
    assert load("refcoco", "").DATASET.SPLIT_BY == "unc"
    assert load("refcoco", "DATASET.DATASET=refcocog").DATASET.SPLIT_BY == "umd"
    assert load("refcoco", "DATASET.DATASET=refcocog DATASET.SPLIT_BY=google").DATASET.SPLIT_BY == "google"


@pytest.mark.parametrize("key", ["BLIND", "NO_OBJ_ATTENTION"])
def test_vcr_without_regions_says_that_their_loss_is_skipped(key, caplog):
    with caplog.at_level(logging.WARNING):
        load("vcr", f"NETWORK.{key}=true")
    assert caplog.messages == [
        f"--set NETWORK.{key}=true: NETWORK.{key}: true: the region loss (NETWORK.ENABLE_CNN_REG_LOSS) is skipped"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load("vcr", f"NETWORK.{key}=true NETWORK.ENABLE_CNN_REG_LOSS=false")
    assert caplog.messages == []
