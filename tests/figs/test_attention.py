"""Pictures lit by attention, from synthetic maps."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import vl_bert
from common.cli.run import run
from common.errors import DataError, UsageError
from common.inference.attention import AttentionMaps, SequenceTokens
from figs import attention
from figs.attention import Look, choose_head, flow, lit, looks_of, telling_head, words_of

TOKENS = ("[CLS]", "um", "##brella", "left", "[SEP]")


def record(tokens: tuple[str, ...] = TOKENS, boxes: int = 2) -> AttentionMaps:
    """One layer, two heads; place i gives place j (i + 1) * (j + 1) + 100 * head thousandths, for easy sums."""
    labels = ("image", *(str(number + 1) for number in range(boxes)))
    places = SequenceTokens(
        image_id="a",
        image="a.jpg",
        size=(40, 20),
        tokens=tokens,
        boxes=((0.0, 0.0, 39.0, 19.0), *((10.0 * n, 0.0, 10.0 * n + 9, 9.0) for n in range(boxes))),
        labels=labels,
    )
    steps = np.arange(1, len(places.names) + 1)
    maps = np.stack([np.outer(steps, steps), np.outer(steps, steps) + 100])[None] / 1000
    return AttentionMaps(places, maps.astype(np.float32))


def look(shares: list, words: tuple[str, ...] = ("a", "b"), word: int = 0, answer: str = "") -> Look:
    return Look(words, word, np.array(shares, dtype=float), answer)


def test_pieces_are_joined():
    assert words_of(record()) == [("umbrella", (1, 2)), ("left", (3,))]


def test_shares_are_means_over_pieces_on_regions_but_the_whole():
    (found,) = looks_of(record(), ["umbrella"])
    assert (found.words, found.word) == (("umbrella", "left"), 0)
    # Pieces stand at 2 and 3 of 1, 2, ...; regions at 7 and 8 after the whole picture.
    assert found.shares == pytest.approx(np.array([[[0.0175, 0.02], [0.1175, 0.12]]]))


def test_which_words_look():
    assert [one.word for one in looks_of(record(), ["left", "umbrella", "dog"])] == [0, 1]
    assert looks_of(record(), ["dog"]) == []
    asked = ("[CLS]", "dog", "?", "[SEP]", "[MASK]", "[SEP]")
    assert [one.words[one.word] for one in looks_of(record(asked), [])] == ["[MASK]"]
    many = ("[CLS]", *"abcdef", "[SEP]")  # the later, the stronger
    assert [one.words[one.word] for one in looks_of(record(many), [])] == ["c", "d", "e", "f"]


def test_nothing_to_look_at():
    with pytest.raises(DataError, match=r"a.jpg: 2 words and 0 regions; needs both"):
        looks_of(record(boxes=0), [])


def test_the_head_that_tells_words_apart():
    same = [[[0.9, 0.1], [0.6, 0.1]]]  # head 1 looks harder, but at the same region for both words
    other = [[[0.9, 0.1], [0.1, 0.6]]]
    assert telling_head([look(same), look(other)]) == (0, 1)
    assert telling_head([look(same)]) == (0, 0)


def test_layer_and_head():
    one = [look([[[0.1], [0.2]], [[0.3], [0.1]]])]
    assert choose_head(one, None, None) == (1, 0)
    assert choose_head(one, 0, 1) == (0, 1)
    with pytest.raises(UsageError, match="give both, or none"):
        choose_head(one, 1, None)
    for layer, head in ((-1, 1), (2, 1), (1, 2)):
        with pytest.raises(UsageError, match="layers 0 to 1, heads 0 to 1"):
            choose_head(one, layer, head)


def test_regions_keep_their_colours():
    image = Image.new("RGB", (8, 4), (200, 0, 0))
    boxes = np.array([[2, 0, 5, 1], [0, 0, 3, 3]], dtype=float)
    shown = np.asarray(lit(image, boxes, np.array([1.0, 0.0]), (16, 8)))
    assert shown.shape == (8, 16, 3)
    assert (shown[:4, 4:12] == (200, 0, 0)).all()
    pale = shown[7, 15]
    assert pale.tolist() == [193, 153, 153]  # 150 + a quarter of the grey + a fifth of the colour less 64
    assert (shown[4:] == pale).all()
    assert (shown[:, :4] == pale).all()


def test_lines_of_text():
    first, second, mark, last = flow(look([], ("many", "words", "?", "more"), word=3, answer="x"), 110)
    assert first[:2] == (0.0, 0)
    assert second[0] == pytest.approx(first[2] + 4.5)
    assert mark[0] == pytest.approx(second[0] + second[2])  # no space
    assert last[:2] == (pytest.approx(mark[0] + mark[2] + 4.5), 0)
    assert last[2] < first[2]  # the answer is written, not the word
    broken = flow(look([], ("many", "words"), word=0), 60)
    assert [place[:2] for place in broken] == [(0.0, 0), (0.0, 1)]


# The command.


class Model(vl_bert.VQAPredictor):
    """Knows the answer."""

    def __init__(self):
        pass

    def encode(self, image, text, boxes=None, *, attention=False):
        assert attention
        tokens = ("[CLS]", *text.split(), "[SEP]", "[MASK]", "[SEP]")
        return SimpleNamespace(maps=lambda: record(tokens))

    def predict(self, image, question, boxes=None, *, top=5):
        return (SimpleNamespace(text="seven"),)


@pytest.fixture
def command(tmp_path, monkeypatch):
    Image.new("RGB", (40, 20), (0, 90, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(attention, "load_from_flags", lambda args, kind: Model())
    monkeypatch.setattr(vl_bert, "model_class", lambda cfg, overrides: Model)

    def command(*flags: str) -> int:
        given = ["--cfg", "x", "--image", str(tmp_path / "a.png"), "--out", str(tmp_path / "out.png")]
        monkeypatch.setattr(sys, "argv", ["attention", *given, *flags])
        return run(attention.main)

    return command


def test_a_panel_for_each_text(command, tmp_path, monkeypatch):
    drawn = []
    plain = attention.draw_attention
    monkeypatch.setattr(attention, "draw_attention", lambda *given: drawn.append(given) or plain(*given))
    assert command("--text", "how many", "--text", "what", "--layer", "0", "--head", "1") == 0
    ((image, boxes, looks, head, _),) = drawn
    assert image.size == (40, 20)
    assert boxes.tolist() == [[0, 0, 9, 9], [10, 0, 19, 9]]
    assert [(one.words, one.answer) for one in looks] == [
        (("how", "many", "[MASK]"), "seven"),
        (("what", "[MASK]"), "seven"),
    ]
    assert head == (0, 1)
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width == 1800


def test_named_words(command, tmp_path):
    assert command("--text", "how many", "--words", "many, how") == 0
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--text", "how", "--words", "dog"), '--words: "dog" is in no --text; there are [MASK], how'),
        (("--text", "a b c d e", "--words", "a,b,c,d,e"), "5 panels; at most 4 fit"),
        (("--text", "how", "--out", "x.gif"), "x.gif: must end in .svg or .png"),
        (("--text", "how", "--layer", "1"), "--layer and --head: give both, or none of them"),
    ],
)
def test_wrong_flags(command, capsys, flags, message):
    assert command(*flags) == 2
    assert message in capsys.readouterr().err
