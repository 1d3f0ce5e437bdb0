"""VL-BERT in pre-training: predicts masked words and regions (paper, section 3.3).

Samples with an image come first, texts without one last. Shapes: B samples, P of them with an image, K boxes of all
images, T tokens, R labeled regions, M masked tokens, V words, C region classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.batch import Batch
from common.models.fast_rcnn import FastRCNN, RegionFeatures
from common.models.visual_linguistic_bert import (
    Encoded,
    VisualLinguisticBert,
    VisualLinguisticBertForPretraining,
)
from common.models.visual_linguistic_model import VisualLinguisticModel
from pretrain.config import MULTITASK, PretrainConfig
from pretrain.dataset import PretrainBatch


@dataclass(frozen=True)
class PretrainOutputs:
    """Output of the pre-training heads; None if a head is off.

    Attributes:
        relationship_logits: (P, 2), whether the caption belongs to the image.
        word_logits: (M, V) at the masked tokens.
        region_logits: (R, C) at the labeled regions.
    """

    relationship_logits: Tensor | None
    word_logits: Tensor | None
    region_logits: Tensor | None


class MaskedVLBERT(VisualLinguisticModel):
    """Base of the pre-training models: regions of a `PretrainBatch` may be masked, and texts may have no image.

    Args:
        image_feature_extractor: the region branch.
        vlbert: the joint transformer.
        mask_region_features: a learned vector replaces the features of masked regions; otherwise their pixels are
            blanked.
        mask_region_words: a learned vector replaces the linguistic embedding of masked regions.
        reads_texts: texts without an image get a learned vector as visual feature.
        initializer_range: standard deviation of the initial embeddings.
    """

    def __init__(
        self,
        *,
        image_feature_extractor: FastRCNN,
        vlbert: VisualLinguisticBert,
        mask_region_features: bool,
        mask_region_words: bool,
        reads_texts: bool,
        initializer_range: float,
    ) -> None:
        hidden_size = vlbert.hidden_size
        super().__init__(
            image_feature_extractor=image_feature_extractor, num_object_words=1, hidden_size=hidden_size
        )
        self.object_mask_visual_embedding = (
            nn.Embedding(1, image_feature_extractor.feature_dim) if mask_region_features else None
        )
        self.object_mask_word_embedding = nn.Embedding(1, hidden_size) if mask_region_words else None
        self.aux_text_visual_embedding = nn.Embedding(1, hidden_size) if reads_texts else None
        for table in (
            self.object_linguistic_embeddings,
            self.object_mask_word_embedding,
            self.aux_text_visual_embedding,
        ):
            if table is not None:
                nn.init.normal_(table.weight, std=initializer_range)
        # A masked region starts as a region without content.
        if self.object_mask_visual_embedding is not None:
            nn.init.zeros_(self.object_mask_visual_embedding.weight)
        self.vlbert = vlbert

    def region_features(self, batch: Batch) -> RegionFeatures | None:
        """Computes the features of every box, with masked ones replaced; None for texts alone."""
        assert self.image_feature_extractor is not None
        if not batch.num_images:
            return None
        if not isinstance(batch, PretrainBatch):
            return super().region_features(batch)
        table = self.object_mask_visual_embedding
        features: RegionFeatures = self.image_feature_extractor(
            batch,
            masked=batch.masked_regions,
            mask_embedding=None if table is None else table.weight[0],
            masked_pixel_boxes=batch.masked_pixel_boxes,
        )
        return features

    def text_visual(self, batch: Batch, features: RegionFeatures | None) -> tuple[Tensor, Tensor]:
        """Like `VisualLinguisticModel`; texts without an image come last and use the row after all boxes."""
        visual, rows = super().text_visual(batch, features)
        if self.aux_text_visual_embedding is None:
            return visual, rows
        # A batch of texts alone has a dummy row of zeros in place of boxes.
        boxes = visual[: batch.num_boxes.total]
        return torch.cat([boxes, self.aux_text_visual_embedding.weight.to(visual.dtype)]), rows

    def region_words(self, batch: Batch, region_box: Tensor, region_sequence: Tensor) -> Tensor:
        """Like `VisualLinguisticModel`; masked regions have a learned word."""
        words = super().region_words(batch, region_box, region_sequence)
        if self.object_mask_word_embedding is None or not isinstance(batch, PretrainBatch):
            return words
        return torch.where(
            batch.masked_regions[region_box, None], self.object_mask_word_embedding.weight, words
        )


class ResNetVLBERTForPretraining(MaskedVLBERT):
    """The pre-training model, for captions with or without a text corpus."""

    vlbert: VisualLinguisticBertForPretraining

    @classmethod
    def from_config(cls, config: PretrainConfig) -> ResNetVLBERTForPretraining:
        network = config.NETWORK
        model = cls(
            vlbert=VisualLinguisticBertForPretraining(
                network.VLBERT,
                with_rel_head=network.WITH_REL_LOSS,
                with_mlm_head=network.WITH_MLM_LOSS,
                with_mvrc_head=network.WITH_MVRC_LOSS,
                num_region_classes=network.VLBERT.visual_region_classes,
            ),
            **_shared_arguments(config, reads_texts=config.MODULE == MULTITASK),
        )
        if not network.WITH_REL_LOSS:
            model.freeze_pooler()
        if network.VLBERT.pos_embedding_frozen:
            model.vlbert.position_embeddings.requires_grad_(False)
        return model

    def forward(self, batch: PretrainBatch) -> PretrainOutputs:
        encoded = self.encode(batch, self.region_features(batch))
        bert = self.vlbert
        # Heads run at labeled positions only. With BERT-base sizes, the output layer of the MLM head costs
        # as much per token as three encoder layers.
        words = encoded.text(batch.masked_token_index.values)
        regions = encoded.regions(batch.masked_region_index.values)
        return PretrainOutputs(
            relationship_logits=None
            if bert.relationsip_head is None
            else bert.relationsip_head(bert.pool(encoded)[: batch.num_images]),
            word_logits=None if bert.mlm_head is None else bert.mlm_head(words, bert.word_embeddings.weight),
            region_logits=None if bert.mvrc_head is None else bert.mvrc_head(regions),
        )


class ResNetVLBERTForAttentionVis(MaskedVLBERT):
    """A pre-trained model without heads, which also returns the attention of all layers."""

    @classmethod
    def from_config(cls, config: PretrainConfig) -> ResNetVLBERTForAttentionVis:
        return cls(
            vlbert=VisualLinguisticBert(config.NETWORK.VLBERT),
            **_shared_arguments(config, reads_texts=True),
        )

    def forward(self, batch: Batch) -> Encoded:
        """Encodes the batch with attention maps."""
        return self.encode(batch, self.region_features(batch), kernel="explicit")


def _shared_arguments(config: PretrainConfig, *, reads_texts: bool) -> dict[str, Any]:
    network = config.NETWORK
    return {
        "image_feature_extractor": FastRCNN.from_config(config),
        "mask_region_features": network.IMAGE_FEAT_PRECOMPUTED or not network.MASK_RAW_PIXELS,
        "mask_region_words": network.WITH_MVRC_LOSS,
        "reads_texts": reads_texts,
        "initializer_range": network.VLBERT.initializer_range,
    }
