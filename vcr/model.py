"""VL-BERT for VCR: scores four answers or rationales (paper, section 4.2.1).

Shapes: B images, K boxes, C choices, Q = B * C text sequences, T tokens, R regions of all sequences, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from common.batch import Batch, Lengths
from common.models.bert import init_bert_weights
from common.models.fast_rcnn import NUM_CLASSES, FastRCNN, RegionFeatures
from common.models.heads import classifier, region_classifier
from common.models.visual_linguistic_bert import VisualLinguisticBert
from common.models.visual_linguistic_model import VisualLinguisticModel
from vcr.config import VCRConfig

OBJECT_WORDS = {1: NUM_CLASSES, 2: 1, 3: 0}


@dataclass(frozen=True)
class VCROutputs:
    """Output of the VCR model.

    Attributes:
        logits: (B, C) score of every choice. In QA->R tests C = 16: four rationales for each of four answers.
        region_logits: (N, 81) class logits of the regions of the region classification loss, or None.
        region_classes: (N,) classes of these regions.
    """

    logits: Tensor
    region_logits: Tensor | None = None
    region_classes: Tensor | None = None


class ResNetVLBERT(VisualLinguisticModel):
    """The VCR model.

    Args:
        image_feature_extractor: the region branch; None for a blind model.
        vlbert: the joint transformer, with pooler.
        final_mlp: scores the pooled state of a sequence.
        cnn_loss_reg: classifies the final state of every region, or None.
        object_word_mode: linguistic embedding of regions: 1 by class, 2 shared, 3 mean of the words of the text.
        special_ids: ids of [CLS] and [SEP], which mode 3 excludes.
        grounding: False gives every word the feature of the whole image instead of its box.
        object_attention: False removes the regions from the sequence.
    """

    def __init__(
        self,
        *,
        image_feature_extractor: FastRCNN | None,
        vlbert: VisualLinguisticBert,
        final_mlp: nn.Sequential,
        cnn_loss_reg: nn.Sequential | None = None,
        object_word_mode: int = 2,
        special_ids: tuple[int, int] = (101, 102),
        grounding: bool = True,
        object_attention: bool = True,
    ) -> None:
        super().__init__(
            image_feature_extractor=image_feature_extractor,
            num_object_words=OBJECT_WORDS[object_word_mode] if image_feature_extractor is not None else 0,
            hidden_size=vlbert.hidden_size,
        )
        self.grounding = grounding
        self.object_attention = object_attention
        self.special_ids = special_ids
        self.cnn_loss_reg = cnn_loss_reg
        self.vlbert = vlbert
        self.final_mlp = final_mlp
        self.freeze_unseen()

    @classmethod
    def from_config(cls, config: VCRConfig, special_ids: tuple[int, int]) -> ResNetVLBERT:
        network = config.NETWORK
        vlbert = network.VLBERT
        region_loss = network.ENABLE_CNN_REG_LOSS and not network.BLIND
        extractor = None
        if not network.BLIND:
            extractor = FastRCNN.from_config(config, classify=region_loss and not network.CNN_LOSS_TOP)
        top = None
        if region_loss and network.CNN_LOSS_TOP:
            top = region_classifier(
                vlbert.hidden_size, NUM_CLASSES, vlbert.hidden_act, network.CNN_REG_DROPOUT
            )
            init_bert_weights(top, 0.02)
        return cls(
            image_feature_extractor=extractor,
            vlbert=VisualLinguisticBert(vlbert),
            final_mlp=classifier(
                network.CLASSIFIER_TYPE,
                hidden_size=vlbert.hidden_size,
                outputs=1,
                dropout=network.CLASSIFIER_DROPOUT,
                inner_size=network.CLASSIFIER_HIDDEN_SIZE,
            ),
            cnn_loss_reg=top,
            object_word_mode=vlbert.object_word_embed_mode,
            special_ids=special_ids,
            grounding=not network.NO_GROUNDING,
            object_attention=not network.NO_OBJ_ATTENTION,
        )

    def text_visual(self, batch: Batch, features: RegionFeatures | None) -> tuple[Tensor, Tensor]:
        """Like `VisualLinguisticModel`; without grounding every word refers to the whole image."""
        if not self.grounding:
            batch = replace(batch, text=replace(batch.text, tags=torch.zeros_like(batch.text.tags)))
        return super().text_visual(batch, features)

    def regions(self, batch: Batch) -> tuple[Lengths, Tensor]:
        """Like `VisualLinguisticModel`; none without object attention."""
        return super().regions(batch) if self.object_attention else self.no_regions(batch)

    def region_words(self, batch: Batch, region_box: Tensor, region_sequence: Tensor) -> Tensor:
        """Like `VisualLinguisticModel`; mode 3 averages the words of the text sequence of each region."""
        if self.object_linguistic_embeddings is not None:
            return super().region_words(batch, region_box, region_sequence)
        text = batch.text
        ordinary = torch.ones_like(text.ids, dtype=torch.bool)
        for special in self.special_ids:
            ordinary &= text.ids != special
        # As in the reference, use the frozen table even if special words have a trainable one.
        words = self.vlbert.word_embeddings(text.ids) * ordinary[:, None]
        rows = text.lengths.rows()
        total = words.new_zeros(len(text.lengths), words.shape[1]).index_add(0, rows, words)
        count = ordinary.new_zeros(len(text.lengths), dtype=words.dtype).index_add(
            0, rows, ordinary.to(words.dtype)
        )
        mean: Tensor = total / count.clamp(min=1)[:, None]
        return mean[region_sequence]

    def forward(self, batch: Batch) -> VCROutputs:
        features = self.region_features(batch)
        encoded = self.encode(batch, features)
        logits = self.final_mlp(self.vlbert.pool(encoded)).view(batch.num_samples, -1)
        if self.cnn_loss_reg is not None:
            assert batch.box_classes is not None
            classes = batch.box_classes[encoded.region_visual]
            return VCROutputs(logits, self.cnn_loss_reg(encoded.regions()), classes)
        if features is not None and features.class_logits is not None:
            return VCROutputs(logits, features.class_logits, batch.box_classes)
        return VCROutputs(logits)
