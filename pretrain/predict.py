"""A pre-trained model for pictures of one's own."""

from __future__ import annotations

from typing import ClassVar

from common.engine.build import AnyTask
from common.engine.predictor import Query, TrainedModel
from pretrain.task import PretrainTask


class PretrainedModel(TrainedModel[Query]):
    """Encodes pictures with texts: states and attention of a model before fine-tuning."""

    task_class: ClassVar[type[AnyTask]] = PretrainTask
