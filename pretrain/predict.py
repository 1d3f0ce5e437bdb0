"""A pre-trained model for pictures of one's own.

It answers nothing, so there is no command here: use `vl_bert.load` from Python, or `python -m viz.attention_maps`.
"""

from __future__ import annotations

from typing import ClassVar

from common.batch import Sample
from common.engine.build import AnyTask
from common.engine.predictor import Query, Scene, TrainedModel
from pretrain.task import PretrainTask


class PretrainedModel(TrainedModel[Query]):
    """Encodes pictures with texts: states and attention of a model before fine-tuning.

    Texts and regions are read whole, where training cuts them at `DATASET.SEQ_LEN`.
    """

    task_class: ClassVar[type[AnyTask]] = PretrainTask

    def sample(self, index: int, scene: Scene, query: Query) -> Sample:
        """See `TrainedModel`; as in pre-training, the whole image is the mean of its regions."""
        mean = scene.regions._replace(image_feature=None)
        return super().sample(index, scene._replace(regions=mean), query)
