"""Reading, checking and writing configurations."""

import logging
from pathlib import Path

import pytest
import yaml

from common.config.schema import dump_config, leaves, load_config, parse_config
from common.errors import ConfigError
from pretrain.config import PretrainConfig
from refcoco.config import RefCOCOConfig
from vcr.config import VCRConfig
from vqa.config import VQAConfig

CFGS = Path(__file__).parents[3] / "cfgs"
VCR = CFGS / "vcr/base_q2a_4x16G_fp32.yaml"
PRETRAIN = CFGS / "pretrain/base_prec_4x16G_fp32.yaml"


@pytest.fixture
def write(tmp_path):
    def to_file(text, name="a.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return to_file


def message_of(schema, path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(schema, path, overrides)
    return str(caught.value)


def test_absent_keys_have_the_defaults_of_the_reference():
    vcr, vqa, refcoco, pretrain = (
        parse_config(schema, {}, "x") for schema in (VCRConfig, VQAConfig, RefCOCOConfig, PretrainConfig)
    )
    assert (vcr.DATASET.TASK, vcr.DATASET.LABEL_INDEX_IN_BATCH, vqa.DATASET.LABEL_INDEX_IN_BATCH) == (
        "Q2AR",
        7,
        -1,
    )
    assert [c.NETWORK.VLBERT.with_pooler for c in (vcr, vqa, refcoco, pretrain)] == [True, False, False, True]
    assert [c.NETWORK.VLBERT.object_word_embed_mode for c in (vcr, vqa, refcoco, pretrain)] == [1, 2, 2, 2]
    assert [c.NETWORK.IMAGE_SEMANTIC for c in (vcr, vqa, refcoco, pretrain)] == [True, False, False, False]
    assert [c.NETWORK.ENABLE_CNN_REG_LOSS for c in (vcr, vqa, refcoco, pretrain)] == [True, True, False, True]
    # the one deliberate difference: true cannot run in vcr and pretrain
    assert [c.TRAIN.ASPECT_GROUPING for c in (vcr, vqa, refcoco, pretrain)] == [False, True, True, False]
    assert refcoco.TRAIN.LOSS_LOGGERS == (("cls_loss", "ClsLoss"),)
    assert (vqa.DATASET.BOXES, vqa.DATASET.ANSWER_NORMALISE, vqa.NETWORK.IMAGE_WIDTH) == (
        "36",
        "vocabulary",
        64,
    )
    assert len(list(leaves(vcr))) == 130 + 10  # keys of the reference, and new ones
    assert len(list(leaves(pretrain))) == 134 + 11


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("TRAIN.LR=1e-7", "TRAIN.LR", 1e-7),
        ("TRAIN.LR=7.0e-05", "TRAIN.LR", 7e-5),
        ("TRAIN.LR='1e-3'", "TRAIN.LR", 1e-3),
        ("TRAIN.LR=1", "TRAIN.LR", 1.0),
        ("TRAIN.LR_STEP=14,18", "TRAIN.LR_STEP", (14.0, 18.0)),
        ("TRAIN.LR_STEP=14", "TRAIN.LR_STEP", (14.0,)),
        ("TRAIN.LR_STEP=[2.5, 18]", "TRAIN.LR_STEP", (2.5, 18.0)),
        ("TRAIN.LR_STEP=", "TRAIN.LR_STEP", ()),
        ("TRAIN.LOSS_LOGGERS=['a,A', [b, B]]", "TRAIN.LOSS_LOGGERS", (("a", "A"), ("b", "B"))),
        ("TRAIN.LR_MULT=[[vlbert, 0.1]]", "TRAIN.LR_MULT", (("vlbert", 0.1),)),
        ("TRAIN.FP16_LOSS_SCALE=dynamic", "TRAIN.FP16_LOSS_SCALE", "dynamic"),
        ("SCALES=[300, 500]", "SCALES", (300, 500)),
        ("GPUS=0,1", "GPUS", "0,1"),
        ("GPUS=0, 1", "GPUS", "0,1"),
        ("GPUS=2", "GPUS", "2"),
        ("GPUS=[0, 3]", "GPUS", "0,3"),
        ("GPUS=cpu", "GPUS", "cpu"),
        ("NETWORK.PARTIAL_PRETRAIN=", "NETWORK.PARTIAL_PRETRAIN", ""),
        ("NETWORK.PARTIAL_PRETRAIN=a=b.model", "NETWORK.PARTIAL_PRETRAIN", "a=b.model"),
        ("NETWORK={IMAGE_FROZEN_BN: false}", "NETWORK.IMAGE_FROZEN_BN", False),
    ],
)
def test_values_are_read_as_meant(text, key, value):
    found = load_config(VCRConfig, VCR, [text]).value(key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN.LRR=1", "TRAIN.LRR: unknown key; did you mean LR?"),
        ("network.BLIND=true", "network: unknown key; did you mean NETWORK?"),
        (
            "NETWORK.VLBERT.Hidden_size=1",
            "NETWORK.VLBERT.Hidden_size: unknown key; did you mean hidden_size?",
        ),
        ("DATASET.SEQ_LEN=64", "DATASET.SEQ_LEN: unknown key"),
        ("TRAIN=null", "TRAIN: null: must be a section of keys"),
        ("NETWORK.VLBERT=[1]", "NETWORK.VLBERT: [1]: must be a section of keys"),
        ("NETWORK.BLIND='yes'", 'NETWORK.BLIND: "yes": must be true or false'),
        ("NETWORK.BLIND=1", "NETWORK.BLIND: 1: must be true or false"),
        ("LOG_FREQUENT='5'", 'LOG_FREQUENT: "5": must be an integer >= 1'),
        ("LOG_FREQUENT=true", "LOG_FREQUENT: true: must be an integer >= 1"),
        ("LOG_FREQUENT=5.5", "LOG_FREQUENT: 5.5: must be an integer >= 1"),
        ("MODEL_PREFIX=", None),
        ("MODEL_PREFIX=~", "MODEL_PREFIX: null: must be text"),
        ("TRAIN.LR=fast", 'TRAIN.LR: "fast": must be a number >= 0'),
        ("TRAIN.LR=-1", "TRAIN.LR: -1: must be a number >= 0"),
        ("TRAIN.LR=.nan", "TRAIN.LR: NaN: must be a number >= 0"),
        ("TRAIN.LR=.inf", "TRAIN.LR: Infinity: must be a number >= 0"),
        ("TRAIN.LR=true", "TRAIN.LR: true: must be a number >= 0"),
        ("TRAIN.FLIP_PROB=1.5", "TRAIN.FLIP_PROB: 1.5: must be a number from 0 to 1"),
        ("TRAIN.OPTIMIZER=sgd", 'TRAIN.OPTIMIZER: "sgd": must be "SGD" or "Adam" or "AdamW"'),
        ("TRAIN.GRAD_ACCUMULATE_STEPS=0", "TRAIN.GRAD_ACCUMULATE_STEPS: 0: must be an integer >= 1"),
        ("TRAIN.BATCH_IMAGES=0", "TRAIN.BATCH_IMAGES: 0: must be an integer >= 1"),
        ("TRAIN.LR_STEP=14;18", 'TRAIN.LR_STEP: "14;18": must be epochs >= 0 such as "14,18"'),
        (
            "TRAIN.LOSS_LOGGERS=[ans_loss]",
            'TRAIN.LOSS_LOGGERS: ["ans_loss"]: must be a list of "loss,Name" texts',
        ),
        (
            "TRAIN.FP16_LOSS_SCALE=static",
            'TRAIN.FP16_LOSS_SCALE: "static": must be "dynamic" or a number > 0',
        ),
        ("GPUS=0;1", 'GPUS: "0;1": must be device numbers such as "0,1,2,3", "cpu" or ""'),
        ("GPUS=true", "GPUS: true: must be device numbers"),
        ("SCALES=[600]", "SCALES: [600]: must be [short side, long side], two ascending integers >= 1"),
        ("NETWORK.PIXEL_MEANS=[1, 2]", "NETWORK.PIXEL_MEANS: [1, 2]: must be three numbers [B, G, R]"),
        ("NETWORK.IMAGE_NUM_LAYERS=77", "NETWORK.IMAGE_NUM_LAYERS: 77: must be 18 or 34 or 50 or 101 or 152"),
        ("NETWORK.IMAGE_FROZEN_BACKBONE_STAGES=[0]", "must be a list of stages from 1 to 5"),
        ("NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES=[a]", 'must be a list of "old->new" texts'),
        ("NETWORK.VLBERT.object_word_embed_mode=true", "object_word_embed_mode: true: must be 1 or 2 or 3"),
        ("NETWORK.VLBERT.type_vocab_size=2", "NETWORK.VLBERT.type_vocab_size: 2: must be an integer >= 3"),
        (
            "NETWORK.VLBERT.obj_pos_id_relative=false",
            "obj_pos_id_relative: false: must be true: false is not",
        ),
        ("DATASET.CACHE_MODE=true", "DATASET.CACHE_MODE: true: must be false: true is not supported"),
        ("TRAIN.LR", "must be KEY.PATH=VALUE, for example TRAIN.LR=1e-5"),
        ("TRAIN..LR=1", "must be KEY.PATH=VALUE"),
        ("SCALES=[1", "line 1: expected ',' or ']'"),
        ("SCALES.5=1", "SCALES has entries 0 to 1, not 5"),
        ("SCALES.short=1", "SCALES is a list; name an entry, such as SCALES.0.short"),
        ("DATASET.0.ZIP_MODE=true", "DATASET is not a list; use DATASET.ZIP_MODE"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(text, message):
    if message is None:
        load_config(VCRConfig, VCR, [text])
        return
    found = message_of(VCRConfig, VCR, text)
    assert found.startswith(f"--set {text}")
    assert message in found
    assert "\n" not in found


def test_all_problems_of_a_file_come_at_once_each_with_its_source(write):
    base = write("TRAIN: {LR: fast}\nTESTT: 1\n", "base.yaml")
    path = write("_BASE_: base.yaml\nTRAIN: {WD: -1}\n")
    lines = message_of(VCRConfig, path, "GPUS=x").split("\n")
    assert len(lines) == 4
    assert lines[0] == '--set GPUS=x: GPUS: "x": must be device numbers such as "0,1,2,3", "cpu" or ""'
    assert f'{base}: TRAIN.LR: "fast": must be a number >= 0' in lines
    assert f"{path}: TRAIN.WD: -1: must be a number >= 0" in lines
    assert f"{base}: TESTT: unknown key; did you mean TEST?" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("GPUS: '0'\nLR: 1\nGPUS: '1'\n", ", line 3: duplicate key GPUS"),
        ("TRAIN:\n  LR: 1\n  LR: 2\n", ", line 3: duplicate key LR"),
        ("1: 2\n", ", line 1: key 1 is not text"),
        ("TRAIN: [\n", ", line 2: "),
        ("", ": must be a mapping of keys"),
        ("- a\n", ": must be a mapping of keys"),
        ("x: !!python/name:os.system\n", "could not determine a constructor"),
        ("_BASE_: [a]\n", ": _BASE_: ['a']: must be the name of one yaml file"),
        ("_BASE_: none.yaml\n", "none.yaml (named by _BASE_ of "),
    ],
)
def test_a_file_that_is_no_configuration_is_named(write, text, message):
    path = write(text)
    found = message_of(VCRConfig, path)
    assert str(path) in found
    assert message in found


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    assert (
        message_of(VCRConfig, tmp_path / "no.yaml")
        == f"{tmp_path}/no.yaml: cannot be read: No such file or directory"
    )
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert message_of(VCRConfig, binary) == f"{binary}: cannot be read: not UTF-8 text"


