"""Takes the pictures of the attention explorer that the documentation shows, with headless Chromium.

Usage: `python -m viz.screenshots --attention FILE.npy [--image PICTURE] [--out docs]`. Writes
`explorer-desktop.png` and `explorer-phone.png`, with the head and the word chosen that have the strongest link
from a word to a region.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image

from common.cli.run import run
from common.errors import DataError, UsageError
from common.files import replace_file
from common.inference.attention import AttentionMaps
from viz.explorer import find_picture, masked_region_index, masked_token_index, write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

logger = logging.getLogger(__name__)


class Shot(NamedTuple):
    """A picture of the page: window in pixels, device pixels per pixel, and colours."""

    name: str
    width: int
    height: int
    density: int
    scheme: Literal["light", "dark"]


SHOTS = (Shot("explorer-desktop", 1280, 900, 1, "light"), Shot("explorer-phone", 360, 780, 2, "dark"))


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """A headless browser, closed at the end.

    Raises:
        UsageError: Chromium or Playwright is missing.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UsageError("needs Playwright: pip install -r requirements-dev.txt") from error
    path = find_chromium()
    if path is None:
        raise UsageError("needs Chromium: apt-get install chromium")
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # its sandbox does not work for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        try:
            yield browser
        finally:
            browser.close()


def strongest_link(record: AttentionMaps) -> tuple[int, int, int]:
    """Layer, head and word of the largest weight of a word on a region."""
    words, regions = masked_token_index(record.places), masked_region_index(record.places)
    if not words or not regions:
        raise DataError(
            f"{record.places.image_id}: has {len(words)} words and {len(regions)} regions; needs both"
        )
    block = record.maps[:, :, words][..., regions]
    layer, head, word, _ = np.unravel_index(block.argmax(), block.shape)
    return int(layer), int(head), words[word]


def take_screenshots(browser: Browser, record: AttentionMaps, image: Image.Image | None, out: Path) -> None:
    """Writes a file for each of `SHOTS` into `out`."""
    with tempfile.TemporaryDirectory() as folder:
        page_file = Path(folder) / "page.html"
        write_page(record, image, page_file)
        for shot in SHOTS:
            shown = _photograph(browser, page_file.as_uri(), shot, strongest_link(record))
            picture = shown.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
            replace_file(out / f"{shot.name}.png", partial(picture.save, format="PNG", optimize=True))


def _photograph(browser: Browser, address: str, shot: Shot, link: tuple[int, int, int]) -> Image.Image:
    """Shows a page with the layer, the head and the word of `link` chosen."""
    layer, head, word = link
    page = browser.new_page(
        viewport={"width": shot.width, "height": shot.height},
        device_scale_factor=shot.density,
        color_scheme=shot.scheme,
        reduced_motion="reduce",
    )
    page.goto(address)
    page.locator("#layer").select_option(str(layer))
    page.locator("#head").select_option(str(head))
    page.locator(f".chip[data-place='{word}']").evaluate("chip => chip.click()")
    page.wait_for_selector("#grid[data-milliseconds]")  # all thumbnails are drawn
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    content = page.screenshot()
    page.close()
    return Image.open(BytesIO(content))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--attention", required=True, type=Path, metavar="FILE.npy", help="maps to show")
    parser.add_argument("--image", help="their picture (default: where the json says it is)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder (default: %(default)s)")
    given = parser.parse_args(arguments)
    if not given.out.is_dir():
        raise UsageError(f"--out {given.out}: no such folder")
    record = AttentionMaps.load(given.attention)
    image = find_picture(given.image, record.places)
    with open_chromium() as browser:
        take_screenshots(browser, record, image, given.out)


if __name__ == "__main__":
    sys.exit(run(main))
