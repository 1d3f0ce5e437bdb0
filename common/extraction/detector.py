"""Torchvision detectors with weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common.data.coco import CLASS_OF_CATEGORY
from common.data.images import clip_boxes
from common.data.regions.types import Regions
from common.errors import DataError, UsageError, did_you_mean
from common.models.official_names import OfficialNames
from common.models.pretrained import load_state, read_weights, weights_of

# The published weights of these models were trained with frozen batch norm without epsilon.
_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


_NOT_OF_COCO_OBJECTS = ("keypointrcnn_resnet50_fpn",)


_COUNTER = "num_batches_tracked"


def detector_names() -> list[str]:
    """Returns the names of torchvision's detectors of COCO objects."""
    from torchvision.models import detection, list_models

    return [name for name in list_models(module=detection) if name not in _NOT_OF_COCO_OBJECTS]


class TorchvisionDetector:
    """Detects COCO objects; a `Detector`. Nothing is downloaded.

    Args:
        name: name of the torchvision model, see `detector_names`.
        weights_file: weights for the 91 COCO labels, as published by torchvision or written by its training script.
        device: device of the model.
        score_threshold: minimum confidence of a region, 0 to 1.
        max_boxes: maximum number of regions per image; the most confident ones are kept.

    Raises:
        UsageError: the detector is unknown.
        CheckpointError: the file cannot be read, or holds another model.
    """

    def __init__(
        self,
        name: str,
        weights_file: str | Path,
        device: torch.device | str = "cpu",
        score_threshold: float = 0.2,
        max_boxes: int = 100,
    ) -> None:
        from torchvision.models import get_model

        names = detector_names()
        if name not in names:
            hint = did_you_mean(name, names)
            raise UsageError(f"--detector: {name}: no such detector{hint}; use one of {', '.join(names)}")
        prefix = "box_" if "rcnn" in name else ""
        limits: dict[str, Any] = {
            f"{prefix}score_thresh": score_threshold,
            f"{prefix}detections_per_img": max_boxes,
        }
        model = get_model(name, weights=None, weights_backbone=None, **limits)
        source = str(weights_file)
        content = read_weights(weights_file, "--detector-weights")
        weights = weights_of(content.get("model", content), source)
        # Frozen batch norm has no counters.
        counters = {key: value for key, value in model.state_dict().items() if key.endswith(_COUNTER)}
        frozen = not any(key.endswith(_COUNTER) for key in weights)
        load_state(model, {**counters, **weights}, OfficialNames(), source)
        if frozen and name in _WITHOUT_EPSILON:
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eps = 0.0
        self._model = model.to(device).eval()
        self._device = device
        self.score_threshold = score_threshold
        self._classes = torch.tensor([CLASS_OF_CATEGORY.get(label, 0) for label in range(91)])

    def __call__(self, images: list[Image.Image]) -> list[Regions]:
        """Returns the regions of RGB images, one image at a time: padding to a batch would change the last bits.

        Raises:
            DataError: an image is so narrow that its short side vanishes at the scale of the detector.
        """
        # Imported here: torchvision takes two seconds and 90 MB of every process.
        from torchvision.transforms.functional import pil_to_tensor

        detections = []
        transform = self._model.transform
        for image in images:
            if transform.fixed_size is None and min(image.size) * transform.max_size < max(image.size):
                raise DataError(
                    f"an image of {image.width} x {image.height} pixels is too narrow for this detector, which scales "
                    f"the long side to {transform.max_size}; provide its boxes"
                )
            with torch.inference_mode():
                (result,) = self._model([pil_to_tensor(image).to(self._device).float() / 255])
            scores, order = result["scores"].float().cpu().sort(descending=True, stable=True)
            detections.append(
                Regions(
                    clip_boxes(result["boxes"].float().cpu()[order], *image.size),
                    class_ids=self._classes[result["labels"].cpu()[order]],
                    scores=scores,
                    image_size=image.size,
                )
            )
        return detections
