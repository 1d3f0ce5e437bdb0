"""Flags for the source of an image's regions: `--boxes`, or `--detector` with its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch

from common.data.regions.sources import RegionSource
from common.data.regions.types import Detector
from common.errors import UsageError
from common.extraction.detector import TorchvisionDetector
from common.provenance import fingerprint

DetectorFactory: TypeAlias = Callable[[torch.device], Detector]


def add_box_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--boxes`, `--detector` and the options of the detector."""
    parser.add_argument(
        "--boxes",
        metavar="FILE",
        help="boxes: json file, folder of region files, or packed file (default: run --detector, else use a grid)",
    )
    parser.add_argument(
        "--detector", metavar="NAME", help="torchvision detector, such as fasterrcnn_resnet50_fpn_v2"
    )
    parser.add_argument(
        "--detector-weights", metavar="FILE", help="weights of the detector; nothing is downloaded"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.2,
        help="minimum confidence of a detected region (default: %(default)s)",
    )
    parser.add_argument(
        "--max-boxes",
        type=int,
        default=100,
        help="maximum number of regions per image (default: %(default)s)",
    )


def check_box_flags(args: argparse.Namespace) -> None:
    """Checks the flags of `add_box_flags`.

    Raises:
        UsageError: flags contradict each other, or a number is out of range.
    """
    if args.boxes and args.detector:
        raise UsageError("--boxes and --detector: give one of them")
    if bool(args.detector) != bool(args.detector_weights):
        raise UsageError("--detector and --detector-weights: give both or neither")
    if not 0 <= args.score_threshold <= 1:
        raise UsageError(f"--score-threshold: {args.score_threshold}: must be from 0 to 1")
    if args.max_boxes < 1:
        raise UsageError(f"--max-boxes: {args.max_boxes}: must be at least 1")


def boxes_from_flags(args: argparse.Namespace, num_images: int) -> RegionSource | None:
    """Opens the file of `--boxes`; returns None without the flag.

    Raises:
        UsageError: the file has the boxes of one image, and there are several images.
        DataError: see `RegionSource`.
    """
    boxes = RegionSource(args.boxes) if args.boxes else None
    if boxes is not None and boxes.is_single_image and num_images > 1:
        raise UsageError(
            f"--boxes {args.boxes}: has the boxes of one image; for several images, give a folder of region files or "
            "a COCO file"
        )
    return boxes


def box_provenance(args: argparse.Namespace) -> dict[str, str]:
    """Returns the flags that determine the regions, for `common.provenance`."""
    if not args.detector:
        return {"--boxes": fingerprint(args.boxes) if args.boxes else "a grid"}
    return {
        "--detector": args.detector,
        "--detector-weights": fingerprint(args.detector_weights),
        "--score-threshold": str(args.score_threshold),
        "--max-boxes": str(args.max_boxes),
    }


def detector_factory(args: argparse.Namespace) -> DetectorFactory:
    """Returns a picklable function that builds the detector of the flags on a device."""
    return partial(
        TorchvisionDetector,
        args.detector,
        args.detector_weights,
        score_threshold=args.score_threshold,
        max_boxes=args.max_boxes,
    )


def detector_from_flags(args: argparse.Namespace, device: torch.device) -> Detector | None:
    """Checks the flags of `add_box_flags` and builds the detector; returns None without `--detector`.

    Raises:
        UsageError: see `check_box_flags`.
        CheckpointError: see `TorchvisionDetector`.
    """
    check_box_flags(args)
    return detector_factory(args)(device) if args.detector else None