def test_base_files_are_merged_key_by_key_and_lists_replaced(write, tmp_path):
    (tmp_path / "sub").mkdir()
    write("TRAIN: {LR: 1, WD: 2, LR_STEP: [3, 4]}\nSCALES: [5, 6]\n", "top.yaml")
    write("_BASE_: ../top.yaml\nTRAIN: {LR: 7}\n", "sub/middle.yaml")
    path = write("_BASE_: sub/middle.yaml\nTRAIN: {LR_STEP: [8]}\n")
    found = message_of(VCRConfig, path)
    assert "MODULE" in found  # read as a whole, checked as a whole
    config = load_config(VCRConfig, VCR)
    child = write(f"_BASE_: {VCR}\nTRAIN: {{LR_STEP: [8]}}\n", "child.yaml")
    assert load_config(VCRConfig, child) == load_config(VCRConfig, VCR, ["TRAIN.LR_STEP=8"]) != config
    deep = message_of(VCRConfig, path, "TRAIN.WD=-1", "TRAIN.LR=-1", "SCALES=[0]")
    assert deep.count("\n") == 2


def test_a_cycle_of_base_files_is_reported(write):
    path = write("_BASE_: b.yaml\n")
    folder = path.parent
    write(f"_BASE_: ../{folder.name}/a.yaml\n", "b.yaml")
    found = message_of(VCRConfig, path)
    again = f"{folder}/../{folder.name}/a.yaml"
    assert found == f"{folder}/b.yaml: _BASE_: cycle {path} -> {folder}/b.yaml -> {again}"


