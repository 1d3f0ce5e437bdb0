"""Attention maps of any trained model on any pictures, as files and as pages to explore.

`python -m viz.attention_maps --cfg YAML --ckpt CHECKPOINT --images FOLDER --text "What colour is the car?" --out maps`

For every picture `{name}.npy`, `{name}.json` and the page `{name}.html` are written. Instead of one text for all,
`--texts FILE` names a json file with the text of each picture by its file name; only these pictures are read.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

import vl_bert
from common.data.image_file import open_image
from common.data.store import parse_json
from common.engine.main import parser, run
from common.engine.predict_main import add_model_flags, load_from_flags
from common.engine.predictor import TrainedModel
from common.engine.results import result_folder
from common.errors import DataError, UsageError
from common.progress import shown
from viz.explorer import write_page

logger = logging.getLogger(__name__)


def texts_of(args: argparse.Namespace) -> dict[Path, str]:
    """Returns the text of each picture that the flags name, in the order of their names.

    Raises:
        UsageError: a flag is missing or names nothing.
        DataError: `--texts` is no json object of texts, or names a picture that is not there.
    """
    images = Path(args.images)
    if (args.text is None) == (args.texts is None):
        raise UsageError("--text and --texts: give one of them")
    if args.texts is None:
        found = sorted(images.iterdir()) if images.is_dir() else [images]
        pictures = [path for path in found if path.suffix.lower() in Image.registered_extensions()]
        if not pictures:
            raise UsageError(f"--images: {images}: no picture there")
        stems = [path.stem for path in pictures]
        if twice := sorted(stem for stem in set(stems) if stems.count(stem) > 1):
            raise UsageError(f"--images: {images}: several pictures are called {twice[0]}; rename them")
        return dict.fromkeys(pictures, args.text)
    try:
        texts = parse_json(Path(args.texts).read_bytes(), args.texts)
    except OSError as error:
        raise DataError(f"{args.texts}: cannot be read ({error.strerror})") from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise DataError(
            f"{args.texts}: expected a json object with the text of each picture by its file name"
        )
    for name in texts:
        if not (images / name).is_file():
            raise DataError(f"{args.texts}: {name}: there is no such picture in {images}")
    return {images / name: text for name, text in sorted(texts.items())}


def write_all(
    model: TrainedModel[Any], texts: Mapping[Path, str], boxes: str | None, folder: Path, *, pages: bool
) -> None:
    """Writes the maps of every picture, and its page."""
    for path, text in shown(list(texts.items()), "picture"):
        record = model.encode(path, text, boxes, attention=True).maps()
        record.save(folder)
        if pages:
            write_page(record, open_image(path), folder / f"{record.places.image_id}.html")


def main() -> None:
    """Reads the command line and writes the files."""
    flags = parser("Write the attention maps of a trained model on any pictures.")
    add_model_flags(flags)
    flags.add_argument("--images", required=True, help="a picture, or a folder of them")
    flags.add_argument("--text", help="what is said or asked about all of them")
    flags.add_argument("--texts", metavar="FILE", help="json: the text of each picture by its file name")
    flags.add_argument("--out", required=True, help="folder of the result")
    flags.add_argument("--limit", type=int, help="pictures to write (default: all)")
    flags.add_argument("--no-pages", action="store_true", help="write the arrays only")
    args = flags.parse_args()
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit: {args.limit}: must be at least 1")
    texts = dict(list(texts_of(args).items())[: args.limit])
    folder = result_folder(args.out, "--out")
    model = load_from_flags(args, vl_bert.model_class(args.cfg, args.set))
    write_all(model, texts, args.boxes, folder, pages=not args.no_pages)
    logger.info("%s: attention maps of %d pictures", folder, len(texts))


if __name__ == "__main__":
    sys.exit(run(main))
