"""Progress of long loops: a tqdm bar on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack
from typing import Any, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_INTERVAL = 10.0  # seconds between two log lines


class Progress:
    """Shows how many of `total` units are done. Close it, or use it as a context manager.

    Args:
        total: number of units; None if unknown.
        description: what is done, for example a path; may be empty.
        unit: singular name of one unit, such as "image". "B" (bytes) is shown as kB, MB, ...
        initial: units done before.
        delay: seconds before the bar appears.
        log: whether to log where stderr is not a terminal.
        disable: show nothing, as on every rank but one.
    """

    def __init__(
        self,
        total: int | None = None,
        description: str = "",
        unit: str = "item",
        *,
        initial: int = 0,
        delay: float = 0,
        log: bool = True,
        disable: bool = False,
    ) -> None:
        self._total, self._description, self._unit, self._done = total, description, unit, initial
        terminal = sys.stderr.isatty()
        self._log = log and not disable and not terminal
        self._last_log = time.monotonic()
        self._bar: tqdm[Any] | None = None
        self._exit = ExitStack()
        if terminal and not disable:
            # Log records of the loop go above the bar instead of through it.
            self._exit.enter_context(logging_redirect_tqdm())
            self._bar = self._exit.enter_context(
                tqdm(
                    total=total,
                    desc=description or None,
                    unit=unit,
                    unit_scale=unit == "B",
                    initial=initial,
                    delay=delay,
                    leave=False,
                )
            )

    def update(self, count: int = 1) -> None:
        """Adds `count` finished units."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._log and time.monotonic() - self._last_log >= LOG_INTERVAL:
            self._last_log = time.monotonic()
            prefix = f"{self._description}: " if self._description else ""
            total = "" if self._total is None else f" of {self._format(self._total)}"
            plural = "" if self._unit == "B" else f" {self._unit}s"
            logger.info("%s%s%s%s", prefix, self._format(self._done), total, plural)

    def _format(self, count: int) -> str:
        return tqdm.format_sizeof(count, "B") if self._unit == "B" else str(count)

    def close(self) -> None:
        """Removes the bar."""
        self._exit.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def track(
    items: Iterable[T],
    description: str = "",
    total: int | None = None,
    unit: str = "item",
    *,
    disable: bool = False,
) -> Iterator[T]:
    """Yields `items` and shows how many are done; `total` defaults to their length. Arguments as in `Progress`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(total, description, unit, disable=disable) as progress:
        for item in items:
            yield item
            progress.update()
