"""Pre-training in the terms of the reference: masked captions of pictures, and behind them texts alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from common.batch import Lengths, Ragged, Sample, TextSequence
from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.data.loader import BatchLoader, build_loader
from common.data.samplers import EpochBatches
from common.models.visual_linguistic_bert import Encoded
from pretrain.config import ATTENTION, COCO_CLASSES, MULTITASK, SINGLE
from pretrain.dataset import PretrainBatch
from pretrain.model import PretrainOutputs
from pretrain.task import PretrainTask
from tests.golden.adapter import Adapter, AnyTask, Arrays, Datasets, padded, placed, region_features
from tests.golden.harness import Report, layer_states

RULE_ALL_HIDDEN = "nothing is left of a whole image all of whose regions are hidden: zeros"
RULE_CUT = "a caption that is cut keeps its [SEP]"

COCO, TEXTS = "coco_captions", "general_corpus"
FOLDERS = {"conceptual_captions": "conceptual-captions", COCO: "coco", TEXTS: "en_corpus"}
# Pictures with captions, which stand first where texts alone are read.
CAPTIONS = {"DATASET": "conceptual_captions", "TRAIN_IMAGE_SET": "train", "VAL_IMAGE_SET": "val"}
LOSSES = ("NETWORK.WITH_REL_LOSS", "NETWORK.WITH_MLM_LOSS", "NETWORK.WITH_MVRC_LOSS")

Row = tuple[np.ndarray, np.ndarray]


def rows_of(arrays: Arrays) -> list[Row]:
    """Ids and labels of every text, those of pictures first; padding is what stands behind the last of them."""
    names = [name for name in arrays if name.endswith("text")]
    rows = []
    for name in sorted(names, key=lambda name: (name != "text", int(re.sub(r"\D", "", name) or 0))):
        labels = arrays[name.removesuffix("text") + "mlm_labels"]
        for ids, wanted in zip(np.atleast_2d(arrays[name]), np.atleast_2d(labels), strict=True):
            length = np.flatnonzero((ids > 0) | (wanted >= 0)).max(initial=-1) + 1
            rows.append((ids[:length], wanted[:length]))
    return rows


def in_one_table(arrays: Arrays) -> dict[str, np.ndarray]:
    """The arrays with the texts alone of several datasets in one table, as our batches have them."""
    names = [name for name in arrays if name.startswith("aux")]
    others = {name: value.copy() for name, value in arrays.items() if name not in names}
    if not names:
        return others
    rows = rows_of({name: arrays[name] for name in names})
    width = max(len(ids) for ids, _ in rows)
    columns = zip(("aux_text", "aux_mlm_labels"), (0, -1), zip(*rows, strict=True), strict=True)
    return others | {
        name: np.stack([np.pad(row, (0, width - len(row)), constant_values=fill) for row in column])
        for name, fill, column in columns
    }


def counted(per_row: list[int], values: np.ndarray) -> Ragged:
    return Ragged(Lengths.of(per_row), torch.from_numpy(values))


def word_table(batch: PretrainBatch, rows: slice, width: int | None = None) -> np.ndarray:
    """Labels (rows, width) of the words of some texts, -1 where there is none; width of the longest by default."""
    lengths = batch.text.lengths
    table = torch.full((len(lengths), lengths.longest), -1)
    places = batch.masked_token_index.values
    table[lengths.rows()[places], lengths.positions()[places]] = batch.word_labels
    longest = max(lengths.sizes[rows], default=0)
    table = table[rows, :longest].numpy()
    return np.pad(table, ((0, 0), (0, (width or longest) - longest)), constant_values=-1)


def region_table(batch: PretrainBatch) -> Tensor:
    """Class scores (K, C) of all boxes, zero where they are no label."""
    table = torch.zeros(batch.num_boxes.total, batch.region_labels.shape[1])
    return table.index_copy(0, batch.masked_region_index.values, batch.region_labels)


class EncodedLayers(NamedTuple):
    """An encoding, and the (S, H) states of every layer."""

    encoded: Encoded
    layers: Sequence[Tensor]


def attention(encoded: Encoded, layers: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """(B, L, A, S, S) maps and (B, L, S, H) states of all layers; masked behind the rows."""
    lengths = encoded.packing.lengths
    real = np.arange(lengths.longest) < np.array(lengths.sizes)[:, None]
    maps = torch.stack(encoded.output.attention, dim=1).detach().numpy()
    pairs = np.broadcast_to((real[:, :, None] & real[:, None, :])[:, None, None], maps.shape)
    states = torch.stack(list(layers), dim=1)
    return {
        "attention_probs": np.ma.masked_array(maps, ~pairs),
        "hidden_states": placed(states, real).swapaxes(1, 2),
    }


def over(everywhere: Tensor | None, places: Ragged, at_places: Tensor | None) -> Tensor | None:
    """`everywhere` with the rows at these places replaced."""
    if everywhere is None or at_places is None:
        return None
    return everywhere.index_copy(0, places.values, at_places)


class PretrainAdapter(Adapter):
    """Hidden words and regions."""

    task_class, batch_class = PretrainTask, PretrainBatch
    data_folder, dataset = "conceptual-captions", "conceptual_captions"
    text = "text"
    rule_masked = "slots behind the tokens and regions of a row hold nothing of it"
    rule_changed = "without texts alone the reference ignores this key"
    losses = ("relationship_loss", "mlm_loss", "mlm_loss_wvc", "mlm_loss_aux", "mvrc_loss")

    # --- Models ---------------------------------------------------------------------------------------------

    def network_changes(self, config: ExperimentConfig) -> dict[str, Any]:
        network = config.NETWORK
        ignored = config.MODULE == SINGLE and not network.IMAGE_FEAT_PRECOMPUTED
        return {"MASK_RAW_PIXELS": True} if ignored and not network.MASK_RAW_PIXELS else {}

    def sequences(self, task: AnyTask, arrays: Arrays) -> list[list[TextSequence]]:
        return [[TextSequence.plain(ids)] for ids, _ in rows_of(arrays)]

    def fields(self, arrays: Arrays, real: np.ndarray) -> dict[str, Any]:
        rows = rows_of(arrays)
        alone = [0] * (len(rows) - len(real))
        labels = np.concatenate([labels for _, labels in rows])
        scores = arrays["mvrc_labels"]
        labelled = scores.any(-1) & real
        masked_pixel_boxes = (
            counted([0] * len(rows), np.zeros((0, 4), np.int64)) if "image" in arrays else None
        )
        return {
            "box_features": region_features(arrays, real),
            "relationship": torch.from_numpy(arrays["relationship_label"]),
            "masked_token_index": counted(
                [int((row >= 0).sum()) for _, row in rows], np.flatnonzero(labels >= 0)
            ),
            "word_labels": torch.from_numpy(labels[labels >= 0]),
            "masked_region_index": counted(
                [*labelled.sum(1).tolist(), *alone], np.flatnonzero(labelled[real])
            ),
            "region_labels": torch.from_numpy(scores[labelled]),
            "masked_regions": torch.from_numpy(arrays["mvrc_ops"][real] == 1),
            "masked_pixel_boxes": masked_pixel_boxes,  # the reference's pictures are blank already
        }

    def everywhere(self, model: nn.Module, batch: Any, outputs: Any) -> Any:
        """Logits of all tokens and boxes; at labelled places those that the losses saw."""
        if isinstance(outputs, Encoded):
            with layer_states(model.vlbert.encoder) as layers:
                return EncodedLayers(model(batch), layers)
        bert, encoded = model.vlbert, model.encode(batch, model.region_features(batch))
        words = regions = None
        if outputs.word_logits is not None:
            words = bert.mlm_head(encoded.text(), bert.word_embeddings.weight)
        if outputs.region_logits is not None:
            regions = bert.mvrc_head(encoded.regions())
        return replace(
            outputs,
            word_logits=over(words, batch.masked_token_index, outputs.word_logits),
            region_logits=over(regions, batch.masked_region_index, outputs.region_logits),
        )

    def results(self, outputs: Any, batch: Any, arrays: Arrays) -> dict[str, np.ndarray]:
        if isinstance(outputs, EncodedLayers):
            return attention(*outputs)
        found: dict[str, np.ndarray] = {}
        if outputs.relationship_logits is not None:
            found["relationship_logits"] = outputs.relationship_logits.detach().numpy()
            found["relationship_label"] = batch.relationship.numpy()
        if outputs.word_logits is not None:
            found |= self._words(outputs, batch, arrays)
        if outputs.region_logits is not None:
            real = self.real(arrays["boxes"])
            found["mvrc_logits"] = placed(outputs.region_logits, real)
            found["mvrc_label"] = placed(region_table(batch), real).filled(0)
        return found

    def _words(self, outputs: PretrainOutputs, batch: PretrainBatch, arrays: Arrays) -> dict[str, np.ndarray]:
        """Logits and labels of words, of texts beside pictures and of texts alone."""
        width = max(value.shape[1] for name, value in arrays.items() if name.endswith("text"))
        shown = np.arange(width) < np.array(batch.text.lengths.sizes)[:, None]
        logits, count = placed(outputs.word_logits, shown), batch.num_images
        parts = {"": slice(None)}
        if len(shown) > count:
            parts = {"_wvc": slice(count), "_aux": slice(count, None)}
        found = {f"mlm_logits{suffix}": logits[rows] for suffix, rows in parts.items()}
        return found | {f"mlm_label{s}": word_table(batch, rows, width) for s, rows in parts.items()}

    # --- Data -----------------------------------------------------------------------------------------------

    def options(self, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """`DATASET` as a section, or where texts alone are read as a list whose first entry has pictures.

        A case names one dataset, or several joined with ` + ` whose options stand in `DATASET[i]`.
        """
        names = str(options["DATASET.DATASET"]).split(" + ")
        parts = [options.get(f"DATASET[{i}]", options) for i in range(len(names))]
        flat = {k: v for part in (*parts, options) for k, v in part.items() if not k.startswith("DATASET")}
        entries = [
            {k.removeprefix("DATASET."): v for k, v in part.items() if k.startswith("DATASET.")}
            | {"DATASET": name}
            for name, part in zip(names, parts, strict=True)
        ]
        if names == [TEXTS]:
            entries = [CAPTIONS, *entries]
        entries = [{"DATASET_PATH": str(folder / FOLDERS[e["DATASET"]]), **e} for e in entries]
        sizes = {f"{loop}.BATCH_IMAGES": [2] * len(entries) for loop in ("TRAIN", "VAL", "TEST")}
        several = {"MODULE": MULTITASK, **sizes, "NETWORK.IMAGE_FINAL_DIM": 768}
        several |= {"NETWORK.VLBERT.visual_size": 768, "NETWORK.VLBERT.hidden_size": 768}
        trained = any(flat.get(key, True) for key in LOSSES)
        single = {"MODULE": SINGLE if trained else ATTENTION}
        if names == [COCO]:
            single["NETWORK.VLBERT.visual_region_classes"] = COCO_CLASSES
        if len(entries) > 1:
            return {**several, "DATASET": entries, **flat}
        return {**single, "DATASET": entries[0], **flat}

    def loader(self, task: AnyTask, split: Split, datasets: Datasets) -> BatchLoader[Any]:
        """As a case of texts alone reads them, without the pictures that stand before them in a configuration."""
        if len(datasets) == 1:
            return super().loader(task, split, datasets)
        loop = task.config.loop(split)
        batches = EpochBatches(
            len(datasets[-1]), loop.batch_sizes[-1], shuffle=loop.SHUFFLE, seed=0, source=len(datasets) - 1
        )
        return build_loader(datasets, batches, batch_type=PretrainBatch, num_workers=0, pin_memory=False)

    def label(self, batch: Any) -> dict[str, np.ndarray]:
        return {}

    def batch_arrays(self, task: AnyTask, batch: Any) -> dict[str, np.ndarray]:
        count, boxes = batch.num_images, batch.num_boxes
        if not count:
            return {"mlm_labels": word_table(batch, slice(None))}
        arrays = super().batch_arrays(task, batch)
        arrays |= {
            "im_info": torch.cat([batch.im_info, batch.index[:, None]], dim=1).numpy(),
            "mvrc_ops": padded(batch.masked_regions, boxes, 0),
            "mvrc_labels": padded(region_table(batch), boxes, 0),
            "mlm_labels": word_table(batch, slice(count)),
        }
        of_pictures = {name: value[:count] for name, value in arrays.items()}
        return of_pictures | {
            "relationship_label": batch.relationship.numpy(),
            "aux_mlm_labels": word_table(batch, slice(count, None)),
        }

    def sample_texts(
        self, task: AnyTask, dataset: Any, sample: Sample, start: int
    ) -> tuple[dict[str, np.ndarray], list[TextSequence]]:
        (sequence,) = sample.texts
        return {"text": sequence.ids}, [TextSequence.plain(sequence.ids)]

    def amended(self, task: AnyTask, report: Report, what: str, actual: Arrays, expected: Arrays) -> Arrays:
        changed = in_one_table(expected)
        if "box_features" in actual and task.config.datasets[0].ADD_IMAGE_AS_A_BOX:
            self._without_noise(report, what, actual, changed)
        if task.config.datasets[0].DATASET == COCO:
            self._with_separator(task, report, what, changed)
        return changed

    @staticmethod
    def _without_noise(report: Report, what: str, actual: Arrays, expected: dict[str, np.ndarray]) -> None:
        """Zeros for the feature of a whole image if that is what we have, and all regions that are left are hidden."""
        shown = (actual["mvrc_ops"] == 0) & (actual["boxes"][..., 0] > -1.5)
        nothing = ~shown[..., 1:].any(-1) & ~actual["box_features"][..., 0, :].any(-1)
        for name, values in expected.items():
            if name.startswith("box_features") and nothing.any():
                report.skip(f"{what}.{name} of {nothing.sum()} whole images", RULE_ALL_HIDDEN)
                rows = values if nothing.ndim else values[None]
                rows[np.atleast_1d(nothing), 0] = 0

    @staticmethod
    def _with_separator(task: AnyTask, report: Report, what: str, expected: dict[str, np.ndarray]) -> None:
        """[SEP], which is no label, in the last place of captions that are cut.

        Where less than [CLS] and [SEP], or no box, is left of one, there is nothing to compare with.
        """
        boxes = expected["boxes"][..., 0] > -1.5
        lengths = [len(ids) for ids, _ in rows_of({name: expected[name] for name in ("text", "mlm_labels")})]
        if min(lengths) < 2 or not boxes.any(-1).all():
            report.skip(what, RULE_CUT)
            expected.clear()
            return
        tables = zip(np.atleast_2d(expected["text"]), np.atleast_2d(expected["mlm_labels"]), strict=True)
        for length, (ids, labels) in zip(lengths, tables, strict=True):
            if ids[length - 1] != task.tokenizer.sep_id or labels[length - 1] >= 0:
                report.skip(f"{what}, last token", RULE_CUT)
                ids[length - 1], labels[length - 1] = task.tokenizer.sep_id, -1
