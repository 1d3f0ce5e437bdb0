"""Draws the toy world: a small synthetic world in the reference's file formats, for every task, offline.

Usage: `python scripts/make_toy_data.py --out toy [--tasks vcr vqa refcoco pretrain] [--train N] [--val N]
[--test N] [--seed 0] [--zip]`. Below `toy/` the layout is that of `data/` (spec: data 1.1): `vcr`, `coco`,
`conceptual-captions`, `en_corpus`; and `bert/vocab.txt`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the folder above holds the packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UsageError, UserError
from scripts.toy import captions, refcoco, vqa
from scripts.toy.coco import write_pictures
from scripts.toy.vcr import write_vcr
from scripts.toy.vocabulary import write_vocabulary

logger = logging.getLogger(__name__)

TASKS = ("vcr", "vqa", "refcoco", "pretrain")
FORMAT = 2  # of the toy world; raise it whenever the same arguments give other files
MANIFEST = "toy_world.json"
COCO_CAPTIONS = 24


@dataclass(frozen=True)
class ToyWorld:
    """What to draw.

    Attributes:
        tasks: Some of `TASKS`.
        train: Items (questions, sentences, captions) per task for training; VQA gets four times as many.
        val: Items per task for validation.
        test: Items per task for testing (RefCOCO+: in testA and in testB each; pre-training has none).
        seed: Seed of everything.
        zip: Whether to write archives beside the folders of pictures and region files.
    """

    tasks: tuple[str, ...] = TASKS
    train: int = 2400
    val: int = 240
    test: int = 120
    seed: int = 0
    zip: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        """Items per split."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def manifest(self) -> str:
        """The file that marks a folder as made by this script, and from what."""
        return (
            json.dumps({"made_by": "scripts/make_toy_data.py", "format": FORMAT, **asdict(self)}, indent=2)
            + "\n"
        )


def make_toy_data(out: str | Path, world: ToyWorld) -> bool:
    """Draws the world in folder `out`, which appears complete or not at all.

    Args:
        out: Folder to write; one made earlier from other arguments is replaced.
        world: What to draw.

    Returns:
        Whether anything was written; False if `out` already holds exactly this world.

    Raises:
        UsageError: `out` is a file, or a folder with other content; or a size is below 1.
    """
    out = Path(out).absolute()
    _check(out, world)
    manifest = out / MANIFEST
    if manifest.is_file() and manifest.read_text(encoding="utf-8") == world.manifest():
        logger.info("%s already holds this toy world; nothing to do", out)
        return False
    draft = out.with_name(f".{out.name}.{os.getpid()}.draft")
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        _write(draft, world)
        if out.exists():
            out.rename(old)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    logger.info("%s: wrote the toy world for %s", out, ", ".join(world.tasks))
    return True


def _check(out: Path, world: ToyWorld) -> None:
    for flag, value, least in [
        *((split, size, 1) for split, size in world.sizes.items()),
        ("seed", world.seed, 0),
    ]:
        if value < least:
            raise UsageError(f"--{flag} {value}: {least} is the least")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(
            f"--out {out} holds files that this script did not write; name another folder or empty it"
        )


def _write(root: Path, world: ToyWorld) -> None:
    write_vocabulary(root / "bert")
    if "vcr" in world.tasks:
        for split, count in world.sizes.items():
            write_vcr(root / "vcr", split, count, world.seed)
    if {"vqa", "refcoco"} & set(world.tasks):
        _write_coco(root / "coco", world)
    if "pretrain" in world.tasks:
        for split in ("train", "val"):
            captions.write_conceptual_captions(
                root / "conceptual-captions", split, world.sizes[split], world.seed
            )
        captions.write_coco_captions(root / "coco", COCO_CAPTIONS, world.seed)
        captions.write_corpus(root / "en_corpus", world.train, world.seed)
    if world.zip:
        _write_archives(root)
    (root / MANIFEST).write_text(world.manifest(), encoding="utf-8")


def _write_coco(root: Path, world: ToyWorld) -> None:
    """VQA and RefCOCO+: all pictures of RefCOCO+ are in train2014, the first of them are also those of VQA."""
    refs, referred = refcoco.make_refs(world.sizes, world.seed) if "refcoco" in world.tasks else ([], [])
    asked = dict.fromkeys(vqa.BOX_SETS, 0)
    if "vqa" in world.tasks:
        asked = dict(zip(vqa.BOX_SETS, world.sizes.values(), strict=True))
        asked["train2014"] *= vqa.TRAIN_FACTOR
    for image_set, count in asked.items():
        number = -(-count // vqa.QUESTIONS_PER_PICTURE)
        total = max(number, len(referred)) if image_set == "train2014" else number
        if not total:
            continue
        pictures = write_pictures(root, image_set, total, world.seed)
        if count:
            vqa.write_vqa(root, image_set, pictures[:number], count, world.seed)
    if refs:
        refcoco.write_refcoco(root, refs, referred, world.seed)


def _write_archives(root: Path) -> None:
    """Archives beside the folders; members carry the folder's name, not in Conceptual Captions (spec: data 1.2)."""
    for pattern, with_name in (
        ("vcr/vcr1images", True),
        ("coco/*201?", True),
        ("coco/vgbua_res101_precomputed/*", True),
        ("conceptual-captions/*_image", False),
        ("conceptual-captions/*_frcnn", False),
    ):
        for folder in sorted(root.glob(pattern)):
            above = folder.parent if with_name else folder
            with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    # A fixed date: the same world is the same bytes.
                    member = zipfile.ZipInfo(path.relative_to(above).as_posix(), (2020, 1, 1, 0, 0, 0))
                    archive.writestr(member, path.read_bytes(), zipfile.ZIP_DEFLATED, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write; one that this script made is replaced")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="which tasks (default: all)")
    for name, meaning in (
        ("train", "training items per task"),
        ("val", "validation items per task"),
        ("test", "test items per task"),
        ("seed", "seed of the world"),
    ):
        help_text = f"{meaning} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=int, default=getattr(ToyWorld, name), help=help_text)
    parser.add_argument("--zip", action="store_true", help="also write archives, for ZIP_MODE: true")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tasks = tuple(task for task in TASKS if task in given.tasks)
    try:
        make_toy_data(given.out, ToyWorld(tasks, given.train, given.val, given.test, given.seed, given.zip))
    except UserError as error:
        logger.error("%s", error)
        return error.exit_status
    except OSError as error:
        logger.error("--out %s cannot be written: %s", given.out, error)
        return UserError.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
