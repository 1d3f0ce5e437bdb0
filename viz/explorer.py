"""Writes the attention explorer: one HTML file with everything in it, to open from disk.

Usage: `python -m viz.explorer --attention FILE.npy [--image PICTURE] --out page.html`. The maps are those that
`pretrain/vis_attention_maps.py` writes; see `viz/VISUALIZATION.md`.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import logging
import sys
import zlib
from collections.abc import Sequence
from importlib import resources
from io import BytesIO
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.cli.run import run
from common.data.images import open_image
from common.data.storage.store import Store
from common.errors import DataError
from common.evaluation.outputs import check_result_file
from common.files import replace_file, writing
from common.inference.attention import AttentionMaps, SequenceTokens

logger = logging.getLogger(__name__)

MAX_PICTURE = (1000, 1000)  # pixels of the picture in the page
LARGE = 5_000_000  # characters of a page that is slow to mail and to open
SPECIAL_TOKENS = frozenset({"[CLS]", "[SEP]", "<s>", "</s>"})
WHOLE_PICTURE = "image"  # the label of the region that is no object


def write_page(record: AttentionMaps, image: Image.Image | None, out: Path) -> None:
    """Writes a page that shows `record`, with the weights in 8 bits: exact to 0.4 % of the attention of a place.

    Args:
        record: maps of one picture and text.
        image: the picture, as large as when the maps were made or scaled; None shows the regions alone.
        out: the HTML file.

    Raises:
        DataError: the picture is another one, the record does not hold together, or `out` cannot be written.
    """
    page = _page(record, image)
    if len(page) > LARGE:
        logger.warning(
            "%s: has %.0f MB: %d places in %d heads; fewer regions or a shorter text make it smaller",
            out,
            len(page) / 1e6,
            len(record.places.names),
            record.maps.shape[0] * record.maps.shape[1],
        )
    with writing(out):
        replace_file(out, lambda file: file.write_text(page, encoding="utf-8"))


def masked_token_index(places: SequenceTokens) -> list[int]:
    """The places of text tokens that are part of the text: not [CLS] or [SEP]."""
    return [i for i, token in enumerate(places.tokens) if token not in SPECIAL_TOKENS]


def masked_region_index(places: SequenceTokens) -> list[int]:
    """The places of regions that are part of the picture: not the whole."""
    return [i for i, label in enumerate(places.labels, len(places.tokens)) if label != WHOLE_PICTURE]


def _page(record: AttentionMaps, image: Image.Image | None) -> str:
    places = record.places
    _check(record)
    data: dict[str, Any] = {
        "name": places.image_id,
        "size": places.size,
        "tokens": places.tokens,
        "labels": places.labels,
        "boxes": places.boxes,
        "words": masked_token_index(places),
        "regions": masked_region_index(places),
        "layers": record.maps.shape[0],
        "heads": record.maps.shape[1],
        "image": None if image is None else _embed(image, places),
        "weights": _base64(_packed(_quantise(record).tobytes())),
    }
    files = resources.files("viz")
    return Template(files.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"Attention {places.image_id}"),
        style=files.joinpath("explorer.css").read_text(encoding="utf-8"),
        script=files.joinpath("explorer.js").read_text(encoding="utf-8"),
        # Nothing in the data can close the script element or open another.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _check(record: AttentionMaps) -> None:
    places, maps = record.places, record.maps
    name = places.image_id
    side = len(places.names)
    if maps.ndim != 4 or 0 in maps.shape or maps.shape[2:] != (side, side):
        raise DataError(f"{name}: maps have the shape {maps.shape}; expected (layers, heads, {side}, {side})")
    if len(places.boxes) != len(places.labels):
        raise DataError(
            f"{name}: {len(places.boxes)} boxes but {len(places.labels)} labels; expected as many"
        )
    if not (maps.min() >= 0 and maps.max() <= 1 + 1e-3):  # not a number fails both
        raise DataError(f"{name}: has weights from {maps.min()} to {maps.max()}; expected 0 to 1")


def _quantise(record: AttentionMaps) -> NDArray[np.uint8]:
    """(L, A, S, S) square roots of the weights in 255 steps: finer where weights are small, as most are."""
    codes: NDArray[np.uint8] = np.rint(255 * np.sqrt(np.minimum(record.maps, 1))).astype(np.uint8)
    return codes


def _packed(content: bytes) -> bytes:
    """Returns the smaller of two deflate streams: of weights that look like noise nothing repeats."""
    plain = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return min(zlib.compress(content, 9), plain.compress(content) + plain.flush(), key=len)


def _embed(image: Image.Image, places: SequenceTokens) -> str:
    """Returns the picture as the address of a JPEG, scaled to fit `MAX_PICTURE`."""
    small = _as_mapped(image, places)
    small.thumbnail(MAX_PICTURE)
    file = BytesIO()
    small.save(file, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{_base64(file.getvalue())}"


def _as_mapped(image: Image.Image, places: SequenceTokens) -> Image.Image:
    """A picture turned as its EXIF data say or, as models read those of data sets, as it is stored."""
    shown = open_image(image) if places.upright else image.convert("RGB")
    width, height = shown.size
    if abs(width * places.size[1] / max(places.size[0], 1) - height) > max(1, 0.02 * height):
        raise DataError(
            f"{places.image_id}: the maps are of a picture of {places.size[0]} × {places.size[1]} pixels, this one "
            f"has {width} × {height}; give the same picture"
        )
    return shown.copy()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--attention", required=True, type=Path, metavar="FILE.npy", help="maps, with their json beside them"
    )
    parser.add_argument("--image", help="the picture, or x.zip@/picture (default: where the json says it is)")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    given = parser.parse_args(arguments)
    sources = (given.attention, given.attention.with_suffix(".json"), given.image)
    check_result_file(given.out, "--out", sources)
    record = AttentionMaps.load(given.attention)
    write_page(record, find_picture(given.image, record.places), given.out)
    logger.info("%s: %.1f MB", given.out, given.out.stat().st_size / 1e6)


def find_picture(given: str | None, places: SequenceTokens) -> Image.Image | None:
    """Returns the picture that was given, else the recorded one where it still is.

    Raises:
        DataError: the given one is missing or is no picture.
    """
    if given is not None:
        return Store().picture(given, Image.Image.copy)
    try:
        return Store().picture(places.image, Image.Image.copy) if places.image else None
    except DataError as error:
        logger.warning("%s; the page shows the regions without the picture: give it with --image", error)
        return None


if __name__ == "__main__":
    sys.exit(run(main))
