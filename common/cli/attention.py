"""Attention maps of a whole split: what `pretrain/vis_attention_maps.py` does (train_eval spec 8.1)."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from itertools import count
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
    SequenceSource,
    attention_of,
    describe_sequences,
    image_ids,
)
from common.training.task import AnyTask

logger = logging.getLogger(__name__)


def attention_parser() -> argparse.ArgumentParser:
    """Returns the flags of `vis_attention_maps.py`."""
    result = parser("Write attention maps of a pre-trained model.")
    result.add_argument("--cfg", required=True, help="yaml file of the experiment")
    result.add_argument("--ckpt", help="checkpoint (default: NETWORK.PARTIAL_PRETRAIN)")
    result.add_argument(
        "--save-dir", default="./attention_maps", help="folder of the result (default: %(default)s)"
    )
    result.add_argument("--limit", type=int, help="pictures to write (default: all)")
    result.add_argument("--gpus", type=int, nargs="+", metavar="N", help="GPUs to use; -1 for the CPU")
    result.add_argument(
        "--dist", action="store_true", help="one of several processes; torchrun describes them"
    )
    result.add_argument("--slurm", action="store_true", help="read the description from SLURM's variables")
    return result


def attention_main(args: argparse.Namespace, task_class: type[AnyTask], overrides: Sequence[str]) -> None:
    """Writes `{save_dir}/attention_probs/{image_id}.npy`, and `.json` beside it, for the validation split.

    Args:
        args: the flags.
        task_class: of the model.
        overrides: settings under which a split is read as it is.
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
        logger.warning("no --ckpt and no NETWORK.PARTIAL_PRETRAIN: these are maps of an untrained model")
    task = task_class(config)
    dataset = task.build_dataset("val")
    model = task.build_model()
    for report in task.load_pretrained(model):
        logger.info("%s", report)
    written = write_maps(task, model.to(device), dataset, device, folder, args.limit)
    logger.info("%s: attention maps of %d pictures", folder, written)


def write_maps(
    task: AnyTask,
    model: nn.Module,
    dataset: VisualLinguisticDataset[Any],
    device: torch.device,
    folder: Path,
    limit: int | None = None,
) -> int:
    """Writes the maps of the first pictures of a dataset, a share of them in each process; returns their number.

    Args:
        task: of the model; its validation batch size is used.
        model: returns `Encoded` with maps.
        dataset: the pictures.
        device: of the model.
        folder: for `{image_id}.npy` and `.json`.
        limit: how many pictures; None for all.

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
        named = []
        for index in batch.index.tolist():
            image, kinds = dataset.described(index)
            named.append(SequenceSource(names[index], image, count(1), kinds))
        for row, places in enumerate(describe_sequences(batch, encoded, named, task.tokenizer, whole=whole)):
            AttentionMaps(places, attention_of(encoded, row).numpy()).save(folder)
    distributed.barrier()  # what follows may read the files
    return total
