"""Encodings and attention maps of a pre-trained model: use `vl_bert.load` or `python -m viz.attention_maps`."""

from __future__ import annotations

from typing import ClassVar

from common.batch import Sample
from common.inference.predictor import TrainedModel
from common.inference.queries import ImageWithRegions, Query
from common.training.task import AnyTask
from pretrain.task import PretrainTask


class PretrainedModel(TrainedModel[Query]):
    """A pre-trained model before fine-tuning.

    Sequences are not truncated, whereas training truncates them to `DATASET.SEQ_LEN`.
    """

    task_class: ClassVar[type[AnyTask]] = PretrainTask

    def sample(self, index: int, image: ImageWithRegions, query: Query) -> Sample:
        """See `TrainedModel`. As in pre-training, the feature of the whole image is the mean of its regions."""
        without_image_feature = image.regions._replace(image_feature=None)
        return super().sample(index, image._replace(regions=without_image_feature), query)
