"""VL-BERT in three lines.

    import vl_bert
    model = vl_bert.load("cfgs/vqa/base_4x16G_fp32.yaml", "vqa.model")
    model.predict("street.jpg", "What color is the car?", "street.json")

This model reads region features: `street.json` is the image's region file (`python -m data.extract_regions` writes it).
With an `extractor`, boxes without features work as well. Models that read pixels need no features.

`load` returns a `VQAPredictor`, `RefCOCOPredictor`, `VCRPredictor` or `PretrainedModel`. All of them `encode` images
with texts; all but the last `predict`. In type-checked code, use the class: `VQAPredictor.load(...)`. For several
images, pass a list of `Query` or `VCRQuery` to `predict_batch` or `encode_batch`; the latter returns one encoding per
choice of a `VCRQuery`. `TorchvisionDetector` is a `detector` of regions, `RegionExtractor` an `extractor` of region
features; both compute on the CPU unless given a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.config.schema import ExperimentConfig, load_config
from common.config.yaml_tree import load_yaml
from common.data.regions.types import Detector
from common.errors import ConfigError
from common.extraction.detector import TorchvisionDetector
from common.extraction.features import RegionExtractor
from common.inference.predictor import TrainedModel, default_checkpoint
from common.inference.queries import Query
from pretrain.predict import PretrainedModel
from refcoco.predict import RefCOCOPredictor
from vcr.predict import VCRPredictor, VCRQuery
from vqa.predict import VQAPredictor

__all__ = [
    "PretrainedModel",
    "Query",
    "RefCOCOPredictor",
    "RegionExtractor",
    "TorchvisionDetector",
    "VCRPredictor",
    "VCRQuery",
    "VQAPredictor",
    "load",
    "model_class",
    "read_config",
]

AnyModel = TrainedModel[Any, Any]

_MODELS: dict[str, type[AnyModel]] = {
    "vcr": VCRPredictor,
    "vqa": VQAPredictor,
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), RefCOCOPredictor),
    **dict.fromkeys(("conceptual_captions", "coco_captions"), PretrainedModel),
}


def read_config(cfg: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Reads a yaml file with the schema of its task, which `DATASET.DATASET` determines.

    Args:
        cfg: yaml file of the experiment.
        overrides: `KEY.PATH=VALUE` settings that replace values of the file.

    Raises:
        ConfigError: the file cannot be read, does not name a dataset, or has an invalid value.
    """
    tree = load_yaml(Path(cfg))
    for text in overrides:
        tree.override(text)
    data = tree.values.get("DATASET")
    key = "DATASET.0.DATASET" if isinstance(data, list) else "DATASET.DATASET"
    first = data[0] if isinstance(data, list) and data else data
    name = first.get("DATASET") if isinstance(first, dict) else None
    if name not in _MODELS:
        raise ConfigError(f"{cfg}: {key}: {name!r}: must be one of {', '.join(_MODELS)}")
    return load_config(_MODELS[name].task_class.config_class, cfg, tree=tree)


def model_class(config: ExperimentConfig) -> type[AnyModel]:
    """Returns the model class for a configuration, by its `DATASET.DATASET`."""
    return _MODELS[config.datasets[0].DATASET]


def load(
    cfg: str | Path,
    ckpt: str | Path | None = None,
    device: str | torch.device | None = None,
    *,
    overrides: Sequence[str] = (),
    fp16: bool = False,
    detector: Detector | None = None,
    extractor: RegionExtractor | None = None,
) -> Any:
    """Loads a trained model.

    Args:
        cfg: yaml file of the experiment.
        ckpt: checkpoint; by default the best one of the training run.
        device: cpu or cuda; by default the first GPU, or the CPU if there is none.
        overrides: `KEY.PATH=VALUE` settings that replace values of the yaml file.
        fp16: compute in half precision.
        detector: finds regions in images without boxes; by default a fixed grid, with a warning.
        extractor: computes region features, for a model that reads features.

    Returns:
        A model of the class that matches the yaml file. Its type is `Any` because the file determines the class;
        `VQAPredictor.load` and its siblings are typed.

    Raises:
        UsageError: no such device.
        ConfigError: the yaml file or an override is invalid.
        CheckpointError: the checkpoint cannot be read or belongs to another model.
    """
    config = read_config(cfg, overrides)
    path = ckpt or default_checkpoint(config, cfg)
    return model_class(config).from_config(
        config, path, device, fp16=fp16, detector=detector, extractor=extractor
    )
