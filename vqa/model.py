"""VL-BERT for VQA: scores the answers of a vocabulary (paper, section 4.2.2).

Shapes: B images (and texts), K boxes of all images, T tokens, D visual width, H hidden width, V answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batch import Batch
from common.models.fast_rcnn import FastRCNN, RegionFeatures
from common.models.heads import classifier
from common.models.visual_linguistic_bert import VisualLinguisticBert
from common.models.visual_linguistic_model import VisualLinguisticModel
from vqa.config import VQAConfig

MASK_FROM_END = 2
"""The answer is predicted at [MASK], the last but one token of `[CLS] question [SEP] [MASK] [SEP]`."""


@dataclass(frozen=True)
class VQAOutputs:
    """Output of the VQA model.

    Attributes:
        logits: (B, V) score of every answer.
    """

    logits: Tensor


class ResNetVLBERT(VisualLinguisticModel):
    """The VQA model.

    Args:
        image_feature_extractor: the region branch; None for a blind model.
        vlbert: the joint transformer; its pooler is not used.
        grounding: False gives words no visual feature; otherwise all words get that of the whole image, box 0.
        final_mlp: scores the state at [MASK].
    """

    def __init__(
        self,
        *,
        image_feature_extractor: FastRCNN | None,
        vlbert: VisualLinguisticBert,
        grounding: bool = True,
        final_mlp: nn.Sequential,
    ) -> None:
        super().__init__(
            image_feature_extractor=image_feature_extractor,
            num_object_words=1,
            hidden_size=vlbert.hidden_size,
        )
        self.grounding = grounding
        self.vlbert = vlbert
        self.final_mlp = final_mlp
        self.freeze_unseen()
        self.freeze_pooler()

    @classmethod
    def from_config(cls, config: VQAConfig) -> ResNetVLBERT:
        network = config.NETWORK
        return cls(
            image_feature_extractor=None if network.BLIND else FastRCNN.from_config(config),
            vlbert=VisualLinguisticBert(network.VLBERT),
            final_mlp=classifier(
                network.CLASSIFIER_TYPE,
                hidden_size=network.VLBERT.hidden_size,
                outputs=config.DATASET.ANSWER_VOCAB_SIZE,
                dropout=network.CLASSIFIER_DROPOUT,
                inner_size=network.CLASSIFIER_HIDDEN_SIZE,
                activation=network.VLBERT.hidden_act,
            ),
            grounding=not network.NO_GROUNDING,
        )

    def text_visual(self, batch: Batch, features: RegionFeatures | None) -> tuple[Tensor, Tensor]:
        """Like `VisualLinguisticModel`; without grounding words use a row of zeros after the boxes."""
        visual, rows = super().text_visual(batch, features)
        if self.grounding or features is None:
            return visual, rows
        return F.pad(visual, (0, 0, 0, 1)), torch.full_like(rows, len(visual))

    def forward(self, batch: Batch) -> VQAOutputs:
        encoded = self.encode(batch, self.region_features(batch))
        lengths = batch.text.lengths
        # All sequences end with [MASK] [SEP], so the index needs no search for the token.
        answer = lengths.starts + lengths.tensor - MASK_FROM_END
        return VQAOutputs(self.final_mlp(encoded.text().index_select(0, answer)))
