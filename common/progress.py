"""How far a long loop is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_PER_LINE = 10.0


def shown(items: Sequence[T] | Iterator[T], unit: str, total: int = 0) -> Iterator[T]:
    """Yields the items and shows how many of them are done.

    Args:
        items: what is worked on.
        unit: what one of them is called.
        total: how many there are, where the items do not tell.
    """
    total = total or (len(items) if isinstance(items, Sequence) else 0)
    if sys.stderr.isatty():
        with logging_redirect_tqdm():
            yield from tqdm(items, total=total, unit=unit)
        return
    told = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - told >= SECONDS_PER_LINE:
            told = time.monotonic()
            logger.info("%d of %d %ss", number, total, unit)
        yield item
