"""The bijection between parameter names in this code and names in `.model` files.

On disk, a tensor may have two names: the RoI head also `head.0.*`, the word embeddings also the decoder of the MLM
head. In this code every tensor has one name, and wrappers such as `vlbert._module` do not exist.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

ValueT = TypeVar("ValueT")


ROI_HEAD = "roi_head_feature_extractor."
ROI_HEAD_ALIAS = "head.0."
WORD_TABLE = "word_embeddings.weight"
MLM_HEAD = "mlm_head.predictions."
DECODER = MLM_HEAD + "decoder.weight"
WRAPPER = "module."


def strip_wrapper(name: str) -> str:
    """Removes the prefixes that data-parallel wrappers add."""
    while name.startswith(WRAPPER):
        name = name[len(WRAPPER) :]
    return name


@dataclass(frozen=True)
class OfficialNames:
    """Maps the names of one task's model.

    Attributes:
        prefixes: `(internal, official)` prefixes that differ; the first match counts.
    """

    prefixes: tuple[tuple[str, str], ...] = ()

    def official(self, name: str) -> str:
        for internal, official in self.prefixes:
            if name.startswith(internal):
                return official + name[len(internal) :]
        return name

    def internal(self, name: str) -> str:
        """Returns the internal name of an official one. Resolves aliases and a `module.` wrapper."""
        name = strip_wrapper(name)
        for internal, official in self.prefixes:
            if name.startswith(official):
                name = internal + name[len(official) :]
                break
        if name.endswith(DECODER):
            return name[: -len(DECODER)] + WORD_TABLE
        head, found, tail = name.rpartition(ROI_HEAD_ALIAS)
        # Aliases match whole path components, so that `mlm_head.0.` is not taken for the RoI head.
        if found and (head == "" or head.endswith(".")):
            return head + ROI_HEAD + tail
        return name

    def to_official(self, state: Mapping[str, ValueT]) -> dict[str, ValueT]:
        """Converts internal to official names, with aliases, in the official order."""
        entries = [(self.official(name), value) for name, value in state.items()]
        tensors = dict(entries)
        roi_head = [
            (name.replace(ROI_HEAD, ROI_HEAD_ALIAS), value) for name, value in entries if ROI_HEAD in name
        ]
        entries = _insert_after_group(entries, ROI_HEAD, roi_head)
        mlm_heads = {name.split(MLM_HEAD)[0] for name, _ in entries if MLM_HEAD in name}
        decoders = [(prefix + DECODER, tensors[prefix + WORD_TABLE]) for prefix in mlm_heads]
        return dict(_insert_after_group(entries, MLM_HEAD, decoders))

    def from_official(self, state: Mapping[str, ValueT], known: Collection[str]) -> dict[str, ValueT]:
        """Converts official to internal names. Of two aliases the later counts, as in the reference.

        Names that do not map to one of `known` are kept, for the caller to report.
        """
        result: dict[str, ValueT] = {}
        for name, value in state.items():
            internal = self.internal(name)
            result[internal if internal in known else name] = value
        return result


def _insert_after_group(
    entries: list[tuple[str, ValueT]], group: str, aliases: list[tuple[str, ValueT]]
) -> list[tuple[str, ValueT]]:
    """Inserts aliases after the last entry whose name contains `group`, the position that they have in the files."""
    if not aliases:
        return entries
    end = max(i for i, (name, _) in enumerate(entries) if group in name) + 1
    return [*entries[:end], *aliases, *entries[end:]]
