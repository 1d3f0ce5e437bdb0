"""The attention figure, from synthetic maps."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

import vl_bert
from common.cli.run import run
from common.errors import DataError, UsageError
from common.inference.attention import AttentionMaps, SequenceTokens
from figs import attention
from figs.attention import WordAttention
from tests.world import ROOT

pytestmark = pytest.mark.integration

TOKENS = ("[CLS]", "um", "##brella", "left", "[SEP]")


def record(tokens: tuple[str, ...] = TOKENS, num_boxes: int = 2) -> AttentionMaps:
    """One layer, two heads; the weight of i on j is (i + 1) * (j + 1) + 100 * head thousandths."""
    sequence = SequenceTokens(
        image_id="a",
        image="a.jpg",
        size=(40, 20),
        tokens=tokens,
        boxes=((0.0, 0.0, 39.0, 19.0), *((10.0 * n, 0.0, 10.0 * n + 9, 9.0) for n in range(num_boxes))),
        labels=("image", *(str(n + 1) for n in range(num_boxes))),
    )
    steps = np.arange(1, len(sequence.names) + 1)
    maps = np.stack([np.outer(steps, steps), np.outer(steps, steps) + 100])[None] / 1000
    return AttentionMaps(sequence, maps.astype(np.float32))


def panel(
    weights: list, words: tuple[str, ...] = ("a", "b"), word: int = 0, answer: str = ""
) -> WordAttention:
    return WordAttention(words, word, np.array(weights, dtype=float), answer)


def test_word_attention_is_mean_over_pieces_without_whole_image():
    assert attention.merge_pieces(record()) == [("umbrella", (1, 2)), ("left", (3,))]
    (item,) = attention.word_attention(record(), ["umbrella"])
    assert (item.words, item.word) == (("umbrella", "left"), 0)
    # Pieces have factors 2 and 3; regions 7 and 8, after the whole image.
    assert item.weights == pytest.approx(np.array([[[0.0175, 0.02], [0.1175, 0.12]]]))


@pytest.mark.parametrize(
    ("tokens", "names", "expected"),
    [
        (TOKENS, ["left", "umbrella", "dog"], ["umbrella", "left"]),
        (TOKENS, ["dog"], []),
        (("[CLS]", "dog", "?", "[SEP]", "[MASK]", "[SEP]"), [], ["[MASK]"]),
        (("[CLS]", *"abcdef", "[SEP]"), [], ["c", "d", "e", "f"]),  # weights grow with the position
    ],
)
def test_word_attention_selects_words(tokens, names, expected):
    items = attention.word_attention(record(tokens), names)
    assert [item.words[item.word] for item in items] == expected


def test_word_attention_needs_regions():
    with pytest.raises(DataError, match=r"a.jpg: 2 words and 0 regions; needs both"):
        attention.word_attention(record(num_boxes=0), [])


def test_most_distinctive_head():
    same = [[[0.9, 0.1], [0.6, 0.1]]]  # head 0 has larger weights, but on the same region for both words
    other = [[[0.9, 0.1], [0.1, 0.6]]]
    assert attention.most_distinctive_head([panel(same), panel(other)]) == (0, 1)
    assert attention.most_distinctive_head([panel(same)]) == (0, 0)


def test_choose_head():
    panels = [panel([[[0.1], [0.2]], [[0.3], [0.1]]])]
    assert attention.choose_head(panels, None, None) == (1, 0)
    assert attention.choose_head(panels, 0, 1) == (0, 1)
    with pytest.raises(UsageError, match="give both or neither"):
        attention.choose_head(panels, 1, None)
    for layer, head in ((-1, 1), (2, 1), (1, 2)):
        with pytest.raises(UsageError, match="layers 0 to 1, heads 0 to 1"):
            attention.choose_head(panels, layer, head)


def test_highlighted_regions_keep_their_color():
    image = Image.new("RGB", (8, 4), (200, 0, 0))
    boxes = np.array([[2, 0, 5, 1], [0, 0, 3, 3]], dtype=float)
    shown = np.asarray(attention.highlight_regions(image, boxes, np.array([1.0, 0.0]), (16, 8)))
    assert shown.shape == (8, 16, 3)
    assert (shown[:4, 4:12] == (200, 0, 0)).all()
    faded = shown[7, 15]
    assert faded.tolist() == [193, 153, 153]  # 150 + gray / 4 + (color - 64) / 5
    assert (shown[4:] == faded).all()
    assert (shown[:, :4] == faded).all()


def test_wrap_words():
    item = panel([], ("many", "words", "?", "more"), word=3, answer="x")
    first, second, mark, last = attention.wrap_words(item, 110)
    assert first[:2] == (0.0, 0)
    assert second[0] == pytest.approx(first[2] + 4.5)
    assert mark[0] == pytest.approx(second[0] + second[2])  # no space before punctuation
    assert last[:2] == (pytest.approx(mark[0] + mark[2] + 4.5), 0)
    assert last[2] < first[2]  # the answer replaces the word
    broken = attention.wrap_words(panel([], ("many", "words")), 60)
    assert [entry[:2] for entry in broken] == [(0.0, 0), (0.0, 1)]


class FakeVQA(vl_bert.VQAPredictor):
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
    monkeypatch.setattr(attention, "load_from_flags", lambda args, model_class, config: FakeVQA())

    def command(*flags: str) -> int:
        fixed = [
            "--cfg",
            str(ROOT / "cfgs/vqa/toy.yaml"),
            "--image",
            str(tmp_path / "a.png"),
            "--out",
            str(tmp_path / "out.png"),
        ]
        monkeypatch.setattr(sys, "argv", ["attention", *fixed, *flags])
        return run(attention.main)

    return command


@pytest.mark.integration
def test_command_draws_panel_per_text(command, tmp_path, monkeypatch):
    calls = []
    draw_attention = attention.draw_attention
    monkeypatch.setattr(
        attention, "draw_attention", lambda *args: calls.append(args) or draw_attention(*args)
    )
    assert command("--text", "how many", "--text", "what", "--layer", "0", "--head", "1") == 0
    ((image, boxes, panels, head, _),) = calls
    assert image.size == (40, 20)
    assert boxes.tolist() == [[0, 0, 9, 9], [10, 0, 19, 9]]
    assert [(item.words, item.answer) for item in panels] == [
        (("how", "many", "[MASK]"), "seven"),
        (("what", "[MASK]"), "seven"),
    ]
    assert head == (0, 1)
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.width == 1800
    assert command("--text", "how many", "--words", "many, how") == 0
    assert [item.words[item.word] for item in calls[1][2]] == ["how", "many"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--text", "how", "--words", "dog"), '--words: "dog" is not in --text; words: [MASK], how'),
        (("--text", "a b c d e", "--words", "a,b,c,d,e"), "5 panels; at most 4 fit"),
        (("--text", "how", "--out", "x.gif"), "x.gif: must end in .svg or .png"),
        (("--text", "how", "--layer", "1"), "--layer and --head: give both or neither"),
    ],
)
def test_command_bad_flags(command, capsys, flags, message):
    assert command(*flags) == 2
    assert message in capsys.readouterr().err
