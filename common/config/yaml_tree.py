"""Yaml files of values: strict reading, `_BASE_`, `KEY.PATH=VALUE` overrides, and where each value came from.

Nothing here knows a key of the configuration; `common.config` checks the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError

BASE_KEY = "_BASE_"


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses duplicate keys and keys that are not text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not key_node.tag.endswith((":str", ":merge")):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key} is not text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, source: str) -> Any:
    """Parses one yaml document.

    Raises:
        ConfigError: naming `source`, the line and what is wrong.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error


class ValueTree:
    """Nested values merged from several sources.

    Attributes:
        values: the merged values.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._origins: dict[tuple[str, ...], str] = {}

    def origin(self, dotted: str, default: str) -> str:
        """Returns the file or override that set `dotted` or a section around it."""
        path = tuple(dotted.split("."))
        prefixes = (path[:length] for length in range(len(path), 0, -1))
        return next((self._origins[prefix] for prefix in prefixes if prefix in self._origins), default)

    def merge(self, values: dict[str, Any], source: str) -> None:
        """Merges sections key by key; everything else, lists included, replaces what was there."""
        self._merge(self.values, values, (), source)

    def _merge(
        self, old: dict[str, Any] | list[Any], new: dict[str, Any], path: tuple[str, ...], source: str
    ) -> None:
        for key, value in new.items():
            here = (*path, key)
            if isinstance(old, list):
                slot: Any = _index(old, here, source)
                known = old[slot]
            else:
                slot, known = key, old.get(key)
            # Keys made of digits come from overrides only, and name entries of a list.
            entries = isinstance(known, list) and isinstance(value, dict) and "".join(value).isdigit()
            if entries or (isinstance(known, dict) and isinstance(value, dict)):
                self._merge(known, value, here, source)
                continue
            old[slot] = value
            self._origins[here] = source

    def override(self, text: str) -> None:
        """Applies one `KEY.PATH=VALUE`; the value is yaml, nothing after `=` is the empty text.

        Raises:
            ConfigError: not of this form, the value is not yaml, or a list is met where no entry is named.
        """
        source = f"--set {text}"
        dotted, equals, value_text = text.partition("=")
        names = dotted.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(f"{source}: must be KEY.PATH=VALUE, for example TRAIN.LR=1e-5")
        _check_entries(self.values, names, source)
        values: Any = parse_yaml(value_text, source) if value_text.strip() else ""
        for name in reversed(names):
            values = {name: values}
        self.merge(values, source)


def _check_entries(values: Any, names: Sequence[str], source: str) -> None:
    """Refuses a key below a list, of which it would take the place, and an entry of what is no list."""
    for place, name in enumerate(names):
        before, behind = names[:place], names[place:]
        if isinstance(values, list) and not name.isdigit():
            meant = ".".join([*before, "0", *behind])
            raise ConfigError(f"{source}: {'.'.join(before)} is a list; name an entry, such as {meant}")
        if isinstance(values, dict) and name.isdigit() and before:
            meant = ".".join([*before, *behind[1:]])
            raise ConfigError(f"{source}: {'.'.join(before)} is not a list; use {meant}")
        values = values.get(name) if isinstance(values, dict) else None


def _index(entries: Sequence[Any], path: tuple[str, ...], source: str) -> int:
    index = int(path[-1])
    if index >= len(entries):
        *parents, _ = path
        raise ConfigError(f"{source}: {'.'.join(parents)} has entries 0 to {len(entries) - 1}, not {index}")
    return index


def load_yaml(path: Path, below: tuple[Path, ...] = ()) -> ValueTree:
    """Reads a yaml file on top of the file that its optional `_BASE_` names, relative to itself.

    Args:
        path: the file.
        below: files that led here through `_BASE_`, outermost first.

    Raises:
        ConfigError: unreadable, not yaml, not a mapping, or `_BASE_` leads back to a file of the chain.
    """
    chain = (*below, path)
    if path.resolve() in (file.resolve() for file in below):
        raise ConfigError(f"{below[-1]}: {BASE_KEY}: cycle {' -> '.join(map(str, chain))}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        named_by = f" (named by {BASE_KEY} of {below[-1]})" if below else ""
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}{named_by}: cannot be read: {reason}") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of keys such as `DATASET:` at its top level")
    base = values.pop(BASE_KEY, None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: {BASE_KEY}: {base!r}: must be the name of one yaml file")
    tree = load_yaml(path.parent / base, chain) if base else ValueTree()
    tree.merge(values, str(path))
    return tree
