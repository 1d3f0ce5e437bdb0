"""VL-BERT: words and image regions in one transformer (paper, section 3); see `docs/model.md`.

Shapes: Q rows, T text tokens, R regions, S = T + R + Q packed tokens, K rows of the visual table, D visual width,
H hidden width, V words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batch import Lengths
from common.config.sections import VLBertConfig
from common.models.bert import Encoder, EncoderOutput, Kernel, init_bert_weights, layer_norm
from common.models.heads import MLMHead, MVRCHead, Pooler, RelationshipHead
from common.models.packing import Packing

NUM_SPECIAL_WORDS = 1000
"""With frozen word embeddings, ids below this stay trainable; in BERT's vocabulary these are the special tokens."""

REGION_TYPE = 2
"""Segment of regions and of [END]; text has segments 0 and 1."""


@dataclass(frozen=True)
class PackedInputs:
    """Input of the joint transformer.

    Attributes:
        text_lengths: number of text tokens of each row (Q rows, T in all).
        text_ids: (T,) int64.
        text_types: (T,) int64 segment, 0 or 1.
        text_visual: (T,) int64 row of `visual` for each token.
        region_lengths: number of regions of each row (Q rows, R in all).
        region_visual: (R,) int64 row of `visual` for each region.
        region_words: (R, H) linguistic embedding of each region.
        visual: (K, D) table of visual features.
    """

    text_lengths: Lengths
    text_ids: Tensor
    text_types: Tensor
    text_visual: Tensor
    region_lengths: Lengths
    region_visual: Tensor
    region_words: Tensor
    visual: Tensor


@dataclass(frozen=True)
class Encoded:
    """Hidden states of the joint transformer, accessed by role.

    Attributes:
        output: packed states of the encoder.
        packing: indices of the roles.
        text_lengths: number of text tokens of each row.
        region_visual: (R,) row of the visual table of each region.
    """

    output: EncoderOutput
    packing: Packing
    text_lengths: Lengths
    region_visual: Tensor

    @property
    def num_regions(self) -> list[int]:
        """Number of regions of every row."""
        return [
            length - num_text_tokens - 1  # [END]
            for length, num_text_tokens in zip(
                self.packing.lengths.sizes, self.text_lengths.sizes, strict=True
            )
        ]

    def text(self, index: Tensor | None = None) -> Tensor:
        """Returns (T, H) states of the text tokens, or of those at (N,) indices among them."""
        slots = self.packing.text
        return self.output.hidden.index_select(0, slots if index is None else slots[index])

    def regions(self, index: Tensor | None = None) -> Tensor:
        """Returns (R, H) states of the regions, or of those at (N,) indices among them."""
        slots = self.packing.regions
        return self.output.hidden.index_select(0, slots if index is None else slots[index])

    def first(self) -> Tensor:
        """Returns (Q, H) states of the first token of every row, [CLS] if the task has one."""
        return self.output.hidden.index_select(0, self.packing.first)