def test_entries_of_a_dataset_list_are_checked_completed_and_overridden(write):
    config = load_config(
        PretrainConfig,
        PRETRAIN,
        ["DATASET.0.DATASET_PATH=/elsewhere", "TRAIN.BATCH_IMAGES.1=8", "DATASET.1.SEQ_LEN=32"],
    )
    images, texts = config.datasets
    assert (images.DATASET_PATH, images.SEQ_LEN, images.MASK_SIZE) == ("/elsewhere", 64, 14)
    assert (texts.DATASET, texts.SEQ_LEN, texts.MIN_SEQ_LEN, texts.ROOT_PATH) == (
        "general_corpus",
        32,
        64,
        "",
    )
    assert (config.TRAIN.BATCH_IMAGES, config.VAL.batch_sizes) == ((32, 8), (32, 32))
    assert load_config(VCRConfig, VCR).TRAIN.batch_sizes == (4,)
    for text, message in {
        "DATASET.1.SEQLEN=3": "DATASET.1.SEQLEN: unknown key; did you mean SEQ_LEN?",
        "DATASET.0.ZIP_MODE=2": "DATASET.0.ZIP_MODE: 2: must be true or false",
        "DATASET.2.ZIP_MODE=true": "DATASET has entries 0 to 1, not 2",
        "DATASET.ZIP_MODE=true": "DATASET is a list; name an entry, such as DATASET.0.ZIP_MODE",
        "DATASET.0=": 'DATASET.0: "": must be a section of keys, or a list of two or more',
        "DATASET=[{}]": "DATASET: [{}]: must be a section of keys, or a list of two or more",
    }.items():
        assert message_of(PretrainConfig, PRETRAIN, text) == f"--set {text}: {message}"


