"""What all entry points share: arguments, configuration, output folder, log, seeds, building and training.

Sources: train_eval spec, sections 2 and 3.1.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.cli.run import log_file, parser, run
from common.config.schema import ExperimentConfig, dump_config, load_config
from common.data.loader import worker_crash_context
from common.distributed import process_group as distributed
from common.distributed.signals import GracefulShutdown, Interruptible, ignore_signals
from common.distributed.watchdog import StallDetector
from common.errors import ConfigError
from common.evaluation.checkpoints import run_test
from common.evaluation.evaluator import evaluate
from common.files import remove_leftovers
from common.models.pretrained import LoadReport, read_weights
from common.training import checkpoint
from common.training.callbacks import Callback, Checkpointing, ProgressBar, Speedometer, ValidationMonitor
from common.training.dry_run import dry_run
from common.training.loaders import build_dataloader
from common.training.optim import build_optimizer, build_schedule, effective_batch_size
from common.training.precision import Precision
from common.training.run_folder import output_folder, with_output_root, with_seed
from common.training.state import updates_per_epoch
from common.training.task import AnyTask
from common.training.tensorboard import TensorBoard
from common.training.trainer import Trainer

logger = logging.getLogger(__name__)


Resumed = tuple[Path, int] | None
"""The checkpoint that a run continues from, and the epoch that it ended."""


def train_parser(description: str, partial_pretrain: bool = True) -> argparse.ArgumentParser:
    """Returns the parser of a `train_end2end.py`; pre-training has no `--partial-pretrain`."""
    result = parser(description)
    result.add_argument("--cfg", required=True, help="yaml file of the experiment")
    result.add_argument("--model-dir", help="folder in front of OUTPUT_PATH")
    result.add_argument(
        "--log-dir", help="folder of the tensorboard files (default: below the output folder)"
    )
    result.add_argument(
        "--dist", action="store_true", help="one of several processes; torchrun describes them"
    )
    result.add_argument("--slurm", action="store_true", help="read the description from SLURM's variables")
    result.add_argument("--do-test", action="store_true", help="test the best checkpoint after training")
    if partial_pretrain:
        result.add_argument("--partial-pretrain", help="checkpoint to start from (NETWORK.PARTIAL_PRETRAIN)")
    return result


def parameter_table(model: nn.Module) -> str:
    """Returns the table of trainable parameters and the three sums (spec section 2.4)."""
    rows = [
        (name, str(value.dtype), str(tuple(value.shape)), str(value.numel()))
        for name, value in model.named_parameters()
        if value.requires_grad
    ]
    widths = [max(map(len, column)) + 4 for column in zip(*rows, strict=True)] if rows else [4] * 4
    rule = "-" * (sum(widths) + 5)
    lines = [">> Trainable Parameters:", rule]
    for row in [("Name", "Dtype", "Shape", "#Params"), *rows]:
        lines += ["|" + "".join(f"{cell:<{width}}|" for cell, width in zip(row, widths, strict=True)), rule]
    total = sum(value.numel() for value in model.parameters())
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    sums = {"# TrainableParams:": trained, "# NonTrainableParams:": total - trained, "# TotalParams:": total}
    return "\n".join(lines + [f">> {name:<22}\t{count / 1e6:.2f}\tM" for name, count in sums.items()])


def seed_everything(seed: int) -> None:
    """Seeds the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def load_train_config(args: argparse.Namespace, task_class: type[AnyTask]) -> ExperimentConfig:
    """Reads `--cfg` and applies `--set`, `--partial-pretrain` and `--model-dir`.

    Raises:
        ConfigError: see `load_config`; also for a configuration without an epoch to train.
    """
    overrides = list(args.set)
    if getattr(args, "partial_pretrain", None) is not None:
        overrides.append(f"NETWORK.PARTIAL_PRETRAIN={json.dumps(args.partial_pretrain)}")
    config = load_config(task_class.config_class, args.cfg, overrides)
    if config.TRAIN.END_EPOCH < 1:
        raise ConfigError(
            f"{args.cfg}: TRAIN.END_EPOCH: {config.TRAIN.END_EPOCH}: must be at least 1 to train"
        )
    return with_output_root(config, args.model_dir)


def train_main(task_class: type[AnyTask], partial_pretrain: bool = True) -> None:
    """Entry point of a `train_end2end.py`; ends the process."""
    flags = train_parser(f"Train {task_class.name}.", partial_pretrain)
    sys.exit(run(lambda: train_net(flags.parse_args(), task_class)))


def train_net(args: argparse.Namespace, task_class: type[AnyTask]) -> tuple[int | None, nn.Module]:
    """Trains as the command line says.

    Returns:
        The rank, None with a single process, and the model.
    """
    config = load_train_config(args, task_class)
    with GracefulShutdown(config.TRAIN.resumable) as stop:  # other processes may be waited for
        device = distributed.setup_device(
            dist_flag=args.dist, slurm=args.slurm, gpus_flag=None, gpus_listed=config.GPUS
        )
        torch.backends.cudnn.enabled = not args.cudnn_off
        folder = output_folder(config, args.cfg, "train")
        with log_file(folder, args.cfg):
            model = _train_and_test(args, task_class, config, device, folder, stop)
    return (distributed.rank() if distributed.is_distributed() else None), model