class VisualLinguisticBert(nn.Module):
    """Embedding and encoder of joint sequences.

    Attribute names are the parameter names of published checkpoints, and the order of the attributes is the order in
    these files. Keep both: random initialization and saved optimizer states depend on the order.

    Args:
        config: `NETWORK.VLBERT` (docs/config.md).
    """

    visual_scale_text: nn.Parameter | None
    visual_scale_object: nn.Parameter | None
    visual_1x1_text: nn.Linear | None
    visual_1x1_object: nn.Linear | None
    visual_ln_text: nn.LayerNorm | None
    visual_ln_object: nn.LayerNorm | None

    def __init__(self, config: VLBertConfig) -> None:
        super().__init__()
        hidden_size, visual_size = config.hidden_size, config.visual_size
        self.hidden_size, self.visual_size = hidden_size, visual_size
        # RoBERTa reserves position 1 for padding, so that its first token has position 2 (position_padding_idx + 1).
        self.first_position = config.position_padding_idx + 1
        self.visual_scale_text = self.visual_scale_object = None
        if not config.visual_ln:
            self.visual_scale_text = nn.Parameter(torch.tensor(float(config.visual_scale_text_init)))
            self.visual_scale_object = nn.Parameter(torch.tensor(float(config.visual_scale_object_init)))
        self.word_embeddings = nn.Embedding(config.vocab_size, hidden_size)
        self.end_embedding = nn.Embedding(1, hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, hidden_size)
        self.embedding_LayerNorm = layer_norm(hidden_size)
        self.embedding_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.visual_1x1_text = self.visual_1x1_object = None
        if visual_size != hidden_size:
            self.visual_1x1_text = nn.Linear(visual_size, hidden_size)
            self.visual_1x1_object = nn.Linear(visual_size, hidden_size)
        self.visual_ln_text = self.visual_ln_object = None
        if config.visual_ln:
            self.visual_ln_text = layer_norm(hidden_size)
            self.visual_ln_object = layer_norm(hidden_size)
        self.encoder = Encoder(
            config.num_hidden_layers,
            hidden_size=hidden_size,
            num_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            activation=config.hidden_act,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
        )
        self.pooler = Pooler(hidden_size) if config.with_pooler else None
        self.special_word_embeddings: nn.Embedding | None = None
        if config.word_embedding_frozen:
            self.special_word_embeddings = nn.Embedding(NUM_SPECIAL_WORDS, hidden_size)
            self.word_embeddings.requires_grad_(False)
        init_bert_weights(self, config.initializer_range)
        # The LayerNorm weight takes the role of the scale. With the default of 0, the visual embedding starts as zero.
        if self.visual_ln_text is not None and self.visual_ln_object is not None:
            nn.init.constant_(self.visual_ln_text.weight, config.visual_scale_text_init)
            nn.init.constant_(self.visual_ln_object.weight, config.visual_scale_object_init)
        self.copy_special_words()

    @torch.no_grad()
    def copy_special_words(self) -> None:
        """Copies the word embeddings into the trainable special words. The word embeddings stay frozen."""
        if self.special_word_embeddings is not None:
            self.special_word_embeddings.weight.copy_(self.word_embeddings.weight[:NUM_SPECIAL_WORDS])

    def visual_parameters(self) -> list[nn.Parameter]:
        """Scales of the visual embeddings. Only images can train them."""
        prefixes = ("visual_scale_", "visual_ln_")
        return [parameter for name, parameter in self.named_parameters() if name.startswith(prefixes)]

    def words(self, ids: Tensor) -> Tensor:
        """Maps (N,) ids to (N, H). With frozen words, ids below 1000 use the trainable table."""
        words: Tensor = self.word_embeddings(ids)
        if self.special_word_embeddings is None:
            return words
        special = self.special_word_embeddings(ids.clamp(max=NUM_SPECIAL_WORDS - 1))
        return torch.where((ids < NUM_SPECIAL_WORDS)[:, None], special, words)

    def embed(self, inputs: PackedInputs, packing: Packing) -> Tensor:
        """Returns (S, H) embeddings of the packed rows: token + visual + segment + position (paper, section 3.2)."""
        # Project the K features first and look the results up per token: every token of a VCR or VQA text refers to
        # one of a few boxes.
        text_visual = _visual_embeddings(
            inputs.visual, self.visual_1x1_text, self.visual_ln_text, self.visual_scale_text
        )
        region_visual = _visual_embeddings(
            inputs.visual, self.visual_1x1_object, self.visual_ln_object, self.visual_scale_object
        )
        text = self.words(inputs.text_ids) + F.embedding(inputs.text_visual, text_visual)
        regions = inputs.region_words + F.embedding(inputs.region_visual, region_visual)
        # [END] closes the sequence and has no visual feature, as in the reference.
        rows, num_regions = len(packing.lengths), len(inputs.region_visual)
        end = self.end_embedding.weight.expand(rows, -1)
        types = F.pad(inputs.text_types, (0, num_regions + rows), value=REGION_TYPE)
        content = torch.cat([text, regions.to(text.dtype), end.to(text.dtype)])
        content = content + (self.position_embeddings(packing.positions) + self.token_type_embeddings(types))
        # LayerNorm over the whole sum, then dropout: BERT's order.
        embedded: Tensor = self.embedding_dropout(self.embedding_LayerNorm(packing.pack(content)))
        return embedded

    def forward(self, inputs: PackedInputs, *, kernel: Kernel = "auto") -> Encoded:
        """Encodes the rows. `kernel="explicit"` also returns attention probabilities."""
        packing = Packing.of(inputs.text_lengths, inputs.region_lengths, self.first_position)
        embedded = self.embed(inputs, packing)
        output = self.encoder(embedded, packing.lengths, kernel=kernel)
        return Encoded(output, packing, inputs.text_lengths, inputs.region_visual)

    def pool(self, encoded: Encoded) -> Tensor:
        """Returns (Q, H), the pooled first token."""
        assert self.pooler is not None
        pooled: Tensor = self.pooler(encoded.first())
        return pooled


def _visual_embeddings(
    visual: Tensor, projection: nn.Linear | None, norm: nn.LayerNorm | None, scale: nn.Parameter | None
) -> Tensor:
    """Maps (K, D) features to (K, H), by LayerNorm or scale (`NETWORK.VLBERT.visual_ln`)."""
    if projection is not None:
        visual = projection(visual)
    if norm is not None:
        return norm(visual)  # type: ignore[no-any-return]
    assert scale is not None
    return visual * scale


class VisualLinguisticBertForPretraining(VisualLinguisticBert):
    """VL-BERT with pre-training heads, each built on request (paper, section 3.3).

    The heads are part of this module because a BERT file holds both and published checkpoints name them so.

    Args:
        config: `NETWORK.VLBERT` (docs/config.md).
        with_rel_head: whether to build the head that tells whether caption and image belong together.
        with_mlm_head: whether to build the head of masked words.
        with_mvrc_head: whether to build the head of masked regions.
        num_region_classes: number of classes of masked regions.
    """

    def __init__(
        self,
        config: VLBertConfig,
        *,
        with_rel_head: bool = True,
        with_mlm_head: bool = True,
        with_mvrc_head: bool = True,
        num_region_classes: int = 1601,
    ) -> None:
        super().__init__(config)
        hidden_size, activation = config.hidden_size, config.hidden_act
        # "relationsip" is the spelling of published checkpoints.
        self.relationsip_head = RelationshipHead(hidden_size) if with_rel_head else None
        self.mlm_head = MLMHead(hidden_size, config.vocab_size, activation) if with_mlm_head else None
        self.mvrc_head = MVRCHead(hidden_size, num_region_classes, activation) if with_mvrc_head else None
        for head in (self.relationsip_head, self.mlm_head, self.mvrc_head):
            if head is not None:
                init_bert_weights(head, config.initializer_range)
