"""Packs region files, one json per image, into one file that is many times faster to read.

Usage: `python scripts/pack_regions.py FOLDER_OR_ZIP [more] --out FILE [--dtype float16] [--classes]
[--feature-dim N] [--on-bad skip]`. Name the file in `DATASET.PACKED_REGIONS`. An interrupted run continues with
the same command; until it ends, records are in `FILE.partial`. Sources are never changed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

if __package__ in (None, ""):  # run as a file: the folder above holds the packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.cli.run import run
from common.data.regions.json_format import decode_regions
from common.data.regions.packed_format import PackedHeader, PackedWriter, packed_file
from common.data.regions.reader import source_name
from common.data.storage.store import Store, files_in
from common.errors import DataError, UsageError
from common.progress import track

logger = logging.getLogger(__name__)


def region_files(sources: Sequence[str]) -> dict[str, str]:
    """Returns the path of every region file by image id.

    Args:
        sources: folders, archives, locations in archives (`x.zip@/inner`).

    Raises:
        DataError: a source is missing, damaged or has no json files.
        UsageError: two files have the same image id.
    """
    roots = [f"{source}@/" if source.endswith(".zip") else source for source in sources]
    Store(roots)
    files: dict[str, str] = {}
    for root in roots:
        empty = True
        for name, path in files_in(root, [".json"]):
            key, empty = PurePosixPath(name).stem, False
            if key in files:
                raise UsageError(f"{path} and {files[key]} have the same id; pack them into two files")
            files[key] = path
        if empty:
            raise DataError(f"{root}: has no json files; expected one for each image")
    return files


def pack(sources: Sequence[str], out: Path, header: PackedHeader, *, skip_bad: bool = False) -> None:
    """Packs region files into `out`, which appears complete or not at all.

    Args:
        sources: folders, archives, locations in archives.
        out: output file; `{out}.partial` holds an unfinished one.
        header: dtype, feature width, with or without class scores.
        skip_bad: skip and count invalid files.

    Raises:
        UsageError: `out` already exists, or was started with other arguments.
        DataError: a source or a region file is invalid, or `out` cannot be written.
    """
    files = region_files(sources)
    header = header.model_copy(update={"sources": tuple(sorted({source_name(source) for source in sources}))})
    with packed_file(out, header) as writer:
        num_skipped = _add_all(writer, files, header, skip_bad=skip_bad)
        if not writer.offsets:
            raise DataError(f"{', '.join(sources)}: none of {len(files)} region files can be used")
        writer.finish(num_skipped)
    logger.info(
        "%s: %d images, %d skipped, %d bytes", out, len(writer.offsets), num_skipped, out.stat().st_size
    )


def _add_all(writer: PackedWriter, files: Mapping[str, str], header: PackedHeader, *, skip_bad: bool) -> int:
    """Packs files that are not packed yet; returns the number of skipped files."""
    if gone := writer.offsets.keys() - files.keys():
        raise UsageError(f"the partial file holds {min(gone)}, which no source contains; remove it")
    store = Store()
    num_skipped = 0
    for key in track([key for key in files if key not in writer.offsets], unit="image"):
        path = files[key]
        try:
            record = store.json(path)
            writer.add(
                key,
                decode_regions(record, path, header.feature_dim, features=True, class_scores=header.classes),
            )
        except (DataError, ValueError) as error:
            message = str(error) if isinstance(error, DataError) else f"{path}: {error}"
            if not skip_bad:
                raise DataError(f"{message} (--on-bad skip skips such files)") from error
            logger.warning("skipped: %s", message)
            num_skipped += 1
    return num_skipped


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "sources", nargs="+", metavar="FOLDER_OR_ZIP", help="folders or archives of json files"
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="output file; an existing one is never changed"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="dtype of features and class scores",
    )
    parser.add_argument("--classes", action="store_true", help="also pack class scores, for pre-training")
    parser.add_argument(
        "--feature-dim", type=int, default=2048, help="width of a feature (default: %(default)s)"
    )
    parser.add_argument(
        "--on-bad", choices=("raise", "skip"), default="raise", help="what to do with an invalid file"
    )
    given = parser.parse_args(arguments)
    header = PackedHeader(dtype=given.dtype, feature_dim=given.feature_dim, classes=given.classes)
    pack(given.sources, given.out, header, skip_bad=given.on_bad == "skip")


if __name__ == "__main__":
    sys.exit(run(main))
