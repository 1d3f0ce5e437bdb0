"""A pre-trained model for pictures of one's own.

It answers nothing, so there is no command here: use `vl_bert.load` from Python, or `python -m viz.attention_maps`.
"""

from __future__ import annotations

from typing import ClassVar

from common.batch import Sample
from common.inference.predictor import TrainedModel
from common.inference.queries import ImageWithRegions, Query
from common.training.task import AnyTask
from pretrain.task import PretrainTask


class PretrainedModel(TrainedModel[Query]):
    """Encodes pictures with texts: states and attention of a model before fine-tuning.

    Texts and regions are read whole, where training cuts them at `DATASET.SEQ_LEN`.
    """

    task_class: ClassVar[type[AnyTask]] = PretrainTask

    def sample(self, index: int, image_regions: ImageWithRegions, query: Query) -> Sample:
        """See `TrainedModel`; as in pre-training, the whole image is the mean of its regions."""
        mean = image_regions.regions._replace(image_feature=None)
        return super().sample(index, image_regions._replace(regions=mean), query)
