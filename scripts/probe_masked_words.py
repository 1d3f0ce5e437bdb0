"""What does the picture tell? Hides one word per caption and asks a pre-trained model for it.

`python scripts/probe_masked_words.py --cfg YAML --ckpt CHECKPOINT --words red,green,car [--blank-regions]`

In every caption of the split that has one of the words, one of them (of several the same in every run) becomes
`[MASK]`; no region is hidden. Printed, and written as json to the result folder, is how often the model's best word
is the hidden one, overall and for each word. `--blank-regions` hides all regions and the whole image, as the model is
used to it: what is then still right, the other words and the places of the boxes have told. A word of several pieces
counts as right when all pieces are; their number is a hint that needs no picture.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from common.cli.evaluate import checkpoint_parser, load_evaluation, setup_eval
from common.cli.run import run
from common.config.fields import Split
from common.data.masking import MaskedText
from common.data.tokenizer import Tokenizer
from common.distributed import process_group as distributed
from common.errors import ConfigError, DataError, UsageError
from common.evaluation.checkpoints import predict_split
from common.evaluation.outputs import write_json
from common.training.task import AnyPredictingTask
from pretrain.captions import CaptionDataset, CocoCaptionDataset, PictureDataset
from pretrain.config import PretrainConfig
from pretrain.dataset import PretrainBatch, PretrainSample
from pretrain.model import PretrainOutputs
from pretrain.task import PretrainTask


class Probed(PictureDataset):
    """Hides one of some words in each caption.

    Attributes:
        words: those that may be hidden.
        blank: whether all regions are hidden as well.
    """

    words: frozenset[str] = frozenset()
    blank = False

    def masked(self, words: Sequence[str], rng: random.Random) -> MaskedText:
        """Masks one of the probed words, none where there is none."""
        found = [place for place, word in enumerate(words) if word in self.words]
        chosen = rng.choice(found) if found else -1
        text = MaskedText([], [], [])
        for place, word in enumerate(words):
            pieces = self._tokenizer.word_ids(word)
            if place == chosen:
                text.places.extend(range(len(text.ids), len(text.ids) + len(pieces)))
                text.labels.extend(pieces)
                pieces = (self._tokenizer.mask_id,) * len(pieces)
            text.ids.extend(pieces)
        return text

    def load(self, index: int, rng: random.Random) -> PretrainSample:
        """Reads one picture."""
        sample = super().load(index, rng)
        if not self.blank:
            return sample
        masked_pixel_boxes = sample.masked_pixel_boxes
        if masked_pixel_boxes is not None:
            width, height = sample.im_info[:2].long().tolist()
            masked_pixel_boxes = torch.tensor([[0, 0, width - 1, height - 1]])
        return dataclasses.replace(
            sample, hidden=torch.ones_like(sample.hidden), masked_pixel_boxes=masked_pixel_boxes
        )


class ProbedCaptions(Probed, CaptionDataset):
    """Conceptual Captions."""


class ProbedCocoCaptions(Probed, CocoCaptionDataset):
    """Captions of COCO."""


class ProbeTask(PretrainTask):
    """Pre-training's model, asked for one word of each caption."""

    def __init__(self, config: PretrainConfig, words: Sequence[str], blank: bool) -> None:
        size = config.VAL.batch_sizes[0]  # the texts beside the captions are not read
        super().__init__(
            config.model_copy(update={"VAL": config.VAL.model_copy(update={"BATCH_IMAGES": size})})
        )
        self._words_of = {self.tokenizer.word_ids(word): word for word in words}
        self._blank = blank

    def build_datasets(self, split: Split) -> Sequence[Probed]:
        """Opens the captions; each is the picture's own, and no region is hidden by chance."""
        data, network = self.config.datasets[0], self.config.NETWORK
        kept = {"WITH_REL_LOSS": False, "WITH_MVRC_LOSS": False}
        config = self.config.model_copy(update={"NETWORK": network.model_copy(update=kept)})
        kind = ProbedCocoCaptions if data.DATASET == "coco_captions" else ProbedCaptions
        dataset = kind(config, data, split, self.tokenizer)
        dataset.words, dataset.blank = frozenset(self._words_of.values()), self._blank
        return [dataset]

    def predictions(self, outputs: PretrainOutputs, batch: PretrainBatch) -> list[dict[str, Any]]:
        """The hidden word of each caption, empty where there is none, and whether the model's best word is it."""
        assert outputs.word_logits is not None
        labels = batch.word_labels.tolist()
        hits = (outputs.word_logits.argmax(1) == batch.word_labels).tolist()
        records, start = [], 0
        for size in batch.masked_token_index.lengths.sizes:
            end = start + size
            word = self._words_of.get(tuple(labels[start:end]), "")
            records.append({"word": word, "right": all(hits[start:end])})
            start = end
        return records


def read_words(given: str, tokenizer: Tokenizer) -> list[str]:
    """Words of `--words`, a file or a comma list, as the tokenizer spells them.

    Raises:
        UsageError: there is none, one is no single known word, or the file is no text.
    """
    try:  # os.path, as a long list is no path that pathlib would ask about
        text = Path(given).read_text(encoding="utf-8") if os.path.isfile(given) else given
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--words: {given}: cannot be read as text in UTF-8 ({error})") from error
    words = []
    for part in text.replace(",", " ").split():
        spelt = tokenizer.basic(part)
        if len(spelt) != 1 or tokenizer.unk_id in tokenizer.word_ids(spelt[0]):
            raise UsageError(f'--words: "{part}" is not one word of the vocabulary (NETWORK.BERT_MODEL_NAME)')
        words += spelt
    if not words:
        raise UsageError(f'--words: "{given}" names no word; give a file, or words with commas between them')
    return words


def main() -> None:
    """Reads the command line, probes the model, and writes and prints what it restored."""
    flags = checkpoint_parser(
        "Ask a pre-trained model for one hidden word per caption.",
        "split of the captions, train or val (default: VAL_IMAGE_SET)",
    )
    flags.add_argument("--words", required=True, help="words to hide: a file, or a list with commas")
    flags.add_argument("--blank-regions", action="store_true", help="hide all regions as well")
    args = flags.parse_args()
    base, checkpoint, folder = load_evaluation(args, PretrainTask, "val")
    config = base.config
    base.require_heads()
    if not config.NETWORK.WITH_MLM_LOSS:
        raise ConfigError("NETWORK.WITH_MLM_LOSS: false: this model does not restore words")
    task = ProbeTask(config, read_words(args.words, base.tokenizer), args.blank_regions)
    device, precision = setup_eval(args, config.GPUS)
    found: dict[str, list[bool]] = defaultdict(list)
    for record in predict_split(cast(AnyPredictingTask, task), checkpoint, "val", device, precision):
        if record["word"]:
            found[record["word"]].append(record["right"])
    if not found:
        raise DataError(f"--words: no caption of {config.datasets[0].VAL_IMAGE_SET} has one of them")
    rows = [("overall", [hit for hits in found.values() for hit in hits]), *sorted(found.items())]
    name = f"{args.result_name or config.MODEL_PREFIX}_probe{'_blank' if args.blank_regions else ''}.json"
    write_json(folder / name, [{"word": word, "right": sum(hits), "count": len(hits)} for word, hits in rows])
    if distributed.is_main():
        sys.stdout.writelines(f"{w}\t{sum(hits) / len(hits):.6f}\t{len(hits)}\n" for w, hits in rows)


if __name__ == "__main__":
    sys.exit(run(main))
