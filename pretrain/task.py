"""The pre-training task: losses, metrics, and datasets that are read together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batch import Lengths
from common.config.fields import Split
from common.config.schema import ExperimentConfig
from common.data.dataset import VisualLinguisticDataset
from common.errors import ConfigError
from common.models.losses import EPSILON, is_distribution, mean_or_zero, sample_mean, soft_cross_entropy
from common.training.metrics import Ratio, accuracy, mvrc_accuracy
from common.training.task import Task
from pretrain.captions import CaptionDataset, CocoCaptionDataset
from pretrain.config import ATTENTION, PretrainConfig
from pretrain.corpus import CorpusDataset
from pretrain.dataset import PretrainBatch, PretrainSample
from pretrain.model import PretrainOutputs, ResNetVLBERTForAttentionVis, ResNetVLBERTForPretraining


class LabeledTokens(NamedTuple):
    """Masked tokens of the samples with an image, or of the texts alone.

    Attributes:
        suffix: suffix of their loss: `_wvc` (with visual context) or `_aux` if both kinds are trained.
        logits: (M, V).
        labels: (M,) int64.
        lengths: number of masked tokens of each sample.
    """

    suffix: str
    logits: Tensor
    labels: Tensor
    lengths: Lengths


CAPTIONS = {"conceptual_captions": CaptionDataset, "coco_captions": CocoCaptionDataset}


class PretrainTask(Task[PretrainConfig, PretrainBatch, PretrainOutputs]):
    """Masked language modeling, masked region classification and image-text matching."""

    name = "pretrain"
    config_class: ClassVar[type[ExperimentConfig]] = PretrainConfig
    validates_losses = True

    @property
    def best_metric(self) -> str:
        """Accuracy of masked words, else of masked regions, else of image-text matching."""
        network = self.config.NETWORK
        if network.WITH_MLM_LOSS:
            return "MLMAccWVC" if self.config.multitask else "MLMAcc"
        return "MVRCAccuracy" if network.WITH_MVRC_LOSS else "RelAcc"

    def build_dataset(self, split: Split) -> VisualLinguisticDataset[PretrainSample]:
        data = self.config.datasets[0]
        return CAPTIONS[data.DATASET](self.config, data, split, self.tokenizer)

    def build_datasets(self, split: Split) -> Sequence[VisualLinguisticDataset[PretrainSample]]:
        """Opens the captioned images, and the text corpus beside them if there is one."""
        texts = [
            CorpusDataset(self.config, data, split, self.tokenizer, source)
            for source, data in enumerate(self.config.datasets[1:], start=1)
        ]
        return [self.build_dataset(split), *texts]

    def require_heads(self) -> None:
        """Raises a ConfigError if no loss is on that could select the best checkpoint."""
        if self.config.MODULE == ATTENTION:
            raise ConfigError(f"MODULE: {ATTENTION}: restores nothing; use the MODULE of its training")

    def build_model(self) -> nn.Module:
        if self.config.MODULE == ATTENTION:
            return ResNetVLBERTForAttentionVis.from_config(self.config)
        return ResNetVLBERTForPretraining.from_config(self.config)

    def losses(self, outputs: PretrainOutputs, batch: PretrainBatch) -> dict[str, Tensor]:
        """Returns the losses that are on. Each is zero without labels."""
        losses = {}
        if outputs.relationship_logits is not None:
            logits = outputs.relationship_logits.float()
            loss = F.cross_entropy(logits, batch.relationship, reduction="none")
            losses["relationship_loss"] = mean_or_zero(loss)
        for words in self._labeled_tokens(outputs, batch):
            loss = F.cross_entropy(words.logits.float(), words.labels, reduction="none")
            if self.config.NETWORK.MLM_LOSS_NORM_IN_BATCH_FIRST:
                loss = sample_mean(loss, torch.ones_like(loss, dtype=torch.bool), words.lengths)
            else:
                loss = mean_or_zero(loss)
            losses[f"mlm_loss{words.suffix}"] = loss
        if outputs.region_logits is not None:
            logits, labels = outputs.region_logits, batch.region_labels
            if self.config.NETWORK.MVRC_LOSS_NORM_IN_BATCH_FIRST:
                loss = soft_cross_entropy(logits, labels, reduction="none")
                losses["mvrc_loss"] = sample_mean(
                    loss, is_distribution(labels), batch.masked_region_index.lengths
                )
            else:
                losses["mvrc_loss"] = soft_cross_entropy(logits, labels)
        return losses

    def _labeled_tokens(self, outputs: PretrainOutputs, batch: PretrainBatch) -> Iterator[LabeledTokens]:
        """Returns the masked tokens of each loss of the MLM head."""
        logits, labels, lengths = outputs.word_logits, batch.word_labels, batch.masked_token_index.lengths
        if logits is None:
            return
        if not self.config.multitask:
            yield LabeledTokens("", logits, labels, lengths)
            return
        with_image, text_only = (
            Lengths(lengths.sizes[rows], lengths.tensor[rows])
            for rows in (slice(batch.num_images), slice(batch.num_images, None))
        )
        split = with_image.total
        yield LabeledTokens("_wvc", logits[:split], labels[:split], with_image)
        yield LabeledTokens("_aux", logits[split:], labels[split:], text_only)

    def label_counts(self, batch: PretrainBatch) -> dict[str, Tensor | int]:
        """Captions, masked words and regions, or samples that have such."""
        network, num_images = self.config.NETWORK, batch.num_images
        words = batch.masked_token_index.lengths.sizes
        if network.MLM_LOSS_NORM_IN_BATCH_FIRST:
            words = tuple(min(size, 1) for size in words)
        regions = is_distribution(batch.region_labels).long()
        if network.MVRC_LOSS_NORM_IN_BATCH_FIRST:
            sample = batch.masked_region_index.lengths.rows()
            regions = (regions.new_zeros(batch.num_samples).index_add(0, sample, regions) > 0).long()
        counts: dict[str, Tensor | int] = {"relationship_loss": num_images, "mvrc_loss": regions.sum()}
        counts |= {"mlm_loss_wvc": sum(words[:num_images]), "mlm_loss_aux": sum(words[num_images:])}
        return counts | {"mlm_loss": sum(words)}

    @property
    def label_count_eps(self) -> Mapping[str, float]:
        """`sample_mean` adds this to the number of samples."""
        network = self.config.NETWORK
        words = EPSILON if network.MLM_LOSS_NORM_IN_BATCH_FIRST else 0.0
        regions = EPSILON if network.MVRC_LOSS_NORM_IN_BATCH_FIRST else 0.0
        return {"mlm_loss": words, "mlm_loss_wvc": words, "mlm_loss_aux": words, "mvrc_loss": regions}

    def metrics(self, outputs: PretrainOutputs, batch: PretrainBatch, split: Split) -> dict[str, Ratio]:
        """Returns the accuracies of masked words and regions and of matching."""
        values = {}
        if outputs.relationship_logits is not None:
            values["RelAcc"] = accuracy(outputs.relationship_logits, batch.relationship)
        for words in self._labeled_tokens(outputs, batch):
            values[f"MLMAcc{words.suffix.strip('_').upper()}"] = accuracy(words.logits, words.labels)
        if outputs.region_logits is not None:
            values["MVRCAccuracy"] = mvrc_accuracy(outputs.region_logits, batch.region_labels)
        return values
