"""Draws the toy world: small synthetic datasets for every task, in the file formats of the reference implementation.

Usage: `python scripts/make_toy_data.py --out toy [--tasks vcr vqa refcoco pretrain] [--train N] [--val N]
[--test N] [--seed 0] [--zip]`. `toy/` has the layout of `data/` (docs/data_formats.md): `vcr`, `coco`,
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

if __package__ in (None, ""):  # run as a file: the parent folder holds the packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UsageError, UserError
from scripts.toy import captions, refcoco, vqa
from scripts.toy.coco import write_images
from scripts.toy.vcr import write_vcr
from scripts.toy.vocabulary import write_vocabulary

logger = logging.getLogger(__name__)

TASKS = ("vcr", "vqa", "refcoco", "pretrain")
FORMAT = 2  # increase it whenever the same arguments give other files
MANIFEST = "toy_world.json"
COCO_CAPTIONS = 24


@dataclass(frozen=True)
class ToyWorld:
    """The arguments of a toy world.

    Attributes:
        tasks: subset of `TASKS`.
        train: training items (questions, sentences, captions) per task; VQA gets four times as many.
        val: validation items per task.
        test: test items per task (RefCOCO+: in each of testA and testB; pre-training has none).
        seed: random seed.
        zip: also write archives next to the folders of images and region files.
    """

    tasks: tuple[str, ...] = TASKS
    train: int = 2400
    val: int = 240
    test: int = 120
    seed: int = 0
    zip: bool = False

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": self.train, "val": self.val, "test": self.test}

    def manifest(self) -> str:
        """Returns the content of the file that marks a folder as written by this script, with these arguments."""
        return (
            json.dumps({"made_by": "scripts/make_toy_data.py", "format": FORMAT, **asdict(self)}, indent=2)
            + "\n"
        )


def make_toy_data(out: str | Path, world: ToyWorld) -> bool:
    """Draws a toy world in the folder `out`, atomically.

    Args:
        out: folder to write; a toy world with other arguments is replaced.
        world: arguments.

    Returns:
        Whether anything was written; False if `out` already contains this world.

    Raises:
        UsageError: `out` is a file, or a folder with other content; or a size is below 1.
    """
    out = Path(out).absolute()
    _check(out, world)
    manifest = out / MANIFEST
    if manifest.is_file() and manifest.read_text(encoding="utf-8") == world.manifest():
        logger.info("%s already contains this toy world; nothing to do", out)
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
    for flag, value, minimum in [
        *((split, size, 1) for split, size in world.sizes.items()),
        ("seed", world.seed, 0),
    ]:
        if value < minimum:
            raise UsageError(f"--{flag} {value}: must be at least {minimum}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(
            f"--out {out} contains files that this script did not write; name another folder or empty it"
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
    """Writes VQA and RefCOCO+: all images of RefCOCO+ are in train2014; VQA uses the first of them as well."""
    refs, ref_images = refcoco.make_refs(world.sizes, world.seed) if "refcoco" in world.tasks else ([], [])
    num_questions = dict.fromkeys(vqa.BOX_SETS, 0)
    if "vqa" in world.tasks:
        num_questions = dict(zip(vqa.BOX_SETS, world.sizes.values(), strict=True))
        num_questions["train2014"] *= vqa.TRAIN_FACTOR
    for image_set, count in num_questions.items():
        num_vqa_images = -(-count // vqa.QUESTIONS_PER_IMAGE)
        num_images = max(num_vqa_images, len(ref_images)) if image_set == "train2014" else num_vqa_images
        if not num_images:
            continue
        images = write_images(root, image_set, num_images, world.seed)
        if count:
            vqa.write_vqa(root, image_set, images[:num_vqa_images], count, world.seed)
    if refs:
        refcoco.write_refcoco(root, refs, ref_images, world.seed)


def _write_archives(root: Path) -> None:
    """Writes archives next to the folders; except in Conceptual Captions, members start with the folder's name."""
    for pattern, with_folder in (
        ("vcr/vcr1images", True),
        ("coco/*201?", True),
        ("coco/vgbua_res101_precomputed/*", True),
        ("conceptual-captions/*_image", False),
        ("conceptual-captions/*_frcnn", False),
    ):
        for folder in sorted(root.glob(pattern)):
            parent = folder.parent if with_folder else folder
            with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    # A fixed date, so that archives are reproducible.
                    member = zipfile.ZipInfo(path.relative_to(parent).as_posix(), (2020, 1, 1, 0, 0, 0))
                    archive.writestr(member, path.read_bytes(), zipfile.ZIP_DEFLATED, 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and draws the world; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write; an older toy world is replaced")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=TASKS, help="tasks to draw (default: all)"
    )
    for name, description in (
        ("train", "training items per task"),
        ("val", "validation items per task"),
        ("test", "test items per task"),
        ("seed", "random seed"),
    ):
        help_text = f"{description} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=int, default=getattr(ToyWorld, name), help=help_text)
    parser.add_argument("--zip", action="store_true", help="also write archives, for ZIP_MODE: true")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tasks = tuple(task for task in TASKS if task in args.tasks)
    try:
        make_toy_data(args.out, ToyWorld(tasks, args.train, args.val, args.test, args.seed, args.zip))
    except UserError as error:
        logger.error("%s", error)
        return error.exit_status
    except OSError as error:
        logger.error("--out %s cannot be written: %s", args.out, error)
        return UserError.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
