"""Writes the attention explorer: a self-contained HTML page that works from disk.

Usage: `python -m viz.explorer --attention FILE.npy [--image IMAGE] --out page.html`. `pretrain/vis_attention_maps.py`
and `viz/attention_maps.py` write the maps; see `viz/VISUALIZATION.md`.
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

import numpy as np
from PIL import Image

from common.cli.run import run
from common.data.images import open_image
from common.data.storage.store import Store
from common.errors import DataError
from common.evaluation.outputs import check_result_file
from common.files import replace_file, writing
from common.inference.attention import WHOLE_IMAGE, AttentionMaps, SequenceTokens

logger = logging.getLogger(__name__)

MAX_IMAGE_SIZE = (1000, 1000)  # pixels of the embedded image
LARGE_PAGE = 5_000_000  # characters; larger pages are slow to open
SPECIAL_TOKENS = frozenset({"[CLS]", "[SEP]", "<s>", "</s>"})


def write_page(record: AttentionMaps, image: Image.Image | None, out: Path) -> None:
    """Writes a page that shows `record`.

    Weights are stored in 8 bits, with an error of at most 0.4 % of the total attention of a position.

    Args:
        record: maps of one image and text.
        image: the image, in original size or scaled; None shows the regions without it.
        out: the HTML file.

    Raises:
        DataError: the image does not match the record, the record is inconsistent, or `out` cannot be written.
    """
    page = _page(record, image)
    if len(page) > LARGE_PAGE:
        layers, heads, length = record.maps.shape[:3]
        logger.warning(
            "%s: %.0f MB for %d positions in %d heads; use fewer regions or a shorter text for a smaller page",
            out,
            len(page) / 1e6,
            length,
            layers * heads,
        )
    with writing(out):
        replace_file(out, lambda file: file.write_text(page, encoding="utf-8"))


def word_positions(sequence: SequenceTokens) -> list[int]:
    """Returns the positions of text tokens other than [CLS] and [SEP]."""
    return [i for i, token in enumerate(sequence.tokens) if token not in SPECIAL_TOKENS]


def region_positions(sequence: SequenceTokens) -> list[int]:
    """Returns the positions of regions other than the whole image."""
    return [i for i, label in enumerate(sequence.labels, len(sequence.tokens)) if label != WHOLE_IMAGE]


def _page(record: AttentionMaps, image: Image.Image | None) -> str:
    sequence, maps = record.sequence, record.maps
    _check(record)
    data = {
        "name": sequence.image_id,
        "size": sequence.size,
        "tokens": sequence.tokens,
        "labels": sequence.labels,
        "boxes": sequence.boxes,
        "words": word_positions(sequence),
        "regions": region_positions(sequence),
        "layers": maps.shape[0],
        "heads": maps.shape[1],
        "image": None if image is None else _jpeg_url(image, sequence),
        # Square roots in 255 steps resolve small weights better, and most weights are small.
        "weights": _base64(_deflate(np.rint(255 * np.sqrt(np.minimum(maps, 1))).astype(np.uint8).tobytes())),
    }
    files = resources.files("viz")
    return Template(files.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"Attention {sequence.image_id}"),
        style=files.joinpath("explorer.css").read_text(encoding="utf-8"),
        script=files.joinpath("explorer.js").read_text(encoding="utf-8"),
        # Without "<" the data can neither close the script element nor open another one.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _check(record: AttentionMaps) -> None:
    sequence, maps = record.sequence, record.maps
    name, length = sequence.image_id, len(sequence.names)
    if maps.ndim != 4 or 0 in maps.shape or maps.shape[2:] != (length, length):
        raise DataError(f"{name}: maps have shape {maps.shape}; expected (layers, heads, {length}, {length})")
    if len(sequence.boxes) != len(sequence.labels):
        raise DataError(f"{name}: {len(sequence.boxes)} boxes but {len(sequence.labels)} labels")
    if not (maps.min() >= 0 and maps.max() <= 1 + 1e-3):  # NaN fails both comparisons
        raise DataError(f"{name}: weights range from {maps.min()} to {maps.max()}; expected 0 to 1")


def _deflate(content: bytes) -> bytes:
    """Returns the smaller of two deflate streams: noisy weights compress better without string matching."""
    huffman = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return min(zlib.compress(content, 9), huffman.compress(content) + huffman.flush(), key=len)


def _jpeg_url(image: Image.Image, sequence: SequenceTokens) -> str:
    """Returns the image as a JPEG data URL, in the orientation that the model saw and scaled to `MAX_IMAGE_SIZE`."""
    shown = open_image(image) if sequence.upright else image.convert("RGB")
    width, height = shown.size
    expected_width, expected_height = sequence.size
    if abs(width * expected_height / max(expected_width, 1) - height) > max(1, 0.02 * height):
        raise DataError(
            f"{sequence.image_id}: the maps belong to an image of {expected_width} × {expected_height} pixels; this "
            f"one has {width} × {height}"
        )
    small = shown.copy()
    small.thumbnail(MAX_IMAGE_SIZE)
    file = BytesIO()
    small.save(file, "JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{_base64(file.getvalue())}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def find_image(path: str | None, sequence: SequenceTokens) -> Image.Image | None:
    """Opens the image at `path`, by default at the recorded path; None with a warning if that cannot be read.

    Raises:
        DataError: `path` is missing or not an image.
    """
    if path is not None:
        return Store().open_image(path, Image.Image.copy)
    try:
        return Store().open_image(sequence.image, Image.Image.copy) if sequence.image else None
    except DataError as error:
        logger.warning("%s; the page shows the regions without the image; pass it with --image", error)
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--attention",
        required=True,
        type=Path,
        metavar="FILE.npy",
        help="attention maps; the json file must be beside them",
    )
    parser.add_argument("--image", help="path, or x.zip@/path (default: the path in the json file)")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    args = parser.parse_args(arguments)
    check_result_file(args.out, "--out", (args.attention, args.attention.with_suffix(".json"), args.image))
    record = AttentionMaps.load(args.attention)
    write_page(record, find_image(args.image, record.sequence), args.out)
    logger.info("%s: %.1f MB", args.out, args.out.stat().st_size / 1e6)


if __name__ == "__main__":
    sys.exit(run(main))
