"""VL-BERT for referring expressions: scores the candidate boxes (paper, section 4.2.3).

Shapes: B images, K boxes of all images, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from common.batch import Batch
from common.models.fast_rcnn import FastRCNN
from common.models.heads import init_xavier, region_classifier
from common.models.visual_linguistic_bert import VisualLinguisticBert
from common.models.visual_linguistic_model import VisualLinguisticModel
from refcoco.config import RefCOCOConfig


@dataclass(frozen=True)
class RefCOCOOutputs:
    """Output of the RefCOCO model.

    Attributes:
        logits: (K,) score of each box for the expression of its image, including the whole image.
    """

    logits: Tensor


class ResNetVLBERT(VisualLinguisticModel):
    """The model of RefCOCO, RefCOCO+ and RefCOCOg.

    Args:
        image_feature_extractor: the region branch.
        vlbert: the joint transformer; its pooler is not used.
        final_mlp: scores the final state of a region.
    """

    def __init__(
        self, *, image_feature_extractor: FastRCNN, vlbert: VisualLinguisticBert, final_mlp: nn.Sequential
    ) -> None:
        super().__init__(
            image_feature_extractor=image_feature_extractor,
            num_object_words=1,
            hidden_size=vlbert.hidden_size,
        )
        self.vlbert = vlbert
        self.final_mlp = final_mlp
        self.freeze_pooler()

    @classmethod
    def from_config(cls, config: RefCOCOConfig) -> ResNetVLBERT:
        network = config.NETWORK
        vlbert = network.VLBERT
        head = region_classifier(vlbert.hidden_size, 1, vlbert.hidden_act, network.CLASSIFIER_DROPOUT)
        init_xavier(head)
        return cls(
            image_feature_extractor=FastRCNN.from_config(config),
            vlbert=VisualLinguisticBert(vlbert),
            final_mlp=head,
        )

    def forward(self, batch: Batch) -> RefCOCOOutputs:
        """Scores every box of every image. Images have one expression each, so regions are in the order of boxes.

        There is no softmax over the boxes of an image: each box is a binary decision (paper, section 4.2.3).
        """
        encoded = self.encode(batch, self.region_features(batch))
        return RefCOCOOutputs(self.final_mlp(encoded.regions()).squeeze(1))
