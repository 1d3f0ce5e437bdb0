"""Trains the toy detector, from which the image branch of models that read pixels is initialized.

The published models start from a detector as well: masked words are too weak a signal to train an image branch from
scratch. `python -m scripts.toy.detector --cfg cfgs/pretrain/toy_e2e.yaml` draws its own scenes, learns to predict
category, color and position of each box, and writes the branch to `NETWORK.PARTIAL_PRETRAIN`, unless that file exists.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.batch import Batch, Sample, TextSequence, ragged
from common.cli.run import run
from common.config.schema import load_config
from common.data.collate import collate
from common.data.images import compute_im_info, image_to_tensor, resize_boxes, target_size
from common.errors import ConfigError, UsageError
from common.files import replace_file
from common.models.fast_rcnn import FastRCNN
from common.progress import track
from pretrain.config import PretrainConfig
from scripts.toy.captions import OBJECT_COUNTS
from scripts.toy.world import CATEGORIES, COLORS, generator, jittered, make_scene, paint

logger = logging.getLogger(__name__)

SCENES = 2400
BATCH_SIZE = 4  # small: with few scenes, many steps train better
LEARNING_RATE = 1e-3
WARMUP_STEPS = 50
JITTER = 4.0  # pixels, as in the region files
_NUM_CLASSES = (len(CATEGORIES), len(COLORS))
_NO_TEXT = TextSequence(*(np.zeros(0, dtype=np.int64) for _ in range(3)))


@dataclass(frozen=True, kw_only=True)
class LabeledImage(Sample):
    """An image with n boxes; `category` and `color` are class ids, (n,) int64 each."""

    category: Tensor
    color: Tensor


@dataclass(frozen=True, kw_only=True)
class LabeledImageBatch(Batch):
    """Class ids of all boxes, (K,) int64 each."""

    category: Tensor = ragged()
    color: Tensor = ragged()


class Detector(nn.Module):
    """The image branch with classification heads.

    Pooled features must predict category and color. The embeddings, which the joint transformer reads, must predict
    both and also the box, so that a caption can be matched to its object.
    """

    def __init__(self, branch: FastRCNN, width: int) -> None:
        super().__init__()
        self.branch = branch.requires_grad_(True)  # also the layers that pre-training freezes
        self.feature_head = nn.Linear(branch.feature_dim, sum(_NUM_CLASSES))
        # The joint transformer normalizes the embeddings as well.
        self.embedding_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(_NUM_CLASSES) + 4))

    @classmethod
    def from_config(cls, config: PretrainConfig) -> Detector:
        """Builds the branch of a config, with trainable batch norm: its statistics are frozen later."""
        network = config.NETWORK.model_copy(update={"IMAGE_FROZEN_BN": False})
        branch = FastRCNN.from_config(config.model_copy(update={"NETWORK": network}))
        return cls(branch, network.IMAGE_FINAL_DIM)

    def loss(self, batch: LabeledImageBatch) -> Tensor:
        """Returns the sum of the losses of all heads."""
        regions = self.branch(batch)
        embedding_logits, boxes = self.embedding_head(regions.embeddings).split_with_sizes(
            (sum(_NUM_CLASSES), 4), 1
        )
        sizes = batch.im_info[batch.num_boxes.rows(), :2].repeat(1, 2)
        # Relative to the center, in quarters of the image, so that this loss is as large as the others.
        total = F.smooth_l1_loss(boxes, (batch.boxes / sizes - 0.5) * 4)
        for logits in (self.feature_head(regions.raw), embedding_logits):
            category, color = logits.split_with_sizes(_NUM_CLASSES, 1)
            total = total + F.cross_entropy(category, batch.category) + F.cross_entropy(color, batch.color)
        return total

    @torch.no_grad()
    def accuracy(self, batch: LabeledImageBatch) -> tuple[float, float]:
        """Returns the accuracy of category and of color, both from the embeddings."""
        self.eval()
        logits = self.embedding_head(self.branch(batch).embeddings)
        category, color, _ = logits.split_with_sizes((*_NUM_CLASSES, 4), 1)
        return (
            float((category.argmax(1) == batch.category).float().mean()),
            float((color.argmax(1) == batch.color).float().mean()),
        )


def draw_scenes(count: int, config: PretrainConfig, split: str) -> list[LabeledImage]:
    """Draws scenes that are in none of the toy datasets."""
    rng = generator(config.RNG_SEED, "detector", split)
    samples = []
    for index in range(count):
        scene = make_scene(rng, OBJECT_COUNTS)
        size = target_size(scene.width, scene.height, config.SCALES)
        im_info = compute_im_info((scene.width, scene.height), size)
        boxes = torch.tensor([jittered(each.box, scene, rng, JITTER) for each in scene.objects])
        samples.append(
            LabeledImage(
                index=index,
                record_id=f"{split} {index}",
                image=image_to_tensor(paint(scene, rng), size),
                padded_size=size[::-1],
                im_info=im_info,
                boxes=resize_boxes(boxes, im_info, flipped=False),
                texts=(_NO_TEXT,),
                category=torch.tensor([CATEGORIES.index(each.category) for each in scene.objects]),
                color=torch.tensor([list(COLORS).index(each.color) for each in scene.objects]),
            )
        )
    return samples


def train(detector: Detector, scenes: Sequence[LabeledImage], steps: int, seed: int) -> None:
    """Trains the detector; the learning rate warms up linearly and then decays linearly to zero."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
    )
    rng = generator(seed, "detector", "order")
    detector.train()
    for _ in track(range(steps), unit="step"):
        indices = rng.choice(len(scenes), BATCH_SIZE, replace=False)
        optimizer.zero_grad()
        loss = detector.loss(collate([scenes[int(i)] for i in indices], LabeledImageBatch))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the image branch and writes it as a checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cfg", required=True, help="yaml file of pre-training from pixels")
    parser.add_argument("--out", help="file to write (default: NETWORK.PARTIAL_PRETRAIN)")
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.steps < 1:
        raise UsageError(f"--steps {args.steps}: must be at least 1")
    config = load_config(PretrainConfig, args.cfg)
    network = config.NETWORK
    if network.IMAGE_FEAT_PRECOMPUTED:
        raise ConfigError(
            f"{args.cfg}: NETWORK.IMAGE_FEAT_PRECOMPUTED: must be false: the detector reads pixels"
        )
    if not (args.out or network.PARTIAL_PRETRAIN):
        raise ConfigError(f"{args.cfg}: NETWORK.PARTIAL_PRETRAIN: empty: set it or give --out FILE")
    out = Path(args.out or network.PARTIAL_PRETRAIN)
    if out.is_file():
        logger.info("%s already exists; nothing to do", out)
        return
    torch.manual_seed(config.RNG_SEED)
    detector = Detector.from_config(config)
    train(detector, draw_scenes(SCENES, config, "train"), args.steps, config.RNG_SEED)
    accuracies = detector.accuracy(collate(draw_scenes(SCENES // 10, config, "val"), LabeledImageBatch))
    logger.info("held-out accuracy: category %.1f %%, color %.1f %%", *np.multiply(accuracies, 100))
    weights = {
        f"image_feature_extractor.{name}": value for name, value in detector.branch.state_dict().items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, lambda temporary: torch.save({"state_dict": weights}, temporary))
    logger.info("wrote %s", out)


if __name__ == "__main__":
    sys.exit(run(main))
