"""The toy world's detector: teaches the image branch that pre-training from pixels starts from.

The published models start from a detector as well: words that are hidden would teach a network to see too slowly.
`python -m scripts.toy.detector --cfg cfgs/pretrain/toy_e2e.yaml` draws scenes of its own, learns what kind and colour
a boxed thing has and where it is, and writes the branch to `NETWORK.PARTIAL_PRETRAIN`, unless that file is there.
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
from common.data.images import image_to_tensor, resize_boxes, size_info, target_size
from common.errors import ConfigError, UsageError
from common.files import replace_file
from common.models.fast_rcnn import FastRCNN
from common.progress import track
from pretrain.config import PretrainConfig
from scripts.toy.captions import COUNTS
from scripts.toy.world import COLOURS, KINDS, generator, jittered, make_scene, paint

logger = logging.getLogger(__name__)

SCENES = 2400
BATCH = 4  # small: few scenes teach more in many updates
RATE = 1e-3
WARMUP = 50
JITTER = 4.0  # pixels that the sides of a box are off, as in the region files
_PARTS = (len(KINDS), len(COLOURS))
_NO_TEXT = TextSequence(*(np.zeros(0, dtype=np.int64) for _ in range(3)))


@dataclass(frozen=True, kw_only=True)
class Boxed(Sample):
    """A picture with a box around each of its n things; their kinds and colours as numbers, (n,) int64 each."""

    kinds: Tensor
    colours: Tensor


@dataclass(frozen=True, kw_only=True)
class BoxedBatch(Batch):
    """Pictures with boxes; kinds and colours of the things, (K,) int64 each."""

    kinds: Tensor = ragged()
    colours: Tensor = ragged()


class Detector(nn.Module):
    """The image branch, and the heads that teach it.

    The pooled features must tell kind and colour, for they learn to see; the embeddings, which the joint transformer
    reads, must tell them as well and in addition the place, which finds the thing that a caption speaks of.
    """

    def __init__(self, branch: FastRCNN, width: int) -> None:
        super().__init__()
        self.branch = branch.requires_grad_(True)  # also what pre-training leaves as it is
        self.of_raw = nn.Linear(branch.feature_dim, sum(_PARTS))
        # Normalised, as the joint transformer has it.
        self.of_embeddings = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(_PARTS) + 4))

    @classmethod
    def from_config(cls, config: PretrainConfig) -> Detector:
        """The branch that the config describes, but its batch norm learns: it finds the statistics to be frozen."""
        network = config.NETWORK.model_copy(update={"IMAGE_FROZEN_BN": False})
        branch = FastRCNN.from_config(config.model_copy(update={"NETWORK": network}))
        return cls(branch, network.IMAGE_FINAL_DIM)

    def loss(self, batch: BoxedBatch) -> Tensor:
        """Sum of the losses of all heads."""
        found = self.branch(batch)
        things, places = self.of_embeddings(found.embeddings).split_with_sizes((sum(_PARTS), 4), 1)
        sizes = batch.im_info[batch.num_boxes.rows(), :2].repeat(1, 2)
        # Sides of boxes from the middle, in quarters of the picture: of the size of the other losses.
        total = F.smooth_l1_loss(places, (batch.boxes / sizes - 0.5) * 4)
        for scores in (self.of_raw(found.raw), things):
            kinds, colours = scores.split_with_sizes(_PARTS, 1)
            total = total + F.cross_entropy(kinds, batch.kinds) + F.cross_entropy(colours, batch.colours)
        return total

    @torch.no_grad()
    def accuracy(self, batch: BoxedBatch) -> tuple[float, float]:
        """Shares of the boxes whose kind and whose colour the embeddings tell."""
        self.eval()
        scores = self.of_embeddings(self.branch(batch).embeddings)
        kinds, colours, _ = scores.split_with_sizes((*_PARTS, 4), 1)
        pairs = ((kinds, batch.kinds), (colours, batch.colours))
        kind, colour = (float((found.argmax(1) == right).float().mean()) for found, right in pairs)
        return kind, colour


def draw(count: int, config: PretrainConfig, purpose: str) -> list[Boxed]:
    """Draws scenes that no data set holds."""
    rng = generator(config.RNG_SEED, "detector", purpose)
    found = []
    for index in range(count):
        scene = make_scene(rng, COUNTS)
        size = target_size(scene.width, scene.height, config.SCALES)
        im_info = size_info((scene.width, scene.height), size)
        boxes = torch.tensor([jittered(thing.box, scene, rng, JITTER) for thing in scene.things])
        found.append(
            Boxed(
                index=index,
                record_id=f"{purpose} {index}",
                image=image_to_tensor(paint(scene, rng), size),
                padded_size=size[::-1],
                im_info=im_info,
                boxes=resize_boxes(boxes, im_info, flipped=False),
                texts=(_NO_TEXT,),
                kinds=torch.tensor([KINDS.index(thing.kind) for thing in scene.things]),
                colours=torch.tensor([list(COLOURS).index(thing.colour) for thing in scene.things]),
            )
        )
    return found


def train(detector: Detector, scenes: Sequence[Boxed], steps: int, seed: int) -> None:
    """Teaches the detector, with a rate that rises for `WARMUP` steps and falls to zero at the last one."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
    )
    rng = generator(seed, "detector", "order")
    detector.train()
    for _ in track(range(steps), unit="step"):
        chosen = rng.choice(len(scenes), BATCH, replace=False)
        optimizer.zero_grad()
        loss = detector.loss(collate([scenes[int(i)] for i in chosen], BoxedBatch))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        schedule.step()


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and writes the image branch that a configuration starts from."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cfg", required=True, help="yaml file of pre-training from pixels")
    parser.add_argument("--out", help="file to write (default: NETWORK.PARTIAL_PRETRAIN)")
    parser.add_argument("--steps", type=int, default=2000, help="of training (default: %(default)s)")
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
        raise ConfigError(f"{args.cfg}: NETWORK.PARTIAL_PRETRAIN: names no file to write; or give --out FILE")
    out = Path(args.out or network.PARTIAL_PRETRAIN)
    if out.is_file():
        logger.info("%s is there already; nothing to do", out)
        return
    torch.manual_seed(config.RNG_SEED)
    detector = Detector.from_config(config)
    train(detector, draw(SCENES, config, "train"), args.steps, config.RNG_SEED)
    found = detector.accuracy(collate(draw(SCENES // 10, config, "val"), BoxedBatch))
    logger.info(
        "of held-out things, %.1f %% of kinds and %.1f %% of colours are right", *np.multiply(found, 100)
    )
    weights = {
        f"image_feature_extractor.{name}": value for name, value in detector.branch.state_dict().items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, lambda temporary: torch.save({"state_dict": weights}, temporary))
    logger.info("wrote %s", out)


if __name__ == "__main__":
    sys.exit(run(main))