def test_keys_without_effect_are_logged_once_when_they_ask_for_something(caplog):
    with caplog.at_level(logging.WARNING):
        load_config(VCRConfig, VCR)
        load_config(PretrainConfig, PRETRAIN, ["DATASET.0.IGNORE_DB_CACHE=true", "TEST.BATCH_IMAGES=[1, 2]"])
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        load_config(VCRConfig, VCR, ["NETWORK.BERT_USE_LAYER=3", "NETWORK.BERT_FROZEN=true"])
        load_config(PretrainConfig, PRETRAIN, ["DATASET.1.TASK=Q2A"])
    assert caplog.messages == [
        "--set NETWORK.BERT_USE_LAYER=3: NETWORK.BERT_USE_LAYER: 3: this key has no effect in this task",
        '--set DATASET.1.TASK=Q2A: DATASET.1.TASK: "Q2A": this key has no effect in this task',
    ]


def test_parse_accepts_complete_nested_values_and_skips_combination_rules():
    values = yaml.safe_load(dump_config(load_config(VCRConfig, VCR)))
    values["SCALES"] = []
    values["DATASET"]["TASK"] = "Q2AR"
    config = parse_config(VCRConfig, values, "golden")
    assert config.SCALES == ()
    assert len(config.problems()) == 2
    with pytest.raises(ConfigError, match=r"^golden: TRAIN\.X: unknown key"):
        parse_config(VCRConfig, {"TRAIN": {"X": 1}}, "golden")


def test_a_configuration_cannot_be_changed():
    config = load_config(VCRConfig, VCR)
    with pytest.raises(ValueError, match="frozen"):
        config.TRAIN.LR = 1.0  # type: ignore[misc]
