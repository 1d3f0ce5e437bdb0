"""Regions that a detector of torchvision finds, with weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from common.data.coco import CLASS_OF_CATEGORY
from common.data.images import clip_boxes
from common.data.regions.types import FoundRegions
from common.errors import DataError, UsageError, did_you_mean
from common.extraction.batching import computed_together
from common.models.official_names import OfficialNames
from common.models.pretrained import load_state, read_weights, weights_of

# Their published weights were trained with a batch norm without epsilon.
_WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


_NOT_OF_COCO_OBJECTS = ("keypointrcnn_resnet50_fpn",)


_COUNTER = "num_batches_tracked"


def detector_names() -> list[str]:
    """Returns the names of torchvision's detectors of COCO's objects."""
    from torchvision.models import detection, list_models

    return [name for name in list_models(module=detection) if name not in _NOT_OF_COCO_OBJECTS]


class TorchvisionDetector:
    """Finds the objects of COCO; a `Detector`. Nothing is downloaded.

    Args:
        name: of the model in torchvision, see `detector_names`.
        weights_file: its weights for the 91 labels of COCO, as torchvision offers them or its training writes them.
        device: where it computes.
        score_threshold: least confidence of a region, 0 to 1.
        max_boxes: most regions of a picture, the surest first.

    Attributes:
        score_threshold: as given.

    Raises:
        UsageError: there is no such detector.
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
        # A frozen batch norm counts nothing.
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

    def __call__(self, images: list[Image.Image]) -> list[FoundRegions]:
        """Returns the regions of RGB pictures.

        Raises:
            DataError: a picture is so narrow that nothing of it is left at the detector's scale.
        """
        for image in images:
            self._check(image)
        found: dict[int, FoundRegions] = {}
        for members in computed_together((image.size for image in images), self._device):
            batch = [_as_tensor(images[place]).to(self._device) for place in members]
            with torch.inference_mode():
                results = self._model(batch)
            for place, result in zip(members, results, strict=True):
                found[place] = self._regions(result, images[place].size)
        return [found[place] for place in range(len(images))]

    def _check(self, image: Image.Image) -> None:
        scaled = self._model.transform
        if scaled.fixed_size is None and min(image.size) * scaled.max_size < max(image.size):
            raise DataError(
                f"a picture of {image.width} x {image.height} pixels is too narrow for this detector, which scales the "
                f"long side to {scaled.max_size}; give its boxes"
            )

    def _regions(self, result: dict[str, Tensor], size: tuple[int, int]) -> FoundRegions:
        scores, order = result["scores"].float().cpu().sort(descending=True, stable=True)
        boxes, labels = result["boxes"].float().cpu()[order], result["labels"].cpu()[order]
        return FoundRegions(clip_boxes(boxes, *size), self._classes[labels], scores)


def _as_tensor(image: Image.Image) -> Tensor:
    """(3, h, w) float32 R, G, B, 0 to 1."""
    from torchvision.transforms.functional import pil_to_tensor

    pixels: Tensor = pil_to_tensor(image)
    return pixels.float() / 255
