"""VL-BERT in pre-training: hidden words and regions are restored from what is left (paper 3.3; spec model.md 7.4-7.6).

Letters: B samples, P of them with a picture, K boxes of all pictures, T tokens, R labelled regions, M labelled words,
F region feature width, H hidden width, V words, C region classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.batch import Batch
from common.models.bert import Kernel
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
    """What the heads say; None where a head is off.

    Attributes:
        relationship_logits: (P, 2), does the caption belong to the picture?
        word_logits: (M, V) at the labelled words; (T, V) at all when dense.
        region_logits: (R, C) at the labelled regions; (K, C) at all boxes when dense.
    """

    relationship_logits: Tensor | None
    word_logits: Tensor | None
    region_logits: Tensor | None


class MaskedVLBERT(VisualLinguisticModel):
    """What the pre-training models share: regions of a `PretrainBatch` may be hidden, and texts may stand alone.

    Args:
        image_feature_extractor: the region branch.
        vlbert: the joint transformer.
        hides_features: a learned vector replaces the features of hidden regions; else their pixels are blank.
        hides_words: a learned vector replaces the linguistic embedding of hidden regions.
        reads_texts: texts without a picture carry a learned vector as their visual feature.
        initializer_range: standard deviation of the embeddings' initial values.
    """

    def __init__(
        self,
        *,
        image_feature_extractor: FastRCNN,
        vlbert: VisualLinguisticBert,
        hides_features: bool,
        hides_words: bool,
        reads_texts: bool,
        initializer_range: float,
    ) -> None:
        hidden_size = vlbert.hidden_size
        super().__init__(
            image_feature_extractor=image_feature_extractor, num_object_words=1, hidden_size=hidden_size
        )
        self.object_mask_visual_embedding = (
            nn.Embedding(1, image_feature_extractor.feature_dim) if hides_features else None
        )
        self.object_mask_word_embedding = nn.Embedding(1, hidden_size) if hides_words else None
        self.aux_text_visual_embedding = nn.Embedding(1, hidden_size) if reads_texts else None
        for table in (
            self.object_linguistic_embeddings,
            self.object_mask_word_embedding,
            self.aux_text_visual_embedding,
        ):
            if table is not None:
                nn.init.normal_(table.weight, std=initializer_range)
        if self.object_mask_visual_embedding is not None:
            nn.init.zeros_(self.object_mask_visual_embedding.weight)
        self.vlbert = vlbert

    def region_features(self, batch: Batch) -> RegionFeatures | None:
        """Features of every box, the hidden ones replaced; None for texts alone."""
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
        """See `VisualLinguisticModel`; texts alone stand last, so their tokens ask for the row behind all boxes."""
        visual, rows = super().text_visual(batch, features)
        if self.aux_text_visual_embedding is None:
            return visual, rows
        boxes = visual[: batch.num_boxes.total]
        return torch.cat([boxes, self.aux_text_visual_embedding.weight.to(visual.dtype)]), rows

    def region_words(self, batch: Batch, region_box: Tensor, region_sequence: Tensor) -> Tensor:
        """See `VisualLinguisticModel`; hidden regions have a word of their own."""
        words = super().region_words(batch, region_box, region_sequence)
        if self.object_mask_word_embedding is None or not isinstance(batch, PretrainBatch):
            return words
        return torch.where(
            batch.masked_regions[region_box, None], self.object_mask_word_embedding.weight, words
        )


class ResNetVLBERTForPretraining(MaskedVLBERT):
    """The pre-training model, for captions alone or with texts beside them."""

    vlbert: VisualLinguisticBertForPretraining

    @classmethod
    def from_config(cls, config: PretrainConfig) -> ResNetVLBERTForPretraining:
        """The model that the config describes, with its initial values (spec model.md 8.1)."""
        network = config.NETWORK
        model = cls(
            vlbert=VisualLinguisticBertForPretraining.from_config(
                network.VLBERT,
                with_rel_head=network.WITH_REL_LOSS,
                with_mlm_head=network.WITH_MLM_LOSS,
                with_mvrc_head=network.WITH_MVRC_LOSS,
            ),
            **_shared_arguments(config, reads_texts=config.MODULE == MULTITASK),
        )
        if not network.WITH_REL_LOSS:
            model.freeze_pooler()
        return model

    def forward(
        self, batch: PretrainBatch, *, dense: bool = False, kernel: Kernel = "auto"
    ) -> PretrainOutputs:
        """Restores what is labelled; `dense` scores every token and every box instead."""
        encoded = self.encode(batch, self.region_features(batch), kernel=kernel)
        bert = self.vlbert
        words = encoded.text(None if dense else batch.masked_token_index.values)
        regions = encoded.regions(None if dense else batch.masked_region_index.values)
        return PretrainOutputs(
            relationship_logits=None
            if bert.relationsip_head is None
            else bert.relationsip_head(bert.pool(encoded)[: batch.num_images]),
            word_logits=None if bert.mlm_head is None else bert.mlm_head(words, bert.word_embeddings.weight),
            region_logits=None if bert.mvrc_head is None else bert.mvrc_head(regions),
        )


class ResNetVLBERTForAttentionVis(MaskedVLBERT):
    """The transformer of a pre-trained model without its heads; the states of all layers and their attention."""

    @classmethod
    def from_config(cls, config: PretrainConfig) -> ResNetVLBERTForAttentionVis:
        """The model that the config describes."""
        return cls(
            vlbert=VisualLinguisticBert.from_config(config.NETWORK.VLBERT),
            **_shared_arguments(config, reads_texts=True),
        )

    def forward(self, batch: Batch) -> Encoded:
        """Encodes the batch and keeps every layer and every attention map."""
        return self.encode(batch, self.region_features(batch), kernel="explicit", all_layers=True)


def _shared_arguments(config: PretrainConfig, *, reads_texts: bool) -> dict[str, Any]:
    network = config.NETWORK
    return {
        "image_feature_extractor": FastRCNN.from_config(config),
        "hides_features": network.IMAGE_FEAT_PRECOMPUTED or not network.MASK_RAW_PIXELS,
        "hides_words": network.WITH_MVRC_LOSS,
        "reads_texts": reads_texts,
        "initializer_range": network.VLBERT.initializer_range,
    }
