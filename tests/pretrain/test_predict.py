"""Pictures and texts through a pre-trained model: states, and attention maps of a whole split."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch

import vl_bert
from common.inference.attention import AttentionMaps
from pretrain import vis_attention_maps
from pretrain.predict import PretrainedModel
from tests.pretrain.world import World

World.commands["vis"] = vis_attention_maps.main


@pytest.fixture(scope="module")
def trained(drawn, tmp_path_factory):
    world = World(drawn, tmp_path_factory.mktemp("trained"))
    assert world.train() == 0
    return world


@pytest.fixture(scope="module")
def maps(trained):
    """What `vis_attention_maps.py` wrote of 10 pictures."""
    flags = ("--save-dir", str(trained.out / "maps"), "--limit", "10", "--gpus", "-1")
    assert trained.command("vis", *trained.model(), *flags) == 0
    return trained.out / "maps/attention_probs"


def test_an_untrained_model_is_announced(trained, caplog):
    flags = ("--cfg", str(trained.cfg), "--save-dir", str(trained.out / "x"), "--limit", "1", "--gpus", "-1")
    assert trained.command("vis", *flags) == 0
    message = "no --ckpt and no NETWORK.PARTIAL_PRETRAIN: these are maps of an untrained model"
    assert caplog.messages.count(message) == 1
    assert trained.command("vis", *flags, "--ckpt", str(trained.checkpoint())) == 0
    assert caplog.messages.count(message) == 1


def captions(world: World) -> list[dict]:
    return [json.loads(line) for line in (world.data / "val_frcnn.json").read_text().splitlines()]


def test_a_file_for_each_caption(trained, maps):
    records = captions(trained)[:10]
    stems = sorted(path.stem for path in maps.glob("*.npy"))
    assert len(stems) == 10
    assert stems == sorted(path.stem for path in maps.glob("*.json"))
    seen: dict[str, int] = {}
    for record in records:
        name = record["image"].rsplit("/")[-1].removesuffix(".jpg")
        seen[name] = seen.get(name, 0) + 1
        found = AttentionMaps.load(maps / (f"{name}.npy" if seen[name] == 1 else f"{name}-{seen[name]}.npy"))
        words = trained.task(vl_bert.read_config(trained.cfg, trained.overrides())).tokenizer.tokenize(
            " ".join(record["caption"])
        )
        places = found.places
        assert places.tokens == ("[CLS]", *words, "[SEP]")
        assert places.labels[:2] == ("image", "1")
        side = len(places.names)
        assert found.maps.shape == (1, 2, side, side)
        assert found.maps.dtype == np.float32
        np.testing.assert_allclose(found.maps.sum(axis=3), 1, atol=1e-5)
        assert places.image.endswith(f"{name}.jpg")


def test_maps_are_those_of_encode(trained, maps, tmp_path):
    record = captions(trained)[0]
    model = trained.loaded()
    assert type(model) is PretrainedModel
    image, regions = (trained.data / record[key].replace(".zip@", "") for key in ("image", "frcnn"))
    whole = base64.b64encode(np.ones(2048, dtype="<f4").tobytes()).decode()  # pre-training does not read it
    other_file = tmp_path / regions.name
    other_file.write_text(json.dumps({**json.loads(regions.read_text()), "image_box_feature": whole}))
    encoding = model.encode(image, " ".join(record["caption"]), other_file, attention=True)
    written = AttentionMaps.load(maps / f"{image.stem}.npy")
    # The dataset orders regions by their confidence, a region file by itself.
    own, other = (np.array(one.boxes) for one in (written.places, encoding.places))
    order = [int(np.abs(other - box).sum(axis=1).argmin()) for box in own]
    words = len(written.places.tokens)
    places = [*range(words), *(words + place for place in order), words + len(order)]
    reordered = encoding.maps().maps[:, :, places][:, :, :, places]
    np.testing.assert_allclose(reordered, written.maps, atol=1e-5)
    torch.testing.assert_close(encoding.text.shape, (words, 16))


def test_mistakes(trained, capsys):
    assert trained.command("vis", *trained.model(), "--limit", "0", "--gpus", "-1") == 2
    assert "--limit: 0: must be at least 1" in capsys.readouterr().err
