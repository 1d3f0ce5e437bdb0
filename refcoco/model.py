"""VL-BERT for referring expressions: which region does a sentence mean (paper 4.2.3; spec model.md 7.3).

Letters: B images, K boxes of all images, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from common.batch import Batch
from common.models.bert import Kernel
from common.models.fast_rcnn import FastRCNN
from common.models.heads import init_xavier, region_classifier
from common.models.visual_linguistic_bert import VisualLinguisticBert
from common.models.visual_linguistic_model import VisualLinguisticModel
from refcoco.config import RefCOCOConfig


@dataclass(frozen=True)
class RefCOCOOutputs:
    """What the model says of a batch.

    Attributes:
        logits: (K,) how well each box fits its image's sentence, the whole image included.
    """

    logits: Tensor


class ResNetVLBERT(VisualLinguisticModel):
    """The model of RefCOCO, RefCOCO+ and RefCOCOg.

    Args:
        image_feature_extractor: the region branch.
        vlbert: the joint transformer; a pooler that it has is not used.
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
        """The model that the config describes, with its initial values (spec model.md 8.1)."""
        network = config.NETWORK
        vlbert = network.VLBERT
        head = region_classifier(vlbert.hidden_size, 1, vlbert.hidden_act, network.CLASSIFIER_DROPOUT)
        init_xavier(head)
        return cls(
            image_feature_extractor=FastRCNN.from_config(config),
            vlbert=VisualLinguisticBert.from_config(vlbert),
            final_mlp=head,
        )

    def forward(self, batch: Batch, *, kernel: Kernel = "auto") -> RefCOCOOutputs:
        """Scores every box of every image; images have one sentence each, so regions come in the order of boxes."""
        encoded = self.encode(batch, self.region_features(batch), kernel=kernel)
        return RefCOCOOutputs(self.final_mlp(encoded.regions()).squeeze(1))
