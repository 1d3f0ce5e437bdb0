"""Packs region files, one json per picture, into one file that is read many times faster.

Usage: `python scripts/pack_regions.py FOLDER_OR_ZIP [more] --out FILE [--dtype float16] [--classes]
[--feature-dim N] [--on-bad skip]`. Name the file in `DATASET.PACKED_REGIONS`. Killed and started again with the same
arguments, it continues; until the end the work lies in `FILE.partial`. Sources are only read.
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
    """Returns the path of every region file by the id of its picture.

    Args:
        sources: folders, archives, places in archives (`x.zip@/inner`).

    Raises:
        DataError: a source is missing, damaged or without json files.
        UsageError: two files are of the same picture.
    """
    places = [f"{source}@/" if source.endswith(".zip") else source for source in sources]
    Store(places)
    files: dict[str, str] = {}
    for place in places:
        empty = True
        for name, path in files_in(place, [".json"]):
            key, empty = PurePosixPath(name).stem, False
            if key in files:
                raise UsageError(f"{path} and {files[key]} have the same id; pack them into two files")
            files[key] = path
        if empty:
            raise DataError(f"{place}: has no json files; expected one for each picture")
    return files


def pack(sources: Sequence[str], out: Path, header: PackedHeader, *, skip_bad: bool = False) -> None:
    """Packs region files into `out`, which appears complete or not at all.

    Args:
        sources: folders, archives, places in archives.
        out: file to make; `{out}.partial` is the work, continued where it is there.
        header: data type, feature width, with or without class scores.
        skip_bad: leave a file out that cannot be used, and count it.

    Raises:
        UsageError: `out` is there already, or the arguments do not fit together.
        DataError: a source or a region file cannot be used, or `out` cannot be written.
    """
    files = region_files(sources)
    header = header.model_copy(update={"sources": tuple(sorted({source_name(source) for source in sources}))})
    with packed_file(out, header) as writer:
        left_out = _add_all(writer, files, header, skip_bad=skip_bad)
        if not writer.offsets:
            raise DataError(f"{', '.join(sources)}: none of {len(files)} region files can be used")
        writer.finish(left_out)
    logger.info(
        "%s: %d pictures, %d left out, %d bytes", out, len(writer.offsets), left_out, out.stat().st_size
    )


def _add_all(writer: PackedWriter, files: Mapping[str, str], header: PackedHeader, *, skip_bad: bool) -> int:
    """Packs what is not packed yet; returns how many files were left out."""
    if gone := writer.offsets.keys() - files.keys():
        raise UsageError(f"the partial file holds {min(gone)}, which no source has any more; remove it")
    store = Store()
    left_out = 0
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
                raise DataError(f"{message} (--on-bad skip leaves such files out)") from error
            logger.warning("left out: %s", message)
            left_out += 1
    return left_out


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", nargs="+", metavar="FOLDER_OR_ZIP", help="where the json files are")
    parser.add_argument(
        "--out", required=True, type=Path, help="file to make; one that is there is never touched"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of features and scores"
    )
    parser.add_argument("--classes", action="store_true", help="also pack class scores, for pre-training")
    parser.add_argument(
        "--feature-dim", type=int, default=2048, help="width of a feature (default: %(default)s)"
    )
    parser.add_argument(
        "--on-bad", choices=("raise", "skip"), default="raise", help="what to do with a broken file"
    )
    given = parser.parse_args(arguments)
    header = PackedHeader(dtype=given.dtype, feature_dim=given.feature_dim, classes=given.classes)
    pack(given.sources, given.out, header, skip_bad=given.on_bad == "skip")


if __name__ == "__main__":
    sys.exit(run(main))
