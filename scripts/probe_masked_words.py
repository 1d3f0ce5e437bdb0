"""Measures how much a pre-trained model relies on the image to predict masked words.

`python scripts/probe_masked_words.py --cfg YAML --ckpt CHECKPOINT --words red,green,car [--blank-regions]`

In every caption that contains one of the words, one occurrence (the same in every run) is replaced by `[MASK]`; no
region is masked. The script prints the accuracy, overall and per word, and writes it as json to the result folder.
With `--blank-regions` all regions and the whole image are masked as in pre-training, so only the other words and the
box coordinates remain as input. A word of several pieces is correct if all its pieces are; their number is a hint that
does not need the image.
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

from common.cli.evaluate import checkpoint_parser, load_evaluation
from common.cli.run import run
from common.config.fields import Split
from common.data.masking import MaskedText
from common.data.tokenizer import Tokenizer
from common.distributed import process_group as distributed
from common.errors import ConfigError, DataError, UsageError
from common.evaluation.checkpoints import Evaluation
from common.evaluation.outputs import write_json
from common.training.task import AnyPredictingTask
from pretrain.captions import CaptionDataset, CaptionedImages, CocoCaptionDataset
from pretrain.config import PretrainConfig
from pretrain.dataset import PretrainBatch, PretrainSample
from pretrain.model import PretrainOutputs
from pretrain.task import PretrainTask


class ProbeDataset(CaptionedImages):
    """Masks one of the given words in each caption.

    Attributes:
        words: words that may be masked.
        blank: also mask all regions.
    """

    words: frozenset[str] = frozenset()
    blank = False

    def mask_text(self, words: Sequence[str], rng: random.Random) -> MaskedText:
        """Masks one occurrence of the probed words, if there is any."""
        candidates = [index for index, word in enumerate(words) if word in self.words]
        masked_index = rng.choice(candidates) if candidates else -1
        text = MaskedText([], [], [])
        for index, word in enumerate(words):
            pieces = self._tokenizer.word_ids(word)
            if index == masked_index:
                text.masked_positions.extend(range(len(text.ids), len(text.ids) + len(pieces)))
                text.labels.extend(pieces)
                pieces = (self._tokenizer.mask_id,) * len(pieces)
            text.ids.extend(pieces)
        return text

    def load(self, index: int, rng: random.Random) -> PretrainSample:
        sample = super().load(index, rng)
        if not self.blank:
            return sample
        masked_pixel_boxes = sample.masked_pixel_boxes
        if masked_pixel_boxes is not None:
            width, height = sample.im_info[:2].long().tolist()
            masked_pixel_boxes = torch.tensor([[0, 0, width - 1, height - 1]])
        return dataclasses.replace(
            sample,
            masked_regions=torch.ones_like(sample.masked_regions),
            masked_pixel_boxes=masked_pixel_boxes,
        )


class ConceptualCaptionsProbe(ProbeDataset, CaptionDataset):
    pass


class CocoCaptionsProbe(ProbeDataset, CocoCaptionDataset):
    pass


class ProbeTask(PretrainTask):
    """Predicts one masked word per caption."""

    def __init__(self, config: PretrainConfig, words: Sequence[str], blank: bool) -> None:
        size = config.VAL.batch_sizes[0]  # the text corpus is not read
        super().__init__(
            config.model_copy(update={"VAL": config.VAL.model_copy(update={"BATCH_IMAGES": size})})
        )
        self._words_of = {self.tokenizer.word_ids(word): word for word in words}
        self._blank = blank

    def build_datasets(self, split: Split) -> Sequence[ProbeDataset]:
        """Builds the caption dataset, without random captions of other images and without masked regions."""
        data, network = self.config.datasets[0], self.config.NETWORK
        no_losses = {"WITH_REL_LOSS": False, "WITH_MVRC_LOSS": False}
        config = self.config.model_copy(update={"NETWORK": network.model_copy(update=no_losses)})
        dataset_class = CocoCaptionsProbe if data.DATASET == "coco_captions" else ConceptualCaptionsProbe
        dataset = dataset_class(config, data, split, self.tokenizer)
        dataset.words, dataset.blank = frozenset(self._words_of.values()), self._blank
        return [dataset]

    def predictions(self, outputs: PretrainOutputs, batch: PretrainBatch) -> list[dict[str, Any]]:
        """Returns the masked word of each caption, empty if there is none, and whether the prediction is right."""
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


def read_words(argument: str, tokenizer: Tokenizer) -> list[str]:
    """Returns the normalized words of `--words`, which is a file or a comma-separated list.

    Raises:
        UsageError: there is no word, one is not a single word of the vocabulary, or the file is not text.
    """
    try:  # pathlib's `is_file` raises an error if a long list exceeds the maximum length of a path
        text = Path(argument).read_text(encoding="utf-8") if os.path.isfile(argument) else argument
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--words: {argument}: cannot be read as text in UTF-8 ({error})") from error
    words = []
    for part in text.replace(",", " ").split():
        normalized = tokenizer.basic(part)
        if len(normalized) != 1 or tokenizer.unk_id in tokenizer.word_ids(normalized[0]):
            raise UsageError(
                f'--words: "{part}" is not a single word of the vocabulary (NETWORK.BERT_MODEL_NAME)'
            )
        words += normalized
    if not words:
        raise UsageError(f'--words: "{argument}" contains no word; give a file or a comma-separated list')
    return words


def main() -> None:
    """Parses the command line, probes the model, prints the accuracies and writes them."""
    flags = checkpoint_parser(
        "Measure how much a pre-trained model relies on the image to predict masked words.",
        "split of the captions, train or val (default: VAL_IMAGE_SET)",
    )
    flags.add_argument("--words", required=True, help="words to mask: a file or a comma-separated list")
    flags.add_argument("--blank-regions", action="store_true", help="also mask all regions")
    args = flags.parse_args()
    evaluation = load_evaluation(args, PretrainTask, "val")
    base, config = evaluation.task, evaluation.task.config
    base.require_heads()
    if not config.NETWORK.WITH_MLM_LOSS:
        raise ConfigError("NETWORK.WITH_MLM_LOSS: false: this model does not predict words")
    task = ProbeTask(config, read_words(args.words, base.tokenizer), args.blank_regions)
    # ProbeTask predicts without being a PredictingTask.
    probe = cast("Evaluation[AnyPredictingTask]", dataclasses.replace(evaluation, task=task))
    results: dict[str, list[bool]] = defaultdict(list)
    for record in probe.predict("val"):
        if record["word"]:
            results[record["word"]].append(record["right"])
    if not results:
        raise DataError(f"--words: no caption of {config.datasets[0].VAL_IMAGE_SET} contains any of them")
    rows = [("overall", [hit for hits in results.values() for hit in hits]), *sorted(results.items())]
    name = f"{args.result_name or config.MODEL_PREFIX}_probe{'_blank' if args.blank_regions else ''}.json"
    write_json(
        evaluation.output_dir / name,
        [{"word": word, "right": sum(hits), "count": len(hits)} for word, hits in rows],
    )
    if distributed.is_main():
        sys.stdout.writelines(f"{w}\t{sum(hits) / len(hits):.6f}\t{len(hits)}\n" for w, hits in rows)


if __name__ == "__main__":
    sys.exit(run(main))
