"""The bijective map between our parameter names and those of `.model` files on disk (spec model.md 1).

On disk, one tensor may stand under two names: the RoI head also as `head.0.*`, the word table also as the decoder of
the masked-language head. Inside, every tensor has one name, and a wrapper such as `vlbert._module` does not exist.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
    """Removes the prefix that data-parallel wrappers add, once or several times."""
    while name.startswith(WRAPPER):
        name = name[len(WRAPPER) :]
    return name


@dataclass(frozen=True)
class OfficialNames:
    """Names of one task's model on disk.

    Attributes:
        prefixes: `(internal, official)` prefixes that differ, first match wins.
    """

    prefixes: tuple[tuple[str, str], ...] = ()

    def official(self, name: str) -> str:
        """Official name of an internal one."""
        for internal, official in self.prefixes:
            if name.startswith(internal):
                return official + name[len(internal) :]
        return name

    def internal(self, name: str) -> str:
        """Internal name of an official one; aliases and a `module.` wrapper are resolved."""
        name = strip_wrapper(name)
        for internal, official in self.prefixes:
            if name.startswith(official):
                name = internal + name[len(official) :]
                break
        if name.endswith(DECODER):
            return name[: -len(DECODER)] + WORD_TABLE
        head, found, tail = name.rpartition(ROI_HEAD_ALIAS)
        # `mlm_head.0.` must not be taken for the RoI head: the alias starts a path component.
        if found and (head == "" or head.endswith(".")):
            return head + ROI_HEAD + tail
        return name

    def to_official(self, state: Mapping[str, ValueT]) -> dict[str, ValueT]:
        """Official dictionary of an internal one, aliases included, in the official order."""
        names = {name: self.official(name) for name in state}
        entries = [(names[name], value) for name, value in state.items()]
        entries = _insert_aliases(entries, _roi_head_aliases(entries), lambda name: ROI_HEAD in name)
        entries = _insert_aliases(entries, _decoder_aliases(entries), lambda name: MLM_HEAD in name)
        return dict(entries)

    def from_official(self, state: Mapping[str, ValueT], known: Collection[str]) -> dict[str, ValueT]:
        """Internal dictionary of an official one; of two aliases the later wins, as in the reference.

        Names that do not map to one of `known` keep their name on disk, for the caller to report.
        """
        result: dict[str, ValueT] = {}
        for name, value in state.items():
            internal = self.internal(name)
            result[internal if internal in known else name] = value
        return result


def _roi_head_aliases(entries: Iterable[tuple[str, ValueT]]) -> list[tuple[str, ValueT]]:
    return [(name.replace(ROI_HEAD, ROI_HEAD_ALIAS), value) for name, value in entries if ROI_HEAD in name]


def _decoder_aliases(entries: list[tuple[str, ValueT]]) -> list[tuple[str, ValueT]]:
    heads = {name.split(MLM_HEAD)[0] for name, _ in entries if MLM_HEAD in name}
    tables = dict(entries)
    return [(prefix + DECODER, tables[prefix + WORD_TABLE]) for prefix in heads]


def _insert_aliases(
    entries: list[tuple[str, ValueT]], aliases: list[tuple[str, ValueT]], in_group: object
) -> list[tuple[str, ValueT]]:
    """Puts the aliases right behind the last entry of their group."""
    if not aliases:
        return entries
    assert callable(in_group)
    last = max(i for i, (name, _) in enumerate(entries) if in_group(name))
    return [*entries[: last + 1], *aliases, *entries[last + 1 :]]
