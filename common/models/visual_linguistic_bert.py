"""VL-BERT: words and image regions in one transformer (paper, section 3); see `docs/model.md`.

Shapes: Q rows, T text tokens, R regions, S = T + R + Q packed tokens, K rows of the visual table, D visual width, H
hidden width, V words.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from common.batch import Lengths
from common.config.sections import VLBertConfig
from common.models.bert import Encoder, EncoderOutput, Kernel, init_bert_weights, layer_norm
from common.models.heads import MLMHead, MVRCHead, Pooler, RelationshipHead
from common.models.packing import Packing

NUM_SPECIAL_WORDS = 1000


REGION_TYPE = 2


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
        text, whole = self.text_lengths.sizes, self.packing.lengths.sizes
        return [total - words - 1 for total, words in zip(whole, text, strict=True)]

    def text(self, places: Tensor | None = None) -> Tensor:
        """Returns (T, H) states of the text tokens, or of those at (N,) indices among them."""
        return self._at(self.packing.text, places)

    def regions(self, places: Tensor | None = None) -> Tensor:
        """Returns (R, H) states of the regions, or of those at (N,) indices among them."""
        return self._at(self.packing.regions, places)

    def _at(self, slots: Tensor, places: Tensor | None) -> Tensor:
        return self.output.hidden.index_select(0, slots if places is None else slots[places])

    def first(self) -> Tensor:
        """Returns (Q, H) states of the first token of every row, [CLS] if the task has one."""
        return self.output.hidden.index_select(0, self.packing.first)


class VisualLinguisticBert(nn.Module):
    """Embedding and encoder of joint sequences. The arguments are the keys of `NETWORK.VLBERT` (docs/config.md)."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        visual_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 3,
        initializer_range: float = 0.02,
        visual_scale_text_init: float = 0.0,
        visual_scale_object_init: float = 0.0,
        visual_ln: bool = False,
        word_embedding_frozen: bool = False,
        with_pooler: bool = False,
        position_padding_idx: int = -1,
    ) -> None:
        super().__init__()
        self.hidden_size, self.visual_size = hidden_size, visual_size
        self.first_position = position_padding_idx + 1
        self.visual_ln = visual_ln
        if not visual_ln:
            self.visual_scale_text = nn.Parameter(torch.tensor(float(visual_scale_text_init)))
            self.visual_scale_object = nn.Parameter(torch.tensor(float(visual_scale_object_init)))
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size)
        self.end_embedding = nn.Embedding(1, hidden_size)
        self.position_embeddings = nn.Embedding(max_position_embeddings, hidden_size)
        self.token_type_embeddings = nn.Embedding(type_vocab_size, hidden_size)
        self.embedding_LayerNorm = layer_norm(hidden_size)
        self.embedding_dropout = nn.Dropout(hidden_dropout_prob)
        self._add_visual_layers(visual_size, hidden_size)
        self.encoder = Encoder(
            num_hidden_layers,
            hidden_size=hidden_size,
            num_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            activation=hidden_act,
            dropout=hidden_dropout_prob,
            attention_dropout=attention_probs_dropout_prob,
        )
        self.pooler = Pooler(hidden_size) if with_pooler else None
        self.special_word_embeddings: nn.Embedding | None = None
        if word_embedding_frozen:
            self.special_word_embeddings = nn.Embedding(NUM_SPECIAL_WORDS, hidden_size)
            self.word_embeddings.requires_grad_(False)
        init_bert_weights(self, initializer_range)
        if visual_ln:  # The LayerNorm weight is the scale of the visual embedding.
            nn.init.constant_(self.visual_ln_text.weight, visual_scale_text_init)
            nn.init.constant_(self.visual_ln_object.weight, visual_scale_object_init)
        self.copy_special_words()

    def _add_visual_layers(self, visual_size: int, hidden_size: int) -> None:
        self.visual_1x1_text: nn.Linear | None = None
        self.visual_1x1_object: nn.Linear | None = None
        if visual_size != hidden_size:
            self.visual_1x1_text = nn.Linear(visual_size, hidden_size)
            self.visual_1x1_object = nn.Linear(visual_size, hidden_size)
        if self.visual_ln:
            self.visual_ln_text = layer_norm(hidden_size)
            self.visual_ln_object = layer_norm(hidden_size)

    @classmethod
    def from_config(cls, config: VLBertConfig, **heads: bool) -> Self:
        """Builds the transformer of `NETWORK.VLBERT`. `heads` are arguments beyond these keys."""
        names = set(inspect.signature(cls).parameters) | set(
            inspect.signature(VisualLinguisticBert).parameters
        )
        chosen = {name: value for name, value in dict(config).items() if name in names}
        return cls(**chosen, **heads)  # type: ignore[arg-type]  # checked by the configuration

    @torch.no_grad()
    def copy_special_words(self) -> None:
        """Copies the word embeddings into the trainable special words. The word embeddings stay frozen."""
        if self.special_word_embeddings is not None:
            self.special_word_embeddings.weight.copy_(self.word_embeddings.weight[:NUM_SPECIAL_WORDS])

    def visual_parameters(self) -> list[nn.Parameter]:
        """Scales of the visual embeddings. Only images can train them."""
        return [
            parameter
            for name, parameter in self.named_parameters()
            if name.startswith(("visual_scale_", "visual_ln_"))
        ]

    def words(self, ids: Tensor) -> Tensor:
        """Maps (N,) ids to (N, H). With frozen words, ids below 1000 use the trainable table."""
        words: Tensor = self.word_embeddings(ids)
        if self.special_word_embeddings is None:
            return words
        special = self.special_word_embeddings(ids.clamp(max=NUM_SPECIAL_WORDS - 1))
        return torch.where((ids < NUM_SPECIAL_WORDS)[:, None], special, words)

    def _visual(self, visual: Tensor, role: str) -> Tensor:
        """Maps (K, D) to (K, H), once per feature instead of once per token."""
        project = getattr(self, f"visual_1x1_{role}")
        if project is not None:
            visual = project(visual)
        if self.visual_ln:
            return getattr(self, f"visual_ln_{role}")(visual)  # type: ignore[no-any-return]
        scale: Tensor = getattr(self, f"visual_scale_{role}")
        return visual * scale

    def embed(self, inputs: PackedInputs, packing: Packing) -> Tensor:
        """Returns (S, H) embeddings of the packed rows: token + visual + segment + position (paper, section 3.2)."""
        text = self.words(inputs.text_ids) + F.embedding(
            inputs.text_visual, self._visual(inputs.visual, "text")
        )
        regions = inputs.region_words + F.embedding(
            inputs.region_visual, self._visual(inputs.visual, "object")
        )
        rows, num_regions = len(packing.lengths), len(inputs.region_visual)
        end = self.end_embedding.weight.expand(rows, -1)
        types = F.pad(inputs.text_types, (0, num_regions + rows), value=REGION_TYPE)
        place = self.position_embeddings(packing.positions) + self.token_type_embeddings(types)
        content = torch.cat([text, regions.to(text.dtype), end.to(text.dtype)]) + place
        embedded: Tensor = self.embedding_dropout(self.embedding_LayerNorm(packing.pack(content)))
        return embedded

    def forward(self, inputs: PackedInputs, *, kernel: Kernel = "auto") -> Encoded:
        """Encodes the rows. `kernel='explicit'` also returns attention probabilities."""
        packing = Packing.of(inputs.text_lengths, inputs.region_lengths, self.first_position)
        embedded = self.embed(inputs, packing)
        output = self.encoder(embedded, packing.lengths, kernel=kernel)
        return Encoded(output, packing, inputs.text_lengths, inputs.region_visual)

    def pool(self, encoded: Encoded) -> Tensor:
        """Returns (Q, H), the pooled first token."""
        assert self.pooler is not None
        pooled: Tensor = self.pooler(encoded.first())
        return pooled


class VisualLinguisticBertForPretraining(VisualLinguisticBert):
    """VL-BERT with pre-training heads, each built on request."""

    def __init__(
        self,
        *,
        with_rel_head: bool = True,
        with_mlm_head: bool = True,
        with_mvrc_head: bool = True,
        visual_region_classes: int = 1601,
        pos_embedding_frozen: bool = False,
        vocab_size: int,
        hidden_size: int,
        hidden_act: str = "gelu",
        initializer_range: float = 0.02,
        **base: int | float | bool,
    ) -> None:
        super().__init__(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            hidden_act=hidden_act,
            initializer_range=initializer_range,
            **base,  # type: ignore[arg-type]
        )
        self.relationsip_head = RelationshipHead(hidden_size) if with_rel_head else None
        self.mlm_head = MLMHead(hidden_size, vocab_size, hidden_act) if with_mlm_head else None
        self.mvrc_head = MVRCHead(hidden_size, visual_region_classes, hidden_act) if with_mvrc_head else None
        for head in (self.relationsip_head, self.mlm_head, self.mvrc_head):
            if head is not None:
                init_bert_weights(head, initializer_range)
        if pos_embedding_frozen:
            self.position_embeddings.requires_grad_(False)
