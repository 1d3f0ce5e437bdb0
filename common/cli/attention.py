"""Attention maps of a validation split: the command `pretrain/vis_attention_maps.py`."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.cli.run import parser
from common.config.schema import load_config
from common.data.dataset import VisualLinguisticDataset
from common.data.loader import build_loader
from common.data.samplers import EpochBatches
from common.distributed import process_group as distributed
from common.errors import UsageError
from common.evaluation.evaluator import iterate_outputs
from common.files import ensure_writable_dir
from common.inference.attention import (
    AttentionMaps,
    SequenceTokens,
    attention_of,
    describe_sequences,
    image_ids,
    region_labels,
)
from common.training.task import AnyTask

logger = logging.getLogger(__name__)


def attention_parser() -> argparse.ArgumentParser:
    """Returns the flags of `vis_attention_maps.py`."""
    flags = parser("Write attention maps of a pre-trained model.")
    flags.add_argument("--cfg", required=True, help="yaml file of the experiment")
    flags.add_argument("--ckpt", help="checkpoint (default: NETWORK.PARTIAL_PRETRAIN)")
    flags.add_argument("--save-dir", default="./attention_maps", help="output folder (default: %(default)s)")
    flags.add_argument("--limit", type=int, help="number of images (default: all)")
    flags.add_argument("--gpus", type=int, nargs="+", metavar="N", help="GPUs to use; -1 for the CPU")
    flags.add_argument("--dist", action="store_true", help="run as one of several processes, under torchrun")
    flags.add_argument("--slurm", action="store_true", help="read the process group from SLURM's variables")
    return flags


def attention_main(args: argparse.Namespace, task_class: type[AnyTask], overrides: Sequence[str]) -> None:
    """Writes `{save_dir}/attention_probs/{image_id}.npy`, and `.json` beside it, for the validation split.

    Args:
        args: flags of `attention_parser`.
        task_class: task of the model.
        overrides: settings that turn off masking.
    """
    settings = [*args.set, *overrides]
    if args.ckpt is not None:
        path = json.dumps(args.ckpt)
        settings += [f"NETWORK.PARTIAL_PRETRAIN={path}", "NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES=[]"]
    config = load_config(task_class.config_class, args.cfg, settings)
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit: {args.limit}: must be at least 1")
    device = distributed.setup_device(
        dist_flag=args.dist, slurm=args.slurm, gpus_flag=args.gpus, gpus_listed=config.GPUS
    )
    torch.backends.cudnn.enabled = not args.cudnn_off
    folder = ensure_writable_dir(Path(args.save_dir) / "attention_probs", "--save-dir")
    if not config.NETWORK.PARTIAL_PRETRAIN and distributed.is_main():
        logger.warning("neither --ckpt nor NETWORK.PARTIAL_PRETRAIN is set: the model is untrained")
    task = task_class(config)
    dataset = task.build_dataset("val")
    model = task.build_model()
    for report in task.load_pretrained(model):
        logger.info("%s", report)
    written = write_maps(task, model.to(device), dataset, device, folder, args.limit)
    logger.info("%s: attention maps of %d images", folder, written)


def write_maps(
    task: AnyTask,
    model: nn.Module,
    dataset: VisualLinguisticDataset[Any],
    device: torch.device,
    folder: Path,
    limit: int | None = None,
) -> int:
    """Writes the maps of the first images of a dataset, sharded by rank, and returns their total number.

    Args:
        task: provides the batch size and number of workers.
        model: returns `Encoded` with attention maps.
        dataset: the images with their captions.
        device: device of the model.
        folder: folder of `{image_id}.npy` and `.json`.
        limit: number of images; None for all.

    Raises:
        DataError: a file cannot be written.
    """
    total = min(limit or len(dataset), len(dataset))
    names = image_ids([dataset.record_id(index) for index in range(total)])
    batches = EpochBatches(
        total,
        task.config.VAL.batch_sizes[0],
        shuffle=False,
        seed=task.config.RNG_SEED,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pad=False,
    )
    loader = build_loader(
        [dataset],
        batches,
        batch_type=dataset.batch_type,
        num_workers=task.config.NUM_WORKERS_PER_GPU,
        pin_memory=True,
    )
    whole = bool(task.config.datasets[0].ADD_IMAGE_AS_A_BOX)
    for encoded, batch in iterate_outputs(task, model, loader, device, None):
        # Batches hold resized boxes; files hold original pixels.
        boxes = (batch.boxes / batch.im_info[batch.num_boxes.rows(), 2:4].repeat(1, 2)).cpu()
        sizes = (batch.im_info[:, :2] / batch.im_info[:, 2:4]).round().long().tolist()
        images = []
        for index, size, own_boxes in zip(
            batch.index.tolist(), sizes, batch.num_boxes.split(boxes), strict=True
        ):
            path, class_names = dataset.describe(index)
            images.append(
                SequenceTokens(
                    image_id=names[index],
                    image=path,
                    size=tuple(size),
                    tokens=(),
                    boxes=tuple(map(tuple, own_boxes.tolist())),
                    labels=region_labels(range(1, len(own_boxes) + 1 - whole), class_names, whole=whole),
                )
            )
        for row, sequence in enumerate(describe_sequences(batch, encoded, images, task.tokenizer)):
            AttentionMaps(sequence, attention_of(encoded, row).numpy()).save(folder)
    distributed.barrier()  # other ranks may still write when this one returns
    return total
