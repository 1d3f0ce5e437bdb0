"""Attention maps of a trained model on the user's own images, as arrays and HTML pages.

`python -m viz.attention_maps --cfg YAML --ckpt CHECKPOINT --images FOLDER --text "What color is the car?" --out maps`

Writes `{name}.npy`, `{name}.json` and `{name}.html` for every image, in the folder structure of the images. A rerun
writes only the files that are missing or outdated. `--texts FILE` replaces `--text` by a json file with the text of
each image, keyed by file name; other images are skipped.
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
from common.cli.box_flags import box_provenance, boxes_from_flags, check_box_flags
from common.cli.predict import add_model_flags, load_from_flags
from common.cli.run import parser, run
from common.config.schema import ExperimentConfig
from common.data.images import open_image
from common.data.regions.sources import RegionSource
from common.data.storage.store import Store
from common.errors import DataError, UsageError
from common.extraction.job import list_images, skip_or_raise
from common.files import ensure_writable_dir, writing
from common.inference.predictor import TrainedModel, default_checkpoint
from common.progress import track
from common.provenance import fingerprint
from viz.explorer import write_page

logger = logging.getLogger(__name__)


class ImageTextPair(NamedTuple):
    """The path of an image and a text about it."""

    path: str
    text: str


def read_pairs(args: argparse.Namespace) -> dict[str, ImageTextPair]:
    """Returns images and texts by the name of their output files, sorted by path.

    Raises:
        UsageError: not exactly one of `--text` and `--texts` is given.
        DataError: there are no images, two images have the same output name, `--texts` is not a json object of texts,
            or it names a missing image.
    """
    if (args.text is None) == (args.texts is None):
        raise UsageError("--text and --texts: give one of them")
    path = Path(args.images)
    single = path.is_file() and path.suffix.lower() != ".zip"
    images = {path.stem: args.images} if single else list_images(args.images)
    if args.texts is None:
        return {name: ImageTextPair(image, args.text) for name, image in images.items()}
    texts = Store().json(args.texts)
    if not texts or not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f"{args.texts}: expected a json object with the text of each image by its file name")
    files = {f"{name}{PurePath(image).suffix}": name for name, image in images.items()}
    if unknown := texts.keys() - files.keys():
        raise DataError(f"{args.texts}: {min(unknown)}: no such image in {args.images}")
    return {name: ImageTextPair(images[name], texts[file]) for file, name in files.items() if file in texts}


class OutputManifest:
    """Records the arguments that each output was made with, in `.made`, so that a rerun skips finished outputs.

    Args:
        folder: output folder.
        suffix: suffix of the file of an output that is written last.
        arguments: arguments that all outputs depend on, see `common.provenance`.
    """

    def __init__(self, folder: Path, suffix: str, arguments: Mapping[str, str]) -> None:
        self._folder, self._suffix, self._arguments = folder, suffix, arguments
        self._path = folder / ".made"
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        self._fingerprints = dict(line.rpartition(" ")[::2] for line in lines)

    def is_done(self, name: str, pair: ImageTextPair) -> bool:
        """Returns whether the output exists and was made with the same arguments."""
        same = self._fingerprints.get(name) == self._fingerprint(pair)
        return same and (self._folder / f"{name}{self._suffix}").is_file()

    def add(self, name: str, pair: ImageTextPair) -> None:
        """Records a finished output."""
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{name} {self._fingerprint(pair)}\n")

    def _fingerprint(self, pair: ImageTextPair) -> str:
        content = [dict(self._arguments), os.path.abspath(pair.path), pair.text]
        return fingerprint(json.dumps(content).encode())


def write_all(
    model: TrainedModel[Any, Any],
    pairs: Mapping[str, ImageTextPair],
    boxes: RegionSource | None,
    folder: Path,
    manifest: OutputManifest,
    *,
    pages: bool,
    skip_bad: bool,
) -> int:
    """Writes the maps of every image, and its page; returns the number of skipped images."""
    skipped = 0
    for name, pair in track(pairs.items(), unit="image"):
        try:
            record = model.encode(pair.path, pair.text, boxes, attention=True).maps()
        except DataError as error:
            skip_or_raise(str(error), skip=skip_bad)
            skipped += 1
            continue
        path = record.save((folder / name).parent)
        if pages:
            write_page(record, open_image(pair.path), path.with_suffix(".html"))
        manifest.add(name, pair)
    return skipped


def _provenance(args: argparse.Namespace, config: ExperimentConfig) -> dict[str, str]:
    """Returns the arguments that all maps depend on, see `common.provenance`."""
    sections = config.model_dump_json(include={"NETWORK", "SCALES", "DATASET"})
    result = {
        "--ckpt": fingerprint(args.ckpt or default_checkpoint(config, args.cfg)),
        "--fp16": str(args.fp16),
        "--cfg": fingerprint(sections.encode()),
    }
    if args.features:
        result["--features"] = fingerprint(args.features)
    return result | box_provenance(args)


def main() -> None:
    """Runs the command line."""
    flags = parser("Write attention maps of a trained model.")
    add_model_flags(flags)
    flags.add_argument("--images", required=True, help="image, or folder or zip archive of images")
    flags.add_argument("--text", help="text or question for all images")
    flags.add_argument(
        "--texts", metavar="FILE", help="json object with the text of each image by its file name"
    )
    flags.add_argument("--out", required=True, help="output folder")
    flags.add_argument("--limit", type=int, help="number of images (default: all)")
    flags.add_argument("--no-pages", action="store_true", help="write no HTML pages")
    flags.add_argument(
        "--on-bad",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with an unreadable image (default: %(default)s)",
    )
    args = flags.parse_args()
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit: {args.limit}: must be at least 1")
    check_box_flags(args)
    pairs = dict(list(read_pairs(args).items())[: args.limit])
    boxes = boxes_from_flags(args, len(pairs))
    folder = ensure_writable_dir(args.out, "--out")
    pages = not args.no_pages
    config = vl_bert.read_config(args.cfg, args.set)
    manifest = OutputManifest(folder, ".html" if pages else ".npy", _provenance(args, config))
    missing = {name: pair for name, pair in pairs.items() if not manifest.is_done(name, pair)}
    logger.info("%d images, %d already done", len(pairs), len(pairs) - len(missing))
    if not missing:
        return
    model = load_from_flags(args, vl_bert.model_class(config), config)
    skipped = write_all(model, missing, boxes, folder, manifest, pages=pages, skip_bad=args.on_bad == "skip")
    logger.info("%s: attention maps of %d images, %d skipped", folder, len(pairs) - skipped, skipped)


if __name__ == "__main__":
    sys.exit(run(main))
