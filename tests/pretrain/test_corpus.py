"""Texts without pictures."""

from __future__ import annotations

import pickle

import pytest
import torch

from common.data.collate import collate
from common.data.samplers import ItemKey
from common.errors import ConfigError, DataError
from pretrain.dataset import PretrainBatch
from tests.pretrain.items import CLASSES, HIDDEN, KEPT, LABELLED, Draws, Items, restored, words


@pytest.fixture
def items(tmp_path):
    return Items(tmp_path)


def load(dataset, index, *draws):
    rng = Draws(*draws)
    sample = dataset.load(index, rng)
    assert rng.used_up
    return sample


def test_a_line(items):
    data = items.corpus("The dog\n\n  a red cat.  \n")
    assert len(data) == 2
    sample = load(data, 1, KEPT, HIDDEN, KEPT, LABELLED)
    assert (sample.index, sample.record_id, sample.image) == (1, "1", None)
    assert words(sample) == "a [MASK] cat ."
    assert restored(sample) == {1: "red", 3: "."}
    assert sample.boxes.shape == (0, 4)
    assert sample.box_features.shape == (0, 2048)
    assert sample.region_labels.shape == (0, CLASSES)
    assert (sample.relationship.shape, sample.masked_regions.shape, sample.masked_regions.dtype) == (
        (0,),
        (0,),
        torch.bool,
    )
    assert sample.masked_region_index.dtype == sample.relationship.dtype == torch.int64
    assert (sample.im_info.tolist(), sample.masked_pixel_boxes) == ([0, 0, 0, 0], None)


def test_beside_pictures_that_are_read(items):
    for mask_pixels in (True, False):
        network = {"IMAGE_FEAT_PRECOMPUTED": False, "MASK_RAW_PIXELS": mask_pixels}
        sample = load(items.corpus("dog", network=network), 0, KEPT)
        assert sample.box_features is None
        assert (sample.masked_pixel_boxes is not None) == mask_pixels
    assert load(
        items.corpus("dog", network={**network, "MASK_RAW_PIXELS": True}), 0, KEPT
    ).masked_pixel_boxes.shape == (
        0,
        4,
    )


def test_short_lines_are_continued_over_files_and_from_the_first(items):
    data = items.corpus("the dog\na cat", "red .", MIN_SEQ_LEN=4)
    assert words(load(data, 0, *[KEPT] * 4)) == "the dog a cat"
    data = items.corpus("the dog\na cat", "red .", MIN_SEQ_LEN=5)
    assert words(load(data, 0, *[KEPT] * 6)) == "the dog a cat red ."
    assert words(load(data, 2, *[KEPT] * 6)) == "red . the dog a cat"
    # A small text is repeated as often as it takes.
    data = items.corpus("the dog\na cat", MIN_SEQ_LEN=9)
    assert words(load(data, 1, *[KEPT] * 10)) == "a cat the dog a cat the dog a cat"


def test_only_the_first_pieces_count(items):
    data = items.corpus("the umbrellas dog.cat", SEQ_LEN=3, MIN_SEQ_LEN=64)
    # Three words are looked at, the last of which does not fit.
    sample = load(data, 0, KEPT, LABELLED, LABELLED)
    assert words(sample) == "the umbrella ##s"
    assert restored(sample) == {1: "umbrella", 2: "##s"}
    assert words(load(items.corpus("the umbrellas", SEQ_LEN=2), 0, KEPT, LABELLED)) == "the umbrella"


def test_words_are_the_same_wherever_a_line_is_cut_for_reading(items):
    line = "The\x1fdog\u00a0a\u3000cat.The \x00 red\x85cat \ufffd  dog"
    expected = items.tokenizer.tokenize(line)
    assert expected == ["[UNK]", "a", "cat", ".", "the", "[UNK]", "dog"]
    assert words(load(items.corpus(line), 0, *[KEPT] * 7)) == " ".join(expected)


def test_lines_without_a_word_borrow_the_next(items):
    data = items.corpus("\u200b\nthe dog\n")
    assert (len(data), words(load(data, 0, KEPT, KEPT))) == (2, "the dog")


@pytest.mark.parametrize("least", [0, 64])
def test_a_corpus_without_words_is_no_endless_loop(items, least):
    data = items.corpus("\u200b\n\u200b\u200b\n", MIN_SEQ_LEN=least)
    with pytest.raises(DataError, match=r"item 1 \(record 1\): .*text0\.doc: has no word in 2 lines"):
        data[ItemKey(0, 1)]


def test_words_stay_where_none_is_to_be_restored(items):
    sample = load(items.corpus("the dog", network={"WITH_MLM_LOSS": False}), 0)
    assert (words(sample), restored(sample)) == ("the dog", {})


def test_masks_depend_on_epoch_index_and_source(items):
    data = pickle.loads(pickle.dumps(items.corpus("a red dog the cat . " * 10)))
    assert data[ItemKey(1, 0)].masked_token_index.tolist() == data[ItemKey(1, 0)].masked_token_index.tolist()
    seen = {tuple(data[ItemKey(*key)].masked_token_index.tolist()) for key in ((0, 0), (1, 0), (0, 0, 1))}
    assert len(seen) == 3


def test_a_batch(items):
    data = items.corpus("the dog\na red cat")
    batch = collate([load(data, 0, HIDDEN, KEPT), load(data, 1, KEPT, KEPT, HIDDEN)], PretrainBatch)
    assert (batch.num_images, batch.text.lengths.sizes) == (0, (2, 3))
    assert (batch.masked_token_index.values.tolist(), batch.masked_token_index.lengths.sizes) == (
        [0, 4],
        (1, 1),
    )
    assert batch.region_labels.shape == (0, CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"TRAIN_ANNOTATION_FILE": names}, r'DATASET\.TRAIN_ANNOTATION_FILE: ".*": must name a text file')
            for names in ("", "a.doc+", "+a.doc", "a.doc++b.doc")
        ),
        ({"split": "test"}, "DATASET: pre-training has no test split"),
    ],
)
def test_wrong_configuration(items, changes, message):
    with pytest.raises(ConfigError, match=message):
        items.corpus("the dog", **changes)


def test_wrong_files(items):
    with pytest.raises(DataError, match=r"nowhere\.doc: cannot be read"):
        items.corpus(TRAIN_ANNOTATION_FILE=f"{items.root}/nowhere.doc")
    with pytest.raises(DataError, match=r"text0\.doc.*has no text"):
        items.corpus("\n \n")
    items.corpus("the dog\n")
    (items.root / "latin.doc").write_bytes(b"the dog\n\n\xe4 cat\n")
    data = items.corpus(TRAIN_ANNOTATION_FILE=f"{items.root}/text0.doc+{items.root}/latin.doc")
    with pytest.raises(DataError, match=r"CorpusDataset item 2 \(record 2\): .*latin\.doc, line 3: .*UTF-8"):
        data[ItemKey(0, 2)]
