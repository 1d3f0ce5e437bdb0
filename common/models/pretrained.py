"""Loading weight files: BERT, ResNet and VL-BERT, each with a report; see "Loading rules" in `docs/model.md`."""

from __future__ import annotations

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.config.schema import ExperimentConfig
from common.errors import CheckpointError
from common.models.fast_rcnn import FastRCNN
from common.models.official_names import DECODER, WORD_TABLE, OfficialNames, strip_wrapper
from common.models.visual_linguistic_bert import VisualLinguisticBert

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]
"""Tensors by name, as a file spells it."""


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from a weight file.

    Attributes:
        what: kind of file.
        source: path of the file.
        loaded: names in the model that were loaded.
        missing: names in the model that keep their values.
        unused: names in the file that were not used.
    """

    what: str
    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.what} from {self.source}: {len(self.loaded)} entries loaded, "
            f"{len(self.missing)} of the model not in the file, {len(self.unused)} of the file not used"
        )

    def details(self) -> str:
        """Returns the report with every name on its own line."""
        lines = [str(self)]
        for title, names in (("loaded", self.loaded), ("missing", self.missing), ("unused", self.unused)):
            lines += [f"{title}: {name}" for name in names]
        return "\n".join(lines) + "\n"


def some(names: Collection[str], limit: int = 4) -> str:
    """Returns the first few names and the number of others."""
    shown = ", ".join(list(names)[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_weights(path: str | Path, key: str = "") -> dict[str, Any]:
    """Reads a `.model` or `.bin` file. Only tensors and plain values are loaded, never code.

    Args:
        path: the file, in either of PyTorch's formats.
        key: config key or flag that names the file, for messages.

    Raises:
        CheckpointError: the file is missing, truncated, of another kind, or contains code.
    """
    path = Path(path)
    named = f"{key}: {path}" if key else str(path)
    if not path.is_file():
        raise CheckpointError(f"{named}: no such file; give the path of a weight file or checkpoint")
    try:
        with warnings.catch_warnings():
            # About pickles of other programs, which are rejected below.
            warnings.simplefilter("ignore", UserWarning)
            # mmap: a rank reads only the tensors that it copies, and the page cache is shared between ranks.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if _is_pickle(path) and re.search(r"(?i)unsupported (global|class|operand)", str(error)):
            raise CheckpointError(
                f"{named}: refused, the file holds Python objects that loading would run; "
                "a checkpoint holds only tensors and plain values"
            ) from None
        raise CheckpointError(f"{named}: truncated, or not a PyTorch file; get it again") from None
    except Exception:  # random bytes raise arbitrary exceptions
        raise CheckpointError(f"{named}: truncated, or not a PyTorch file; get it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{named}: holds a {type(content).__name__}, expected a dictionary of tensors")
    return content


def _is_pickle(path: Path) -> bool:
    """Returns whether a file is a pickle, bare or inside the zip of a PyTorch file."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def weights_of(content: Mapping[str, Any], source: str) -> Weights:
    """Returns the tensors of a checkpoint (`state_dict`) or of a plain weight file."""
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{source}: 'state_dict' is a {type(state).__name__}, expected a dictionary")
    weights = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{source}: holds no tensor; expected a dictionary of weights")
    return weights


