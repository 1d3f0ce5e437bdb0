"""Attention maps of any trained model on any pictures, as files and as pages to explore.

`python -m viz.attention_maps --cfg YAML --ckpt CHECKPOINT --images FOLDER --text "What colour is the car?" --out maps`

For every picture `{name}.npy`, `{name}.json` and the page `{name}.html` are written. Instead of one text for all,
`--texts FILE` names a json file with the text of each picture by its file name; only these pictures are read.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_bert
from common.data.box_file import BoxFile
from common.data.image_file import open_image
from common.data.store import Store, files_in
from common.engine.box_flags import boxes_from_flags
from common.engine.extraction import PICTURE_SUFFIXES
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
        UsageError: a flag is missing or names nothing, or two pictures would have the same files.
        DataError: `--texts` is no json object of texts, or names a picture that is not there.
    """
    images = Path(args.images)
    if (args.text is None) == (args.texts is None):
        raise UsageError("--text and --texts: give one of them")
    if args.texts is None:
        found = files_in(args.images, PICTURE_SUFFIXES) if images.is_dir() else filter(Path.is_file, [images])
        texts = dict.fromkeys(map(Path, found), args.text)
        if not texts:
            raise UsageError(f"--images: {images}: no picture there")
    else:
        texts = _own_texts(args.texts, images)
    stem, times = Counter(path.stem for path in texts).most_common(1)[0]
    if times > 1:
        raise UsageError(f"--images: {images}: several pictures are called {stem}; rename them")
    return texts


def _own_texts(file: str, images: Path) -> dict[Path, str]:
    texts = Store().json(file)
    if not texts or not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f"{file}: expected a json object with the text of each picture by its file name")
    for name in texts:
        if not (images / name).is_file():
            raise DataError(f"{file}: {name}: there is no such picture in {images}")
    return {images / name: text for name, text in sorted(texts.items())}


def write_all(
    model: TrainedModel[Any], texts: Mapping[Path, str], boxes: BoxFile | None, folder: Path, *, pages: bool
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
    boxes = boxes_from_flags(args, len(texts))
    folder = result_folder(args.out, "--out")
    model = load_from_flags(args, vl_bert.model_class(args.cfg, args.set))
    write_all(model, texts, boxes, folder, pages=not args.no_pages)
    logger.info("%s: attention maps of %d pictures", folder, len(texts))


if __name__ == "__main__":
    sys.exit(run(main))
