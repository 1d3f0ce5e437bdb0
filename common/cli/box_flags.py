"""Flags that say where the regions of a picture come from."""

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

MakeFinder: TypeAlias = Callable[[torch.device], Detector]


def add_box_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--boxes` and the flags of a detector."""
    parser.add_argument(
        "--boxes",
        metavar="FILE",
        help="json, folder of region files, or packed file with the boxes (default: the detector's, else a grid)",
    )
    parser.add_argument(
        "--detector", metavar="NAME", help="torchvision detector, such as fasterrcnn_resnet50_fpn_v2"
    )
    parser.add_argument("--detector-weights", metavar="FILE", help="its weights; nothing is downloaded")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.2,
        help="least confidence of a detected region (default: %(default)s)",
    )
    parser.add_argument(
        "--max-boxes", type=int, default=100, help="most regions of a picture (default: %(default)s)"
    )


def check_box_flags(args: argparse.Namespace) -> None:
    """Checks the flags of `add_box_flags`.

    Raises:
        UsageError: they do not fit together, or a number is out of range.
    """
    if args.boxes and args.detector:
        raise UsageError("--boxes and --detector: give one of them")
    if bool(args.detector) != bool(args.detector_weights):
        raise UsageError("--detector and --detector-weights: give both, or none of them")
    if not 0 <= args.score_threshold <= 1:
        raise UsageError(f"--score-threshold: {args.score_threshold}: must be from 0 to 1")
    if args.max_boxes < 1:
        raise UsageError(f"--max-boxes: {args.max_boxes}: must be at least 1")


def boxes_from_flags(args: argparse.Namespace, pictures: int) -> RegionSource | None:
    """Opens the file of `--boxes` for a number of pictures; None without one.

    Raises:
        UsageError: it holds the boxes of one picture, and there are more.
        DataError: see `RegionSource`.
    """
    boxes = RegionSource(args.boxes) if args.boxes else None
    if boxes is not None and boxes.is_single_image and pictures > 1:
        raise UsageError(
            f"--boxes {args.boxes}: holds the boxes of one picture; for several, give a folder of such files or a "
            "COCO file"
        )
    return boxes


def box_arguments(args: argparse.Namespace) -> dict[str, str]:
    """Returns what the flags of `add_box_flags` stand for, see `common.provenance`."""
    if not args.detector:
        return {"--boxes": fingerprint(args.boxes) if args.boxes else "a grid"}
    return {
        "--detector": args.detector,
        "--detector-weights": fingerprint(args.detector_weights),
        "--score-threshold": str(args.score_threshold),
        "--max-boxes": str(args.max_boxes),
    }


def detector_maker(args: argparse.Namespace) -> MakeFinder:
    """Returns what makes the detector of the flags of `add_box_flags` on a device; see `TorchvisionDetector`."""
    return partial(
        TorchvisionDetector,
        args.detector,
        args.detector_weights,
        score_threshold=args.score_threshold,
        max_boxes=args.max_boxes,
    )


def finder_from_flags(args: argparse.Namespace, device: torch.device) -> Detector | None:
    """Returns the detector that the flags of `add_box_flags` describe; None without one.

    Raises:
        UsageError: see `check_box_flags`.
        CheckpointError: see `TorchvisionDetector`.
    """
    check_box_flags(args)
    return detector_maker(args)(device) if args.detector else None
