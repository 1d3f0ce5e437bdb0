"""Takes the screenshots of the attention explorer for the documentation, with headless Chromium.

Usage: `python -m viz.screenshots --attention FILE.npy [--image IMAGE] [--out docs]`. Writes `explorer-desktop.png` and
`explorer-phone.png`, and selects the head and the word with the strongest link from a word to a region.
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
from viz.explorer import find_image, region_positions, word_positions, write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

logger = logging.getLogger(__name__)


class Screenshot(NamedTuple):
    """File name, window size in CSS pixels, device pixels per CSS pixel, and color scheme."""

    name: str
    width: int
    height: int
    density: int
    scheme: Literal["light", "dark"]


SCREENSHOTS = (
    Screenshot("explorer-desktop", 1280, 900, 1, "light"),
    Screenshot("explorer-phone", 360, 780, 2, "dark"),
)


def find_chromium() -> str | None:
    """Returns the path of Chromium or Chrome, or None if neither is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def open_chromium() -> Iterator[Browser]:
    """Opens a headless browser, and closes it on exit.

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
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # the sandbox does not work for root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        try:
            yield browser
        finally:
            browser.close()


def strongest_link(record: AttentionMaps) -> tuple[int, int, int]:
    """Returns layer, head and position of the word with the largest weight on a region.

    Raises:
        DataError: there are no words or no regions.
    """
    words, regions = word_positions(record.sequence), region_positions(record.sequence)
    if not words or not regions:
        raise DataError(
            f"{record.sequence.image_id}: has {len(words)} words and {len(regions)} regions; needs both"
        )
    block = record.maps[:, :, words][..., regions]
    layer, head, word, _ = np.unravel_index(block.argmax(), block.shape)
    return int(layer), int(head), words[word]


def take_screenshots(browser: Browser, record: AttentionMaps, image: Image.Image | None, out: Path) -> None:
    """Writes `SCREENSHOTS` into the folder `out`."""
    layer, head, word = strongest_link(record)
    with tempfile.TemporaryDirectory() as folder:
        page_path = Path(folder) / "page.html"
        write_page(record, image, page_path)
        for shot in SCREENSHOTS:
            page = browser.new_page(
                viewport={"width": shot.width, "height": shot.height},
                device_scale_factor=shot.density,
                color_scheme=shot.scheme,
                reduced_motion="reduce",
            )
            page.goto(page_path.as_uri())
            page.locator("#layer").select_option(str(layer))
            page.locator("#head").select_option(str(head))
            page.locator(f".chip[data-position='{word}']").evaluate("chip => chip.click()")
            page.wait_for_selector("#grid[data-milliseconds]")  # all thumbnails are drawn
            # The second frame is after the redraw that the click scheduled.
            page.evaluate(
                "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
            )
            pixels = Image.open(BytesIO(page.screenshot())).convert("RGB")
            page.close()
            small = pixels.quantize(256, Image.Quantize.FASTOCTREE)
            replace_file(out / f"{shot.name}.png", partial(small.save, format="PNG", optimize=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--attention", required=True, type=Path, metavar="FILE.npy", help="attention maps")
    parser.add_argument("--image", help="path of the image (default: the path in the json file)")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="output folder (default: %(default)s)")
    args = parser.parse_args(arguments)
    if not args.out.is_dir():
        raise UsageError(f"--out {args.out}: no such folder")
    record = AttentionMaps.load(args.attention)
    image = find_image(args.image, record.sequence)
    with open_chromium() as browser:
        take_screenshots(browser, record, image, args.out)


if __name__ == "__main__":
    sys.exit(run(main))
