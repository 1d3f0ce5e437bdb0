"""Computes region files (boxes, classes, features) for a folder of images.

Usage: `python -m data.extract_regions IMAGES --out FOLDER_OR_FILE.packed` with `--weights RESNET_FILE`, or with
`--cfg YAML --ckpt CHECKPOINT`; boxes come from `--boxes FILE` or from `--detector NAME --detector-weights FILE`. An
interrupted run continues with the same command. Images are never changed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

if __package__ in (None, ""):  # run as a file: the folder above holds the packages
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import vl_bert
from common.cli.box_flags import (
    DetectorFactory,
    add_box_flags,
    box_provenance,
    boxes_from_flags,
    check_box_flags,
    detector_factory,
)
from common.cli.run import parser, run
from common.config.schema import ExperimentConfig
from common.devices import device_of
from common.errors import UsageError
from common.extraction.features import RegionExtractor
from common.extraction.job import Extraction, Recipe, is_packed, list_images
from common.inference.grid import silent_grid, warn_grid
from common.provenance import fingerprint

logger = logging.getLogger(__name__)


def command_line() -> argparse.ArgumentParser:
    """Returns the parser of the command."""
    flags = parser((__doc__ or "").splitlines()[0])
    add = flags.add_argument
    add("images", metavar="IMAGES", help="folder, zip archive, or location in one (x.zip@/inner)")
    add("--out", required=True, type=Path, help="folder of json files; or packed file, which ends in .packed")
    add("--weights", metavar="FILE", help="ResNet weights for the features; --cfg describes an unusual model")
    add("--cfg", help="yaml file of the model whose region branch computes the features")
    add("--ckpt", metavar="FILE", help="its checkpoint")
    add_box_flags(flags)
    add("--classes", action="store_true", help="also write class scores, 81 columns, for pre-training")
    add(
        "--names",
        choices=("stem", "number"),
        default="stem",
        help="name region files after the image, or after the number at the end of its name, as VQA needs it",
    )
    add(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="dtype of features in a packed file",
    )
    add("--device", help="cpu, cuda or cuda:N (default: all GPUs, if any)")
    add(
        "--processes",
        type=int,
        default=0,
        metavar="N",
        help="default: one for each GPU; on a CPU one for each core, at most 8",
    )
    add(
        "--batch-size",
        type=int,
        default=4,
        metavar="N",
        help="images that a process gets at a time (default: %(default)s)",
    )
    add("--on-bad", choices=("raise", "skip"), default="raise", help="what to do with an invalid image")
    return flags


def _check(args: argparse.Namespace) -> None:
    check_box_flags(args)
    if bool(args.weights) == bool(args.ckpt):
        raise UsageError("give --weights FILE, or --cfg YAML with --ckpt FILE, for the features")
    if args.ckpt and not args.cfg:
        raise UsageError("--ckpt: needs --cfg, the yaml file of the model")
    if args.set and not args.cfg:
        raise UsageError("--set: needs --cfg, the yaml file that it changes")
    for flag, least in (("processes", 0), ("batch_size", 1)):
        if getattr(args, flag) < least:
            raise UsageError(f"--{flag.replace('_', '-')}: {getattr(args, flag)}: must be at least {least}")
    if args.dtype != "float32" and not is_packed(args.out):
        raise UsageError(
            f"--dtype {args.dtype}: json files are float32; use a file name that ends in .packed"
        )


def _devices(args: argparse.Namespace, images: int) -> list[torch.device]:
    """Returns the device of each process."""
    device = device_of(args.device)
    if device.type == "cpu":
        worth_it = min(torch.get_num_threads(), 8, images // 8)
        return [device] * (args.processes or max(worth_it, 1))
    if device.index is not None:
        return [device] * max(args.processes, 1)
    count = torch.cuda.device_count()
    return [torch.device("cuda", number % count) for number in range(args.processes or count)]


def _extractor(
    args: argparse.Namespace, config: ExperimentConfig | None
) -> Callable[[torch.device], RegionExtractor]:
    if args.weights:
        return partial(RegionExtractor.from_resnet_file, args.weights, config=config)
    assert config is not None
    return partial(RegionExtractor.from_checkpoint, config, args.ckpt)


def _arguments(args: argparse.Namespace, config: ExperimentConfig | None) -> dict[str, str]:
    """Returns what results depend on, see `common.provenance`."""
    flag = "--weights" if args.weights else "--ckpt"
    result = {flag: fingerprint(args.weights or args.ckpt)}
    if config is not None:
        result["--cfg"] = fingerprint(config.model_dump_json(include={"NETWORK", "SCALES"}).encode())
    return result | box_provenance(args) | {"--classes": str(args.classes), "--names": args.names}


def _finder(args: argparse.Namespace) -> DetectorFactory | None:
    if args.boxes:
        return None
    return detector_factory(args) if args.detector else silent_grid


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = command_line().parse_args(arguments)
    _check(args)
    images = list_images(args.images, by_number=args.names == "number")
    boxes = boxes_from_flags(args, len(images))
    config = vl_bert.read_config(args.cfg, args.set) if args.cfg else None
    recipe = Recipe(_extractor(args, config), _finder(args), args.classes)
    devices = _devices(args, len(images))
    torch.set_num_threads(1)  # the last bits of features depend on it
    # Build the models once here, so that their errors show before anything is written.
    width = recipe.build_extractor(torch.device("cpu")).feature_dim
    if recipe.build_detector is not None:
        recipe.build_detector(torch.device("cpu"))
    if recipe.build_detector is silent_grid:
        warn_grid()
    work = Extraction(
        images,
        boxes,
        recipe,
        devices,
        args.batch_size,
        skip_bad=args.on_bad == "skip",
        root=args.images,
        arguments=_arguments(args, config),
    )
    packed = is_packed(args.out)
    num_skipped = work.to_packed_file(args.out, args.dtype, width) if packed else work.to_folder(args.out)
    logger.info("%s: %d images, %d skipped", args.out, len(images) - num_skipped, num_skipped)


if __name__ == "__main__":
    sys.exit(run(main))
