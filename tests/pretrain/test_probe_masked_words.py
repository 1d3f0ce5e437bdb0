import json
import sys

import pytest
import torch

from common.batch import Lengths, Ragged
from common.config.schema import load_config
from common.data.samplers import ItemKey
from pretrain.config import PretrainConfig
from pretrain.model import PretrainOutputs
from scripts import probe_masked_words as probe
from tests.pretrain.world import World

COLORS = "red,green,blue,yellow,purple,white"
PIXELS = (
    "NETWORK.IMAGE_FEAT_PRECOMPUTED=false",
    "NETWORK.IMAGE_NUM_LAYERS=18",
    "NETWORK.PIXEL_MEANS=[103.0, 116.0, 123.0]",
    "NETWORK.PIXEL_STDS=[1.0, 1.0, 1.0]",
)

pytestmark = pytest.mark.integration


class ProbeWorld(World):
    commands = {"probe": probe.main}  # noqa: RUF012 - as declared


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = ProbeWorld(drawn, tmp_path_factory.mktemp("probed"))
    assert world.train() == 0
    return world


def probe_task(world, words, *changes, blank=False):
    config = load_config(PretrainConfig, world.cfg, world.settings(list(changes))[1::2])
    return probe.ProbeTask(config, words, blank)


def captions(world):
    lines = (world.data / "val_frcnn.json").read_text().splitlines()
    return [json.loads(line)["caption"] for line in lines]


@pytest.mark.parametrize("changes", [(), ("NETWORK.VLBERT.with_pooler=true", "NETWORK.WITH_REL_LOSS=true")])
def test_probe_dataset_masks_one_word_and_no_region(trained, changes):
    words = COLORS.split(",")
    task = probe_task(trained, words, *changes)
    (dataset,) = task.build_datasets("val")
    tokenizer = task.tokenizer
    for index, caption in enumerate(captions(trained)):
        sample, again = (dataset[ItemKey(0, index)] for _ in range(2))
        ids = sample.texts[0].ids.tolist()
        assert ids == again.texts[0].ids.tolist()
        (masked_index,), (label,) = sample.masked_token_index.tolist(), sample.word_labels.tolist()
        assert [i for i, token_id in enumerate(ids) if token_id == tokenizer.mask_id] == [masked_index]
        assert label in {tokenizer.vocab[word] for word in words}
        ids[masked_index] = label
        assert ids == [tokenizer.cls_id, *tokenizer.ids(" ".join(caption)), tokenizer.sep_id]
        assert not sample.masked_regions.any()
        assert sample.box_features is not None
        torch.testing.assert_close(sample.box_features[0], sample.box_features[1:].mean(0))
        assert len(sample.masked_region_index) == 0


def test_probe_dataset_masks_all_pieces_of_a_word(trained):
    task = probe_task(trained, ["umbrella"])
    (dataset,) = task.build_datasets("val")
    all_labels = [dataset[ItemKey(0, i)].word_labels.tolist() for i in range(len(dataset))]
    pieces = [task.tokenizer.vocab["um"], task.tokenizer.vocab["##brella"]]
    assert [bool(labels) for labels in all_labels] == ["umbrella" in caption for caption in captions(trained)]
    assert {tuple(labels) for labels in all_labels} == {(), tuple(pieces)}


@pytest.mark.parametrize("changes", [(), PIXELS], ids=["features", "pixels"])
def test_blank_regions_mask_all_features_and_the_whole_image(trained, changes):
    (visible,), (blank,) = (
        probe_task(trained, ["red"], *changes, blank=blank).build_datasets("val") for blank in (False, True)
    )
    sample = blank[ItemKey(0, 0)]
    assert sample.masked_regions.all()
    assert len(sample.masked_regions) == len(sample.boxes)
    if changes:
        _, height, width = sample.image.shape
        assert sample.masked_pixel_boxes.tolist() == [[0, 0, width - 1, height - 1]]
        assert visible[ItemKey(0, 0)].masked_pixel_boxes.shape == (0, 4)
    else:
        assert sample.masked_pixel_boxes is None