def _train_and_test(
    args: argparse.Namespace,
    task_class: type[AnyTask],
    config: ExperimentConfig,
    device: torch.device,
    folder: Path,
    stop: GracefulShutdown,
) -> nn.Module:
    if distributed.is_main():
        remove_leftovers(folder, f"{config.MODEL_PREFIX}-*.model")
    # One rank decides: the others could see a file that it does not.
    found = checkpoint.find(folder, config.MODEL_PREFIX, config.TRAIN) if distributed.is_main() else None
    resumed: Resumed = distributed.gather_objects(found)[0]
    config = with_seed(config, resumed and resumed[0], random.SystemRandom().randrange(2**31))
    logger.info("training args:%s", args)
    logger.info("training config:\n%s", dump_config(config))
    task = task_class(config)
    log_dir = Path(args.log_dir or folder / "tensorboard_logs")
    model = _train(task, device, folder, log_dir, Path(args.cfg), resumed, stop)
    if args.do_test and not task.test_tasks():
        logger.warning("--do-test: %s has no test split", task.name)
    elif args.do_test:
        best = checkpoint.best_file(folder, config.MODEL_PREFIX)
        if distributed.gather_objects(best.exists())[0]:
            precision = Precision(device, config.TRAIN.precision)
            for tested in task.test_tasks():
                results = output_folder(tested.config, args.cfg, "test")
                run_test(tested, best, results, device, precision)
        else:
            logger.warning("--do-test: there is no best checkpoint %s", best)
    return model


def _train(
    task: AnyTask,
    device: torch.device,
    folder: Path,
    log_dir: Path,
    cfg: Path,
    resumed: Resumed,
    stop: GracefulShutdown,
) -> nn.Module:
    config = task.config
    seed_everything(config.RNG_SEED)
    # Data first: what is wrong with it shows before large files are read.
    loader, val_loader = build_dataloader(task, "train"), build_dataloader(task, "val")
    model = task.build_model()
    if resumed is None:
        _report(task.load_pretrained(model), folder)
    model.to(device)
    if distributed.is_main():
        _describe(model, folder, cfg, config)
    names = task.state_dict_names
    processes = distributed.world_size()
    optimizer = build_optimizer(config.TRAIN, checkpoint.named_parameters(model, names), processes)
    updates = updates_per_epoch(len(loader), config.TRAIN.GRAD_ACCUMULATE_STEPS)
    schedule = build_schedule(config.TRAIN, optimizer, updates)
    batch = effective_batch_size(config.TRAIN, processes)
    logger.info(
        "effective batch %d, base lr %g, %d updates per epoch", batch, config.TRAIN.LR * batch, updates
    )
    model = distributed.wrap_ddp(model)
    # From here on every rank draws its own dropout.
    seed_everything(config.RNG_SEED + distributed.rank())
    precision = Precision(device, config.TRAIN.precision, config.TRAIN.FP16_LOSS_SCALE)
    watchdog = StallDetector(config.STALL_SECONDS)
    for each in (loader, val_loader):
        each.worker_init_fn = ignore_signals
    validation = Interruptible(val_loader, stop, watchdog.heartbeat)
    validate = partial(evaluate, task, model, validation, device, "val", precision)
    epochs = config.TRAIN.END_EPOCH - (resumed[1] + 1 if resumed else config.TRAIN.BEGIN_EPOCH)
    callbacks = _callbacks(task, validate, (epochs, len(loader)), folder, log_dir, stop)
    trainer = Trainer(task, model, optimizer, schedule, device, callbacks, precision, watchdog)
    if resumed is not None:
        path, epoch = resumed
        logger.info("%s training from %s", "Continue" if config.TRAIN.RESUME else "Auto continue", path)
        trainer.load_state_dict(read_weights(path), str(path), epoch + 1)
    dry_run(trainer, loader)
    with watchdog, stop.deferred(), worker_crash_context(training=loader, validation=val_loader):
        trainer.fit(loader)
    return distributed.unwrap(model)


def _callbacks(
    task: AnyTask,
    validate: Callable[[], dict[str, float]],
    size: tuple[int, int],
    folder: Path,
    log_dir: Path,
    stop: GracefulShutdown,
) -> list[Callback]:
    """Returns the callbacks of a run of `size` epochs and micro batches per epoch."""
    config, (epochs, batches) = task.config, size
    several = distributed.is_distributed()
    samples = distributed.world_size() * sum(config.TRAIN.batch_sizes)
    monitor = ValidationMonitor(validate, task.best_metric, config.VAL_FREQUENT)
    extra = {"config": dump_config(config), "versions": checkpoint.versions()}
    return [
        Speedometer(samples, config.LOG_FREQUENT, batches, epochs, distributed.rank() if several else None),
        ProgressBar(),
        TensorBoard(log_dir / "rank0" if several else log_dir),
        monitor,
        Checkpointing(folder, config, monitor, extra, stop.check),
    ]


def _describe(model: nn.Module, folder: Path, cfg: Path, config: ExperimentConfig) -> None:
    """Logs the parameters and keeps copies of what defines the run beside its results."""
    logger.info("%s", parameter_table(model))
    for source in (cfg, Path(inspect.getfile(type(model)))):
        copy = folder / source.name
        if not (copy.exists() and copy.samefile(source)):  # a run may start from its own copy
            shutil.copyfile(source, copy)
    (folder / "resolved.yaml").write_text(dump_config(config), encoding="utf-8")


def _report(reports: Sequence[LoadReport], folder: Path) -> None:
    """Logs what the pretrained files gave, and keeps every name in `pretrained.txt`."""
    for report in reports:
        logger.info("%s", report)
    if reports and distributed.is_main():
        text = "\n".join(report.details() for report in reports)
        (folder / "pretrained.txt").write_text(text, encoding="utf-8")