@torch.no_grad()
def _copy(model: nn.Module, values: Mapping[str, Tensor], source: str, names: OfficialNames) -> None:
    """Copies tensors into the model, all or none. Half precision is converted."""
    # Check every shape first: a model that is half loaded would look like a random one.
    state = model.state_dict()
    wrong = [
        f"{names.official(name)} is {tuple(value.shape)} in the file and {tuple(state[name].shape)} here"
        for name, value in values.items()
        if value.shape != state[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{source}: shapes differ from the configured model: {some(wrong)}")
    for name, value in values.items():
        state[name].copy_(value)


def load_state(model: nn.Module, weights: Mapping[str, Tensor], names: OfficialNames, source: str) -> None:
    """Loads a complete checkpoint: exactly the names of the model.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes differ.
    """
    state = model.state_dict()
    values = names.from_official(weights, state)
    missing = [names.official(name) for name in state if name not in values]
    unknown = [name for name in values if name not in state]
    if missing or unknown:
        parts = [f"{len(missing)} names of the model are missing: {some(missing)}"] * bool(missing)
        parts += [f"{len(unknown)} names of the file are unknown: {some(unknown)}"] * bool(unknown)
        raise CheckpointError(f"{source}: does not belong to the configured model; {'; '.join(parts)}")
    _copy(model, values, source, names)


def rename_prefixes(weights: Mapping[str, Tensor], rules: Sequence[str], source: str) -> Weights:
    """Applies `old->new` prefix rules; the first match of each name counts.

    Raises:
        CheckpointError: no rule matches any name.
    """
    pairs = [tuple(rule.split("->", 1)) for rule in rules]
    renamed, hits = {}, 0
    for name, value in weights.items():
        target = name
        for old, new in pairs:
            if name.startswith(old):
                target, hits = new + name[len(old) :], hits + 1
                break
        renamed[target] = value
    if pairs and not hits:
        raise CheckpointError(
            f"{source}: no rule of NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES matches any of its names "
            f"({some(list(weights))}); it is not a checkpoint that these rules are for"
        )
    return renamed


def load_matching(
    model: nn.Module, weights: Mapping[str, Tensor], names: OfficialNames, source: str
) -> LoadReport:
    """Loads the names that model and file share.

    Raises:
        CheckpointError: nothing matches, or a shape differs.
    """
    state = model.state_dict()
    values = names.from_official(weights, state)
    shared = {name: value for name, value in values.items() if name in state}
    if not shared:
        raise CheckpointError(
            f"{source}: none of its {len(weights)} names belongs to the model ({some(list(weights))}); "
            "see NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES"
        )
    _copy(model, shared, source, names)
    return LoadReport(
        "partial pre-training",
        source,
        loaded=tuple(names.official(name) for name in shared),
        missing=tuple(names.official(name) for name in state if name not in shared),
        unused=tuple(strip_wrapper(name) for name in values if name not in state),
    )


_LANGUAGE_NAMES = (
    ("embeddings.LayerNorm.", "embedding_LayerNorm."),
    ("embeddings.", ""),
    ("cls.seq_relationship.", "relationsip_head.caption_image_relationship."),
    ("cls.predictions.", "mlm_head.predictions."),
    ("lm_head.dense.", "mlm_head.predictions.transform.dense."),
    ("lm_head.layer_norm.", "mlm_head.predictions.transform.LayerNorm."),
    ("lm_head.", "mlm_head.predictions."),
)


def language_name(name: str) -> str:
    """Returns the internal name of an entry of a BERT or RoBERTa file, in old or new spelling."""
    name = strip_wrapper(name)
    for prefix in ("bert.", "roberta."):
        name = name.removeprefix(prefix)
    name = name.replace("gamma", "weight").replace("beta", "bias")
    for theirs, ours in _LANGUAGE_NAMES:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def _type_rows(ours: Tensor, theirs: Tensor) -> Tensor:
    """Copies segment embeddings into a larger table. A single row (RoBERTa) fills all segments."""
    if theirs.shape[0] == 1:
        return theirs.expand_as(ours)
    return torch.cat([theirs, ours[theirs.shape[0] :].to(theirs.dtype)])


def load_language_model(
    model: VisualLinguisticBert, weights: Mapping[str, Tensor], source: str
) -> LoadReport:
    """Loads the transformer from a BERT file.

    Raises:
        CheckpointError: the file is of another kind, its encoder or head is incomplete, or a table has another size
            than configured.
    """
    state = model.state_dict()
    values = {language_name(name): value for name, value in weights.items()}
    # The decoder is tied to the word embeddings. Where a file has both, the decoder counts, as in the reference.
    if DECODER in values and any(name.startswith("mlm_head.") for name in state):
        values[WORD_TABLE] = values.pop(DECODER)
    types = "token_type_embeddings.weight"
    if types in values and values[types].shape[0] <= state[types].shape[0]:
        values[types] = _type_rows(state[types], values[types])
    shared = {name: value for name, value in values.items() if name in state}
    if not shared:
        raise CheckpointError(f"{source}: none of its names is one of a BERT file ({some(list(weights))})")
    # Without these, a file would silently leave a part random. Pooler and relationship head are optional, but whole.
    required = ["embedding_LayerNorm.", "encoder.", "word_embeddings.", "position_embeddings.", "mlm_head."]
    required += [part for part in ("pooler.", "relationsip_head.") if any(k.startswith(part) for k in shared)]
    missing = [name for name in state if name not in shared]
    incomplete = [name for name in missing if name.startswith(tuple(required))]
    if incomplete:
        raise CheckpointError(
            f"{source}: not a complete BERT file for this model, it lacks {some(incomplete)}"
        )
    _copy(model, shared, source, OfficialNames())
    model.copy_special_words()
    unused = tuple(name for name in weights if language_name(name) not in shared and DECODER not in name)
    return LoadReport("language model", source, tuple(shared), tuple(missing), unused)


def load_image_backbone(model: FastRCNN, weights: Mapping[str, Tensor], source: str) -> LoadReport:
    """Loads backbone and RoI head from a ResNet file with torchvision's names.

    Raises:
        CheckpointError: the file is of another kind, `layer4` is incomplete, or depth or width differ.
    """
    state = model.state_dict()
    values = {}
    for name, value in weights.items():
        plain = strip_wrapper(name).removeprefix("backbone.")
        head = plain.startswith("layer4.")
        ours = f"roi_head_feature_extractor.{plain[7:]}" if head else f"backbone.{plain}"
        values[ours if ours in state else name] = value
    shared = {name: value for name, value in values.items() if name in state}
    if not shared:
        raise CheckpointError(f"{source}: none of its names is one of a ResNet file ({some(list(weights))})")
    parts = ("backbone.", "roi_head_feature_extractor.")
    missing = [
        name
        for name in state
        if name.startswith(parts) and name not in shared and not name.endswith("num_batches_tracked")
    ]
    incomplete = [name for name in missing if name.startswith(parts[1])]
    if incomplete:
        raise CheckpointError(f"{source}: layer4 is incomplete for this ResNet, it lacks {some(incomplete)}")
    if missing:
        logger.warning(
            "%s: %d entries of the trunk are not in the file: %s", source, len(missing), some(missing)
        )
    _copy(model, shared, source, OfficialNames())
    unused = tuple(name for name in values if name not in state)
    return LoadReport("image backbone", source, tuple(shared), tuple(missing), unused)


def language_file(config: ExperimentConfig) -> tuple[str, Path] | None:
    """Returns the config key and path of the BERT file, or None."""
    network = config.NETWORK
    if network.BERT_PRETRAINED:
        path = Path(f"{network.BERT_PRETRAINED}-{network.BERT_PRETRAINED_EPOCH:04d}.model")
        return "NETWORK.BERT_PRETRAINED", path
    path = Path(network.BERT_MODEL_NAME) / "pytorch_model.bin"
    return ("NETWORK.BERT_MODEL_NAME", path) if path.is_file() else None


def load_base_models(
    vlbert: VisualLinguisticBert, images: FastRCNN | None, config: ExperimentConfig
) -> list[LoadReport]:
    """Loads the configured BERT and ResNet files into a new model."""
    reports = []
    language = language_file(config)
    if getattr(config.NETWORK.VLBERT, "from_scratch", False):  # exists in pre-training only
        logger.info("NETWORK.VLBERT.from_scratch: true; the language model starts from random values")
    elif language is None:
        logger.warning(
            "NETWORK.BERT_MODEL_NAME: no pytorch_model.bin in %s; the language model starts from random values",
            config.NETWORK.BERT_MODEL_NAME,
        )
    else:
        key, path = language
        weights = weights_of(read_weights(path, key), str(path))
        reports.append(load_language_model(vlbert, weights, str(path)))
    if images is None or not images.has_pixels:
        return reports
    stem = config.NETWORK.IMAGE_PRETRAINED
    if not stem:
        logger.warning("NETWORK.IMAGE_PRETRAINED is empty; the image backbone starts from random values")
        return reports
    path = Path(f"{stem}-{config.NETWORK.IMAGE_PRETRAINED_EPOCH:04d}.model")
    weights = weights_of(read_weights(path, "NETWORK.IMAGE_PRETRAINED"), str(path))
    reports.append(load_image_backbone(images, weights, str(path)))
    return reports