def test_predictions_are_right_if_all_pieces_are(trained):
    task = probe_task(trained, ["red", "umbrella"])
    ids = [*task.tokenizer.word_ids("red"), *task.tokenizer.word_ids("umbrella") * 2]
    batch = probe.PretrainBatch(
        record_ids=("a", "b", "c", "d"), index=torch.arange(4), images=None, num_boxes=Lengths.of([1] * 4),
        text=None, masked_token_index=Ragged(Lengths.of([1, 2, 0, 2]), torch.arange(5)), word_labels=torch.tensor(ids),
    )  # fmt: skip
    predicted = [*ids[:4], ids[0]]
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), len(task.tokenizer.vocab)).float()
    assert task.predictions(PretrainOutputs(None, logits, None), batch) == [
        {"word": "red", "right": True},
        {"word": "umbrella", "right": True},
        {"word": "", "right": True},
        {"word": "umbrella", "right": False},
    ]


@pytest.mark.parametrize("flags", [(), ("--blank-regions",)])
def test_command_reports_overall_and_per_word(trained, capsys, flags):
    for _ in range(2):
        assert trained.evaluate("probe", *trained.model(), "--words", COLORS, "--bs", "5", *flags) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines() if line.count("\t") == 2]
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    (path,) = (trained.out / "results").glob(f"toy_probe{'_blank' if flags else ''}.json")
    rows = {row["word"]: row for row in json.loads(path.read_text())}
    assert [word for word, _, _ in lines[: len(lines) // 2]] == list(rows)
    assert rows["overall"]["count"] == len(captions(trained))
    for key in ("count", "right"):
        assert rows["overall"][key] == sum(row[key] for word, row in rows.items() if word != "overall")
    for word, accuracy, count in lines:
        assert float(accuracy) == pytest.approx(rows[word]["right"] / rows[word]["count"], abs=1e-6)
        assert int(count) == rows[word]["count"]


def test_read_words_accepts_a_file_or_a_list(trained, tmp_path):
    tokenizer = probe_task(trained, ["red"]).tokenizer
    (tmp_path / "words").write_text("Red\ncar, ball\n")
    assert probe.read_words(str(tmp_path / "words"), tokenizer) == ["red", "car", "ball"]
    assert probe.read_words("Red,car", tokenizer) == ["red", "car"]


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--words", ","), 2, '--words: "," contains no word'),
        (("--words", "red,blue-green"), 2, '--words: "blue-green" is not a single word'),
        (("--words", "red,☃"), 2, '--words: "☃" is not a single word'),
        (("--words", sys.executable), 2, f"--words: {sys.executable}: cannot be read as text in UTF-8"),
        (("--words", "red," * 2000 + "☃"), 2, '--words: "☃" is not a single word'),
        (("--words", "zero"), 1, "--words: no caption of val contains any of them"),
        (("--words", "red", "--set", "NETWORK.WITH_MLM_LOSS=false"), 2, "NETWORK.WITH_MLM_LOSS: false"),
    ],
)
def test_command_rejects_bad_input(trained, capsys, flags, status, message):
    assert trained.evaluate("probe", *trained.model(), *flags) == status
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_command_rejects_an_attention_model(trained, capsys):
    changes = ("MODULE=ResNetVLBERTForAttentionVis", "TRAIN.END_EPOCH=0")
    assert trained.evaluate("probe", *trained.model(), "--words", "red", changes=changes) == 2
    assert capsys.readouterr().err.startswith("error: MODULE: ResNetVLBERTForAttentionVis: restores nothing")


def test_command_requires_words(trained, capsys):
    assert trained.evaluate("probe", *trained.model()) == 2
    assert "required: --words" in capsys.readouterr().err
