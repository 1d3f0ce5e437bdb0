"""The region branch and the joint transformer together: what the models of all tasks share (spec model.md 6).

Letters: B images, K boxes of all images, Q text sequences, T tokens, R regions as the sequences see them, D visual
width, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Self

from common.batch import Batch, Lengths
from common.errors import DataError
from common.modeling.bert import Kernel
from common.modeling.fast_rcnn import FastRCNN, RegionFeatures, box_rows
from common.modeling.visual_linguistic_bert import Encoded, PackedInputs, VisualLinguisticBert


class VisualLinguisticModel(nn.Module):
    """Base of the task models; sub-classes register `vlbert` after their own embeddings, as files on disk have it.

    Args:
        image_feature_extractor: the region branch; None for a blind model, which sees no picture at all.
        num_object_words: rows of the linguistic table of regions: 81 by category, 1 shared, 0 for none.
        hidden_size: H.
        grounding: False gives every token the feature of the whole image instead of its own box.
        object_attention: False leaves the regions out of the sequence.
    """

    vlbert: VisualLinguisticBert

    def __init__(
        self,
        *,
        image_feature_extractor: FastRCNN | None,
        num_object_words: int,
        hidden_size: int,
        object_word_std: float = 0.02,
        grounding: bool = True,
        object_attention: bool = True,
    ) -> None:
        super().__init__()
        self.image_feature_extractor = image_feature_extractor
        self.grounding = grounding
        self.object_attention = object_attention and image_feature_extractor is not None
        self.object_linguistic_embeddings: nn.Embedding | None = None
        if num_object_words:
            self.object_linguistic_embeddings = nn.Embedding(num_object_words, hidden_size)
            nn.init.normal_(self.object_linguistic_embeddings.weight, std=object_word_std)

    def freeze_unseen(self) -> Self:
        """Fixes the visual parameters of a blind model, which no picture can train."""
        if self.image_feature_extractor is None:
            for parameter in self.vlbert.visual_parameters():
                parameter.requires_grad_(False)
        return self

    def region_features(self, batch: Batch) -> RegionFeatures | None:
        """Features of every box; None for a blind model."""
        return None if self.image_feature_extractor is None else self.image_feature_extractor(batch)

    def region_words(self, batch: Batch, region_box: Tensor, region_sequence: Tensor) -> Tensor:
        """(R, H) linguistic embedding of the regions.

        Args:
            batch: the batch.
            region_box: (R,) box of each region.
            region_sequence: (R,) text sequence that each region stands in.
        """
        table = self.object_linguistic_embeddings
        assert table is not None
        if table.num_embeddings == 1:
            return table.weight.expand(len(region_box), -1)
        assert batch.box_classes is not None
        return table(batch.box_classes[region_box].clamp(0, table.num_embeddings - 1))  # type: ignore[no-any-return]

    def encode(self, batch: Batch, features: RegionFeatures | None, *, kernel: Kernel = "auto") -> Encoded:
        """Runs the joint transformer on every text sequence with the boxes of its image."""
        text = batch.text
        self._check_lengths(batch)
        sequence_image = text.per_image.rows()
        token_image = sequence_image[text.lengths.rows()]
        if features is None:
            visual = self._blank(batch)
            text_visual = torch.zeros_like(token_image)
        else:
            visual = features.embeddings
            tags = text.tags if self.grounding else torch.zeros_like(text.tags)
            text_visual = batch.num_boxes.starts[token_image] + tags
        region_lengths, region_box = self.region_rows(batch)
        inputs = PackedInputs(
            text_lengths=text.lengths,
            text_ids=text.ids,
            text_types=text.types,
            text_visual=text_visual,
            region_lengths=region_lengths,
            region_visual=region_box,
            region_words=self.region_words(batch, region_box, region_lengths.rows()),
            visual=visual,
        )
        return self.vlbert(inputs, kernel=kernel)  # type: ignore[no-any-return]

    def region_rows(self, batch: Batch) -> tuple[Lengths, Tensor]:
        """Regions of every text sequence (Q rows, R in all) and the box of each (R,)."""
        if self.object_attention:
            return batch.num_boxes.select(batch.text.per_image), box_rows(
                batch.num_boxes, batch.text.per_image
            )
        empty = Lengths.of([0] * len(batch.text.lengths), batch.text.ids.device)
        return empty, batch.text.ids.new_zeros(0)

    def _blank(self, batch: Batch) -> Tensor:
        project = self.vlbert.visual_1x1_text
        width = self.vlbert.end_embedding.embedding_dim if project is None else project.in_features
        return torch.zeros(1, width, device=batch.boxes.device)

    def _check_lengths(self, batch: Batch) -> None:
        """The [END] token has the last position id: text length plus one."""
        limit = self.vlbert.position_embeddings.num_embeddings - self.vlbert.first_position - 2
        if batch.text.lengths.longest <= limit:
            return
        sequence = batch.text.lengths.sizes.index(batch.text.lengths.longest)
        image = int(batch.text.per_image.rows()[sequence])
        raise DataError(
            f"record {batch.record_ids[image]}: a text of {batch.text.lengths.longest} tokens; the model takes "
            f"{limit} (NETWORK.VLBERT.max_position_embeddings, less two)"
        )
