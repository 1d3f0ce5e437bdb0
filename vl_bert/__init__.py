"""VL-BERT in three lines.

    import vl_bert
    model = vl_bert.load("cfgs/vqa/base_4x16G_fp32.yaml", "vqa.model")
    model.predict("street.jpg", "What colour is the car?", "street.json")

This model reads region features: `street.json` is the region file of the picture (`python -m data.extract_regions`);
with an `extractor`, any boxes do. Models that read pixels need no features.

`load` returns the class of the task: `VQAPredictor`, `RefCOCOPredictor`, `VCRPredictor`, or `PretrainedModel`; all of
them `encode` pictures with texts. Where types are checked, `VQAPredictor.load(...)` says what it returns. Several
pictures are a list of `Query` or `VCRQuery` for `predict_batch` and `encode_batch`, which gives an encoding of each
choice of a `VCRQuery`. `TorchvisionDetector` is a `finder` of regions, `RegionExtractor` the `extractor` for models
that read features; both compute on the CPU unless a device is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.config.schema import ExperimentConfig, load_config
from common.config.yaml_tree import load_yaml
from common.errors import ConfigError
from common.extraction.detector import TorchvisionDetector
from common.extraction.features import RegionExtractor
from common.inference.predictor import TrainedModel
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


def model_class(cfg: str | Path, overrides: Sequence[str] = ()) -> type[AnyModel]:
    """Returns the class that loads the models of a yaml file, by its `DATASET.DATASET`.

    Raises:
        ConfigError: the file cannot be read, or does not name a data set.
    """
    tree = load_yaml(Path(cfg))
    for text in overrides:
        tree.override(text)
    data = tree.values.get("DATASET")
    key = "DATASET.0.DATASET" if isinstance(data, list) else "DATASET.DATASET"
    first = data[0] if isinstance(data, list) and data else data
    name = first.get("DATASET") if isinstance(first, dict) else None
    if name not in _MODELS:
        raise ConfigError(f"{cfg}: {key}: {name!r}: must be one of {', '.join(_MODELS)}: it tells the task")
    return _MODELS[name]


def read_config(cfg: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Reads a yaml file under the schema of its task.

    Args:
        cfg: the file.
        overrides: `KEY.PATH=VALUE` settings on top of it.

    Raises:
        ConfigError: see `load_config`.
    """
    return load_config(model_class(cfg, overrides).task_class.config_class, cfg, overrides)


def load(
    cfg: str | Path,
    ckpt: str | Path | None = None,
    device: str | None = None,
    *,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Any:
    """Loads a trained model for pictures of your own.

    Args:
        cfg: yaml file of the experiment.
        ckpt: its checkpoint; by default the best one of the training run.
        device: where to compute; by default the first GPU, else the CPU.
        overrides: `KEY.PATH=VALUE` settings on top of the file.
        options: others of `TrainedModel.load`.

    Returns:
        The model, of the class that fits the yaml file.

    Raises:
        ConfigError: the yaml file or an override is wrong.
        CheckpointError: the checkpoint cannot be read, or belongs to another model.
    """
    return model_class(cfg, overrides).load(cfg, ckpt, device, overrides=overrides, **options)
