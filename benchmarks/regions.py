"""Speed and size of region files: json in a folder and in an archive, packed as float32 and as float16.

`python -m benchmarks.regions` makes pictures with 10 to 100 random regions of 2048 numbers in a temporary folder, and
reads boxes and features of all of them in random order, several times. The fastest pass counts; beside it stands the
first one, which verifies the checksums of packed files. The files were just written, so the operating system has them
in memory: the table is about work, not about disks.
"""

from __future__ import annotations

import argparse
import base64
import random
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import orjson

from benchmarks.report import machine, publish
from common.cli.run import run
from common.data.regions.packed_format import PackedHeader
from common.data.regions.reader import RegionStore
from scripts.pack_regions import pack

FEATURE_DIM = 2048


def write_json_files(folder: Path, images: int) -> None:
    """Writes region files 0.json, 1.json, ... of random boxes and features, and an archive beside the folder."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    # As `zip -r` does: members are compressed, and carry the folder's name.
    with zipfile.ZipFile(f"{folder}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for image in range(images):
            count = int(rng.integers(10, 101))
            arrays = {
                "boxes": rng.uniform(0, 600, (count, 4)),
                "features": rng.exponential(0.5, (count, FEATURE_DIM)),
            }
            encoded = {
                key: base64.b64encode(value.astype("<f4").tobytes()).decode() for key, value in arrays.items()
            }
            head = {"image_id": image, "image_w": 640, "image_h": 480, "num_boxes": count}
            path = folder / f"{image}.json"
            path.write_bytes(orjson.dumps({**head, **encoded}))
            archive.write(path, f"{folder.name}/{path.name}")


def microseconds(store: RegionStore, images: int, passes: int) -> list[float]:
    """Time per picture of each pass over all pictures."""
    order = random.Random(0).sample(range(images), images)
    times = []
    for _ in range(passes):
        began = time.perf_counter()
        for image in order:
            store.read(image, features=True)
        times.append(1e6 * (time.perf_counter() - began) / images)
    return times


def measure(root: Path, images: int, passes: int) -> list[dict[str, str | float]]:
    """Writes all forms of the same regions below `root` and reads each."""
    folder = root / "regions"
    write_json_files(folder, images)
    forms = {
        "json folder": (RegionStore(str(folder)), sum(path.stat().st_size for path in folder.iterdir())),
        "json zip": (RegionStore(f"{folder}.zip@/regions"), Path(f"{folder}.zip").stat().st_size),
    }
    for dtype in ("float32", "float16"):
        packed = root / dtype
        pack([str(folder)], packed, PackedHeader(dtype=dtype, feature_dim=FEATURE_DIM))
        forms[f"packed {dtype}"] = RegionStore(str(folder), str(packed)), packed.stat().st_size
    times = {name: microseconds(store, images, passes) for name, (store, _) in forms.items()}
    return [
        {
            "form": name,
            "us/image": min(times[name]),
            "times faster": min(times["json folder"]) / min(times[name]),
            "first pass": times[name][0],
            "MB": size / 1e6,
            "size of json": size / forms["json folder"][1],
        }
        for name, (_, size) in forms.items()
    ]


def main() -> None:
    """Measures and publishes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="pictures (default %(default)s)")
    parser.add_argument("--passes", type=int, default=5, help="how often to read all (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        rows = measure(Path(root), arguments.images, arguments.passes)
    publish(rows, arguments.json, machine=machine())


if __name__ == "__main__":
    sys.exit(run(main))
