"""What every `predict.py` shares: flags, the model they describe, and how an answer is shown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from common.cli.box_flags import add_box_flags, finder_from_flags
from common.cli.run import log_to_stderr, parser
from common.devices import device_of
from common.errors import UsageError
from common.evaluation.outputs import check_result_file
from common.extraction.features import RegionExtractor
from common.files import replace_file, writing
from common.inference.drawing import DrawnBox, draw
from common.inference.predictor import Predictor, QueryT, TrainedModel
from common.inference.queries import ImageWithRegions

PredictionT = TypeVar("PredictionT")


ModelT = TypeVar("ModelT", bound=TrainedModel[Any, Any])


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What `--save` writes, by the ending of the name."""


class PredictionView(NamedTuple):
    """An answer for people and for programs.

    Attributes:
        lines: what to print.
        record: the same, JSON-ready.
        boxes: regions to draw.
        title: text below the saved picture.
    """

    lines: Sequence[str]
    record: Any
    boxes: Sequence[DrawnBox]
    title: str


def add_model_flags(result: argparse.ArgumentParser) -> None:
    """Adds the flags that name a trained model, and what it sees in pictures (`load_from_flags`)."""
    result.add_argument("--cfg", required=True, help="yaml file of the experiment")
    result.add_argument("--ckpt", help="checkpoint (default: the best one of the training run)")
    add_box_flags(result)
    result.add_argument(
        "--features",
        metavar="FILE",
        help="ResNet weights that compute region features, for a model that reads features and boxes without them",
    )
    result.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU, if any)")
    result.add_argument("--fp16", action="store_true", help="compute in half precision")


def load_from_flags(args: argparse.Namespace, model_class: type[ModelT]) -> ModelT:
    """Loads the model that the flags of `add_model_flags` name."""
    device = device_of(args.device)
    return model_class.load(
        args.cfg,
        args.ckpt,
        device,
        overrides=args.set,
        fp16=args.fp16,
        finder=finder_from_flags(args, device),
        extractor=RegionExtractor.from_resnet_file(args.features, device) if args.features else None,
    )


def predict_parser(description: str) -> argparse.ArgumentParser:
    """Returns the flags that every `predict.py` has; tasks add their texts."""
    result = parser(description)
    add_model_flags(result)
    result.add_argument("--image", required=True, help="the picture")
    result.add_argument("--json", action="store_true", help="print json")
    result.add_argument(
        "--save", metavar="FILE", help=f"draw regions and answer into this picture ({', '.join(FORMATS)})"
    )
    return result


def read_arguments(flags: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line of a `predict.py`, and checks `--save` before anything is computed.

    Raises:
        UsageError: a flag is wrong.
    """
    args = flags.parse_args()
    log_to_stderr()
    if args.save:
        path = Path(args.save)
        if path.suffix.lower() not in FORMATS:
            raise UsageError(f"--save: {path}: must end in {', '.join(FORMATS)}")
        sources = (args.image, args.cfg, args.ckpt, args.boxes, args.features, args.detector_weights)
        check_result_file(path, "--save", (*sources, getattr(args, "metadata", None)))
    return args


def predict_main(
    args: argparse.Namespace,
    predictor_class: type[Predictor[QueryT, PredictionT, Any]],
    query: QueryT,
    describe: Callable[[ImageWithRegions, PredictionT], PredictionView],
) -> None:
    """Answers one query as the command line (`read_arguments`) says, and prints and draws the answer."""
    ((image_regions, prediction),) = load_from_flags(args, predictor_class).answers([query])
    shown = describe(image_regions, prediction)
    if args.json:
        sys.stdout.write(json.dumps(shown.record) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in shown.lines)
    if args.save:
        _save(draw(image_regions.image, shown.boxes, shown.title), Path(args.save))


def _save(picture: Image.Image, path: Path) -> None:
    def fill(temporary: Path) -> None:
        try:
            picture.save(temporary, FORMATS[path.suffix.lower()])
        except ValueError as error:  # too large for WebP
            raise OSError(str(error)) from error

    with writing(path):
        replace_file(path, fill)
