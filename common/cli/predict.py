"""Flags, model loading and output of every `predict.py`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from common.cli.box_flags import add_box_flags, detector_from_flags
from common.cli.run import log_to_stderr, parser
from common.config.schema import ExperimentConfig, load_config
from common.devices import device_of
from common.errors import UsageError
from common.evaluation.outputs import check_result_file
from common.extraction.features import RegionExtractor
from common.files import replace_file, writing
from common.inference.drawing import LabeledBox, draw
from common.inference.predictor import Predictor, QueryT, TrainedModel, default_checkpoint
from common.inference.queries import ImageWithRegions

PredictionT = TypeVar("PredictionT")
ModelT = TypeVar("ModelT", bound=TrainedModel[Any, Any])

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Pillow formats that `--save` writes, by file suffix."""


class PredictionView(NamedTuple):
    """A prediction as output.

    Attributes:
        lines: lines to print.
        record: JSON-serializable form of the prediction.
        boxes: regions to draw.
        caption: text below the drawing.
    """

    lines: Sequence[str]
    record: Any
    boxes: Sequence[LabeledBox]
    caption: str


def add_model_flags(flags: argparse.ArgumentParser) -> None:
    """Adds the flags that `load_from_flags` reads."""
    flags.add_argument("--cfg", required=True, help="yaml file of the experiment")
    flags.add_argument("--ckpt", help="checkpoint (default: the best one of the training run)")
    add_box_flags(flags)
    flags.add_argument(
        "--features",
        metavar="FILE",
        help="ResNet weights to compute region features with, if the model reads features and the boxes have none",
    )
    flags.add_argument("--device", help="cpu, cuda or cuda:N (default: the first GPU, if any)")
    flags.add_argument("--fp16", action="store_true", help="compute in half precision")


def load_from_flags(
    args: argparse.Namespace, model_class: type[ModelT], config: ExperimentConfig | None = None
) -> ModelT:
    """Loads the model described by the flags of `add_model_flags`.

    Args:
        args: parsed flags.
        model_class: class of the model.
        config: content of `--cfg`, if it has been read already.
    """
    device = device_of(args.device)
    config = config or load_config(model_class.task_class.config_class, args.cfg, args.set)
    return model_class.from_config(
        config,
        args.ckpt or default_checkpoint(config, args.cfg),
        device,
        fp16=args.fp16,
        detector=detector_from_flags(args, device),
        extractor=RegionExtractor.from_resnet_file(args.features, device) if args.features else None,
    )


def predict_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the flags of every `predict.py`."""
    flags = parser(description)
    add_model_flags(flags)
    flags.add_argument("--image", required=True, help="image file")
    flags.add_argument("--json", action="store_true", help="print json")
    flags.add_argument(
        "--save", metavar="FILE", help=f"draw regions and answer on the image ({', '.join(FORMATS)})"
    )
    return flags


def parse_predict_args(flags: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line of a `predict.py`, and checks `--save` before anything is computed.

    Raises:
        UsageError: a flag is invalid.
    """
    args = flags.parse_args()
    log_to_stderr()
    if args.save:
        path = Path(args.save)
        if path.suffix.lower() not in FORMATS:
            raise UsageError(f"--save: {path}: must end in {', '.join(FORMATS)}")
        inputs = (args.image, args.cfg, args.ckpt, args.boxes, args.features, args.detector_weights)
        check_result_file(path, "--save", (*inputs, getattr(args, "metadata", None)))
    return args


def predict_main(
    args: argparse.Namespace,
    predictor_class: type[Predictor[QueryT, PredictionT, Any]],
    query: QueryT,
    view: Callable[[ImageWithRegions, PredictionT], PredictionView],
) -> None:
    """Runs one query; prints and draws the prediction as the flags of `predict_parser` say.

    Raises:
        DataError: the query is invalid, or the drawing cannot be written.
    """
    predictor = load_from_flags(args, predictor_class)
    ((image, prediction),) = predictor.predictions_with_images([query])
    output = view(image, prediction)
    if args.json:
        sys.stdout.write(json.dumps(output.record) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in output.lines)
    if args.save:
        path = Path(args.save)
        drawing = draw(image.image, output.boxes, output.caption)

        def save(temporary: Path) -> None:
            try:
                drawing.save(temporary, FORMATS[path.suffix.lower()])
            except ValueError as error:  # the image is too large for WebP
                raise OSError(str(error)) from error

        with writing(path):
            replace_file(path, save)
