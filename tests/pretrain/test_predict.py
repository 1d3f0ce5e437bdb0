"""Encodings of a pre-trained model, and the attention maps of a split."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

import vl_bert
from common.inference.attention import AttentionMaps
from pretrain import vis_attention_maps
from pretrain.predict import PretrainedModel
from tests.pretrain.world import World

pytestmark = pytest.mark.integration

World.commands["vis"] = vis_attention_maps.main


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train() == 0
    return world


@pytest.fixture(scope="module")
def maps(trained):
    """Output folder of `vis_attention_maps.py` for 10 images."""
    flags = ("--save-dir", str(trained.out / "maps"), "--limit", "10", "--gpus", "-1")
    assert trained.command("vis", *trained.model(), *flags) == 0
    return trained.out / "maps/attention_probs"


def captions(world: World) -> list[dict]:
    return [json.loads(line) for line in (world.data / "val_frcnn.json").read_text().splitlines()]


def test_command_warns_about_untrained_model(trained, caplog):
    flags = ("--cfg", str(trained.cfg), "--save-dir", str(trained.out / "x"), "--limit", "1", "--gpus", "-1")
    message = "neither --ckpt nor NETWORK.PARTIAL_PRETRAIN is set: the model is untrained"
    assert trained.command("vis", *flags) == 0
    assert caplog.messages.count(message) == 1
    assert trained.command("vis", *flags, "--ckpt", str(trained.checkpoint())) == 0
    assert caplog.messages.count(message) == 1


def test_command_writes_files_per_caption(trained, maps):
    records = captions(trained)[:10]
    stems = sorted(path.stem for path in maps.glob("*.npy"))
    assert len(stems) == 10
    assert stems == sorted(path.stem for path in maps.glob("*.json"))
    tokenizer = trained.task(vl_bert.read_config(trained.cfg, trained.overrides())).tokenizer
    counts: dict[str, int] = {}
    for record in records:
        name = record["image"].rsplit("/")[-1].removesuffix(".jpg")
        counts[name] = counts.get(name, 0) + 1
        loaded = AttentionMaps.load(
            maps / (f"{name}.npy" if counts[name] == 1 else f"{name}-{counts[name]}.npy")
        )
        sequence = loaded.sequence
        words = tokenizer.tokenize(" ".join(record["caption"]))
        assert sequence.tokens == ("[CLS]", *words, "[SEP]")
        assert sequence.labels[:2] == ("image", "1")
        length = len(sequence.names)
        assert loaded.maps.shape == (1, 2, length, length)
        assert loaded.maps.dtype == np.float32
        np.testing.assert_allclose(loaded.maps.sum(axis=3), 1, atol=1e-5)
        assert sequence.image.endswith(f"{name}.jpg")


def test_encode_matches_maps_of_dataset(trained, maps, tmp_path):
    record = captions(trained)[0]
    model = trained.loaded()
    assert type(model) is PretrainedModel
    image, regions = (trained.data / record[key].replace(".zip@", "") for key in ("image", "frcnn"))
    # Pre-training ignores the image feature of a region file.
    image_feature = base64.b64encode(np.ones(2048, dtype="<f4").tobytes()).decode()
    region_file = tmp_path / regions.name
    region_file.write_text(
        json.dumps({**json.loads(regions.read_text()), "image_box_feature": image_feature})
    )
    encoding = model.encode(image, " ".join(record["caption"]), region_file, attention=True)
    written = AttentionMaps.load(maps / f"{image.stem}.npy")
    # The dataset sorts regions by confidence, `encode` keeps the order of the file.
    dataset_boxes, encoded_boxes = (np.array(item.boxes) for item in (written.sequence, encoding.sequence))
    order = [int(np.abs(encoded_boxes - box).sum(axis=1).argmin()) for box in dataset_boxes]
    words = len(written.sequence.tokens)
    positions = [*range(words), *(words + index for index in order), words + len(order)]
    reordered = encoding.maps().maps[:, :, positions][:, :, :, positions]
    np.testing.assert_allclose(reordered, written.maps, atol=1e-5)
    assert encoding.text.shape == (words, 16)


def test_command_bad_limit(trained, capsys):
    assert trained.command("vis", *trained.model(), "--limit", "0", "--gpus", "-1") == 2
    assert "--limit: 0: must be at least 1" in capsys.readouterr().err
