"""The base of all task models: region branch and joint transformer; see `docs/model.md`.

Shapes: B images, K boxes of all images, Q text sequences, T tokens, R regions of all sequences, D visual width,
H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.batch import Batch, Lengths
from common.errors import DataError
from common.models.bert import Kernel
from common.models.fast_rcnn import FastRCNN, RegionFeatures
from common.models.visual_linguistic_bert import Encoded, PackedInputs, VisualLinguisticBert


class VisualLinguisticModel(nn.Module):
    """Base of the task models. Subclasses register `vlbert` after their own embeddings, the order in checkpoints.

    Args:
        image_feature_extractor: the region branch; None for a blind model, whose words have zero visual features and
            whose sequences have no regions.
        num_object_words: rows of the linguistic table of regions: 81 by class, 1 shared, 0 for none.
        hidden_size: H.
    """

    vlbert: VisualLinguisticBert

    def __init__(
        self, *, image_feature_extractor: FastRCNN | None, num_object_words: int, hidden_size: int
    ) -> None:
        super().__init__()
        self.image_feature_extractor = image_feature_extractor
        self.object_linguistic_embeddings: nn.Embedding | None = None
        if num_object_words:
            self.object_linguistic_embeddings = nn.Embedding(num_object_words, hidden_size)
            nn.init.normal_(self.object_linguistic_embeddings.weight, std=0.02)

    def region_features(self, batch: Batch) -> RegionFeatures | None:
        """Computes the features of every box; None for a blind model."""
        return None if self.image_feature_extractor is None else self.image_feature_extractor(batch)

    def text_visual(self, batch: Batch, features: RegionFeatures | None) -> tuple[Tensor, Tensor]:
        """Selects the visual feature of each word: the feature of the box that it refers to.

        Returns:
            (K', D) table of visual features, whose first K rows are the boxes, and (T,) its row for each token.
        """
        text = batch.text
        if features is None:
            return torch.zeros(1, self.vlbert.visual_size, device=text.ids.device), torch.zeros_like(text.ids)
        # From tokens to sequences to images. Tags count boxes within an image, rows of the table count them all.
        token_image = text.per_image.rows()[text.lengths.rows()]
        return features.embeddings, batch.num_boxes.starts[token_image] + text.tags

    def regions(self, batch: Batch) -> tuple[Lengths, Tensor]:
        """Returns the number of regions of every text sequence (Q rows), and (R,) the box of each: all of its image."""
        if self.image_feature_extractor is None:
            return self.no_regions(batch)
        sequences = batch.text.per_image
        lengths = batch.num_boxes.repeat(sequences)
        # Every choice of a VCR question attends to all boxes of its image, whose features are computed once.
        first = batch.num_boxes.starts[sequences.rows()]
        return lengths, first[lengths.rows()] + lengths.positions()

    @staticmethod
    def no_regions(batch: Batch) -> tuple[Lengths, Tensor]:
        """Returns `regions` for sequences without an image."""
        rows, ids = batch.text.lengths, batch.text.ids
        return Lengths((0,) * len(rows), torch.zeros_like(rows.tensor)), ids.new_zeros(0)

    def freeze_unseen(self) -> None:
        """Freezes the visual scales of a blind model, which no image can train."""
        if self.image_feature_extractor is None:
            for parameter in self.vlbert.visual_parameters():
                parameter.requires_grad_(False)

    def freeze_pooler(self) -> None:
        """Freezes a pooler that the task does not use: DDP waits for the gradient of every trainable parameter."""
        if self.vlbert.pooler is not None:
            self.vlbert.pooler.requires_grad_(False)

    def region_words(self, batch: Batch, region_box: Tensor, region_sequence: Tensor) -> Tensor:
        """Returns (R, H), the linguistic embeddings of the regions.

        Args:
            batch: the batch.
            region_box: (R,) box of each region.
            region_sequence: (R,) text sequence of each region.
        """
        table = self.object_linguistic_embeddings
        assert table is not None
        if table.num_embeddings == 1:
            return table.weight.expand(len(region_box), -1)
        assert batch.box_classes is not None
        return table(batch.box_classes[region_box].clamp(0, table.num_embeddings - 1))  # type: ignore[no-any-return]

    def encode(self, batch: Batch, features: RegionFeatures | None, *, kernel: Kernel = "auto") -> Encoded:
        """Encodes every text sequence with the regions of its image."""
        self._check_lengths(batch)
        visual, text_visual = self.text_visual(batch, features)
        region_lengths, region_box = self.regions(batch)
        inputs = PackedInputs(
            text_lengths=batch.text.lengths,
            text_ids=batch.text.ids,
            text_types=batch.text.types,
            text_visual=text_visual,
            region_lengths=region_lengths,
            region_visual=region_box,
            region_words=self.region_words(batch, region_box, region_lengths.rows()),
            visual=visual,
        )
        return self.vlbert(inputs, kernel=kernel)  # type: ignore[no-any-return]

    def _check_lengths(self, batch: Batch) -> None:
        """The [END] token has the largest position id: text length plus one."""
        limit = self.vlbert.position_embeddings.num_embeddings - self.vlbert.first_position - 2
        if batch.text.lengths.longest <= limit:
            return
        sequence = batch.text.lengths.sizes.index(batch.text.lengths.longest)
        image = int(batch.text.per_image.rows()[sequence])
        raise DataError(
            f"record {batch.record_ids[image]}: a text of {batch.text.lengths.longest} tokens; the model takes "
            f"{limit} (NETWORK.VLBERT.max_position_embeddings - position_padding_idx - 3)"
        )
