"""Attention maps of any trained model on any pictures, as files and as pages to explore.

`python -m viz.attention_maps --cfg YAML --ckpt CHECKPOINT --images FOLDER --text "What colour is the car?" --out maps`

For every picture `{name}.npy`, `{name}.json` and the page `{name}.html` are written, in folders as those of the
pictures; started again, those that are missing or would differ. Instead of one text for all, `--texts FILE` names a
json file with the text of each picture by its file name; only these pictures are read.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import vl_bert
from common.cli.box_flags import box_arguments, boxes_from_flags, check_box_flags
from common.cli.predict import add_model_flags, load_from_flags
from common.cli.run import parser, run
from common.data.images import open_image
from common.data.regions.sources import RegionSource
from common.data.storage.store import Store
from common.errors import DataError, UsageError
from common.extraction.job import list_images, skip_or_raise
from common.files import ensure_writable_dir, writing
from common.inference.predictor import TrainedModel
from common.progress import track
from common.provenance import fingerprint
from common.training import checkpoint
from common.training.checkpoint import run_folder
from viz.explorer import write_page

logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A picture and what is said about it."""

    path: str
    text: str


def asked_of(args: argparse.Namespace) -> dict[str, Asked]:
    """Returns what the flags ask by the name of its files, in the order of the paths.

    Raises:
        UsageError: not one of `--text` and `--texts` is given.
        DataError: there are no pictures, two would have the same files, `--texts` is no json object of texts, or it
            names a picture that is not there.
    """
    if (args.text is None) == (args.texts is None):
        raise UsageError("--text and --texts: give one of them")
    alone = Path(args.images)
    pictures = {alone.stem: args.images} if _is_picture(alone) else list_images(args.images)
    if args.texts is None:
        return {name: Asked(path, args.text) for name, path in pictures.items()}
    texts = _own_texts(args.texts)
    files = {f"{name}{PurePath(path).suffix}": name for name, path in pictures.items()}
    if unknown := texts.keys() - files.keys():
        raise DataError(f"{args.texts}: {min(unknown)}: there is no such picture in {args.images}")
    return {name: Asked(pictures[name], texts[file]) for file, name in files.items() if file in texts}


def _is_picture(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() != ".zip"


def _own_texts(file: str) -> dict[str, str]:
    texts = Store().json(file)
    if not texts or not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f"{file}: expected a json object with the text of each picture by its file name")
    return texts


class Made:
    """Notes what the files of a folder were made with: a rerun makes those that are missing or would differ.

    Args:
        folder: of the files.
        ending: of the one that is written last.
        arguments: what all of them depend on, see `common.provenance`.
    """

    def __init__(self, folder: Path, ending: str, arguments: Mapping[str, str]) -> None:
        self._folder, self._ending, self._arguments = folder, ending, arguments
        self._path = folder / ".made"
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        self._known = dict(line.rpartition(" ")[::2] for line in lines)

    def __contains__(self, item: tuple[str, Asked]) -> bool:
        name, asked = item
        return self._known.get(name) == self._of(asked) and (self._folder / f"{name}{self._ending}").is_file()

    def add(self, name: str, asked: Asked) -> None:
        """Notes that the files of a picture are there."""
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{name} {self._of(asked)}\n")

    def _of(self, asked: Asked) -> str:
        return fingerprint(
            json.dumps([dict(self._arguments), os.path.abspath(asked.path), asked.text]).encode()
        )


def write_all(
    model: TrainedModel[Any],
    asked: Mapping[str, Asked],
    boxes: RegionSource | None,
    folder: Path,
    made: Made,
    *,
    pages: bool,
    skip_bad: bool,
) -> int:
    """Writes the maps of every picture, and its page; returns how many pictures were left out."""
    left_out = 0
    for name, one in track(asked.items(), unit="image"):
        try:
            record = model.encode(one.path, one.text, boxes, attention=True).maps()
        except DataError as error:
            skip_or_raise(str(error), skip=skip_bad)
            left_out += 1
            continue
        path = record.save((folder / name).parent)
        if pages:
            write_page(record, open_image(one.path), path.with_suffix(".html"))
        made.add(name, one)
    return left_out


def _arguments(args: argparse.Namespace) -> dict[str, str]:
    """Returns what all maps depend on, see `common.provenance`."""
    config = vl_bert.read_config(args.cfg, args.set)
    best = checkpoint.best_file(run_folder(config, args.cfg, "train"), config.MODEL_PREFIX)
    result = {"--ckpt": fingerprint(args.ckpt or best), "--fp16": str(args.fp16)}
    result["--cfg"] = fingerprint(config.model_dump_json(include={"NETWORK", "SCALES", "DATASET"}).encode())
    if args.features:
        result["--features"] = fingerprint(args.features)
    return result | box_arguments(args)


def main() -> None:
    """Reads the command line and writes the files."""
    flags = parser("Write the attention maps of a trained model on any pictures.")
    add_model_flags(flags)
    flags.add_argument("--images", required=True, help="a picture, or a folder or zip archive of them")
    flags.add_argument("--text", help="what is said or asked about all of them")
    flags.add_argument("--texts", metavar="FILE", help="json: the text of each picture by its file name")
    flags.add_argument("--out", required=True, help="folder of the result")
    flags.add_argument("--limit", type=int, help="pictures to write (default: all)")
    flags.add_argument("--no-pages", action="store_true", help="write the arrays only")
    flags.add_argument(
        "--on-bad", choices=("raise", "skip"), default="raise", help="what to do with a broken picture"
    )
    args = flags.parse_args()
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit: {args.limit}: must be at least 1")
    check_box_flags(args)
    asked = dict(list(asked_of(args).items())[: args.limit])
    boxes = boxes_from_flags(args, len(asked))
    folder = ensure_writable_dir(args.out, "--out")
    pages = not args.no_pages
    made = Made(folder, ".html" if pages else ".npy", _arguments(args))
    missing = {name: one for name, one in asked.items() if (name, one) not in made}
    logger.info("%d pictures, %d of them are done already", len(asked), len(asked) - len(missing))
    if not missing:
        return
    model = load_from_flags(args, vl_bert.model_class(args.cfg, args.set))
    skip_bad = args.on_bad == "skip"
    left_out = write_all(model, missing, boxes, folder, made, pages=pages, skip_bad=skip_bad)
    logger.info("%s: attention maps of %d pictures, %d left out", folder, len(asked) - left_out, left_out)


if __name__ == "__main__":
    sys.exit(run(main))
