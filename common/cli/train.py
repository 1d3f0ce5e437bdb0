"""The training command: builds everything that a run needs, trains, and tests the best checkpoint."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import random
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.cli.run import log_file, parser
from common.cli.run import run as run_command
from common.config.schema import ExperimentConfig, dump_config, load_config
from common.data.loader import BatchLoader, worker_crash_context
from common.distributed import process_group as distributed
from common.distributed.signals import GracefulShutdown, InterruptibleLoader, ignore_signals
from common.distributed.stall_detection import StallDetector
from common.errors import ConfigError
from common.evaluation.checkpoints import Evaluation
from common.evaluation.evaluator import evaluate
from common.files import remove_leftovers
from common.models.pretrained import read_weights
from common.training import checkpoint
from common.training.callbacks import Checkpointing, ProgressBar, Speedometer, TensorBoard, ValidationMonitor
from common.training.checkpoint import ResumePoint, output_folder, with_output_root, with_seed
from common.training.dry_run import dry_run
from common.training.optim import build_optimizer, build_schedule, effective_batch_size
from common.training.precision import Precision
from common.training.task import AnyTask, build_dataloader
from common.training.trainer import Trainer, steps_per_epoch

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything that a training run is started with.

    Attributes:
        task: the task, under the final configuration.
        cfg_path: yaml file of the experiment.
        output_dir: folder of checkpoints, log and copies of the configuration.
        log_dir: folder of the TensorBoard files.
        device: device of this process.
        precision: precision of the forward pass.
        shutdown: receives the signals that end the run.
        resume_from: checkpoint to resume from; None to start from the pretrained weights.
    """

    task: AnyTask
    cfg_path: Path
    output_dir: Path
    log_dir: Path
    device: torch.device
    precision: Precision
    shutdown: GracefulShutdown
    resume_from: ResumePoint | None


def train_parser(description: str, partial_pretrain: bool = True) -> argparse.ArgumentParser:
    """Returns the parser of a `train_end2end.py`; pre-training has no `--partial-pretrain`."""
    result = parser(description)
    result.add_argument("--cfg", required=True, help="yaml file of the experiment")
    result.add_argument("--model-dir", help="root folder of OUTPUT_PATH")
    result.add_argument(
        "--log-dir", help="folder of the TensorBoard files (default: inside the output folder)"
    )
    result.add_argument(
        "--dist", action="store_true", help="run as one of several processes that torchrun started"
    )
    result.add_argument("--slurm", action="store_true", help="read rank and world size from SLURM variables")
    result.add_argument("--do-test", action="store_true", help="test the best checkpoint after training")
    if partial_pretrain:
        result.add_argument("--partial-pretrain", help="checkpoint to start from (NETWORK.PARTIAL_PRETRAIN)")
    return result


def train_main(task_class: type[AnyTask], partial_pretrain: bool = True) -> None:
    """Entry point of a `train_end2end.py`; ends the process."""
    flags = train_parser(f"Train {task_class.name}.", partial_pretrain)
    sys.exit(run_command(lambda: train_net(flags.parse_args(), task_class)))


def train_net(args: argparse.Namespace, task_class: type[AnyTask]) -> tuple[int | None, nn.Module]:
    """Trains as the command line says.

    Returns:
        The rank, None with a single process, and the model.
    """
    config = load_train_config(args, task_class)
    # Install the signal handlers before the rendezvous, which may wait for other processes.
    with GracefulShutdown(config.TRAIN.resumable) as shutdown:
        device = distributed.setup_device(
            dist_flag=args.dist, slurm=args.slurm, gpus_flag=None, gpus_listed=config.GPUS
        )
        torch.backends.cudnn.enabled = not args.cudnn_off
        output_dir = output_folder(config, args.cfg, "train")
        with log_file(output_dir, args.cfg):
            resume_from = find_resume_point(config, output_dir)
            # All ranks use the seed of rank 0; a resumed run keeps its seed.
            saved = checkpoint.config_of(resume_from.state) if resume_from else {}
            config = with_seed(config, saved, default=random.SystemRandom().randrange(2**31))
            logger.info("training args:%s", args)
            logger.info("training config:\n%s", dump_config(config))
            run = Run(
                task=task_class(config),
                cfg_path=Path(args.cfg),
                output_dir=output_dir,
                log_dir=Path(args.log_dir or output_dir / "tensorboard_logs"),
                device=device,
                precision=Precision(device, config.TRAIN.precision, config.TRAIN.FP16_LOSS_SCALE),
                shutdown=shutdown,
                resume_from=resume_from,
            )
            del resume_from  # the trainer frees the state once it is loaded
            model = train(run)
            if args.do_test:
                test_best_checkpoint(run)
    return (distributed.rank() if distributed.is_distributed() else None), model


def train(run: Run) -> nn.Module:
    """Trains until the end of the run and returns the model, without DDP."""
    config = run.task.config
    seed_everything(config.RNG_SEED)
    # Data first: errors in it show before large weight files are read.
    train_loader, val_loader = build_dataloader(run.task, "train"), build_dataloader(run.task, "val")
    stall_detector = StallDetector(config.STALL_SECONDS)
    trainer = build_trainer(run, train_loader, val_loader, stall_detector)
    dry_run(trainer, train_loader)
    crash_context = worker_crash_context(training=train_loader, validation=val_loader)
    with stall_detector, run.shutdown.deferred(), crash_context:
        trainer.fit(train_loader)
    return distributed.unwrap(trainer.model)


def build_trainer(
    run: Run, train_loader: BatchLoader[Any], val_loader: BatchLoader[Any], stall_detector: StallDetector
) -> Trainer:
    """Builds model, optimizer, schedule and callbacks, and restores the checkpoint that the run resumes from."""
    task, config = run.task, run.task.config
    model = task.build_model()
    if run.resume_from is None:
        reports = task.load_pretrained(model)
        for report in reports:
            logger.info("%s", report)
        if reports and distributed.is_main():
            text = "\n".join(report.details() for report in reports)
            (run.output_dir / "pretrained.txt").write_text(text, encoding="utf-8")
    model.to(run.device)
    if distributed.is_main():
        logger.info("%s", parameter_table(model))
        for source in (run.cfg_path, Path(inspect.getfile(type(model)))):
            copy = run.output_dir / source.name
            if not (copy.exists() and copy.samefile(source)):  # a run may start from its own copy
                shutil.copyfile(source, copy)
        (run.output_dir / "resolved.yaml").write_text(dump_config(config), encoding="utf-8")

    world_size = distributed.world_size()
    parameters = checkpoint.named_parameters(model, task.state_dict_names)
    optimizer = build_optimizer(config.TRAIN, parameters, world_size)
    steps = steps_per_epoch(len(train_loader), config.TRAIN.GRAD_ACCUMULATE_STEPS)
    schedule = build_schedule(config.TRAIN, optimizer, steps)
    batch_size = effective_batch_size(config.TRAIN, world_size)
    base_lr = config.TRAIN.LR * batch_size
    logger.info("effective batch size %d, base lr %g, %d steps per epoch", batch_size, base_lr, steps)
    model = distributed.wrap_ddp(model)
    # From here on every rank draws its own dropout masks.
    seed_everything(config.RNG_SEED + distributed.rank())

    for loader in (train_loader, val_loader):
        loader.worker_init_fn = ignore_signals
    val_batches = InterruptibleLoader(val_loader, run.shutdown, stall_detector.heartbeat)
    validate = partial(evaluate, task, model, val_batches, run.device, "val", run.precision)
    monitor = ValidationMonitor(validate, task.best_metric, config.VAL_FREQUENT)
    first_epoch = run.resume_from.epoch if run.resume_from else config.TRAIN.BEGIN_EPOCH
    rank = distributed.rank() if distributed.is_distributed() else None
    extra = {"config": dump_config(config), "versions": checkpoint.versions()}
    callbacks = [
        Speedometer(
            world_size * sum(config.TRAIN.batch_sizes),
            config.LOG_FREQUENT,
            len(train_loader),
            config.TRAIN.END_EPOCH - first_epoch,
            rank,
        ),
        ProgressBar(),
        TensorBoard(run.log_dir if rank is None else run.log_dir / "rank0"),
        monitor,
        Checkpointing(run.output_dir, config, monitor, extra, run.shutdown.check),
    ]
    trainer = Trainer(task, model, optimizer, schedule, run.device, callbacks, run.precision, stall_detector)
    if run.resume_from is not None:
        path, epoch, _, state = run.resume_from
        logger.info("%s training from %s", "Continue" if config.TRAIN.RESUME else "Auto continue", path)
        trainer.load_state_dict(state, str(path), epoch)
        run.resume_from = None  # free the memory of the state
    return trainer


def find_resume_point(config: ExperimentConfig, output_dir: Path) -> ResumePoint | None:
    """Finds the checkpoint that all ranks resume from. Collective."""
    resume_from = None
    if distributed.is_main():
        remove_leftovers(output_dir, f"{config.MODEL_PREFIX}-*.model")
        resume_from = checkpoint.find_resume_point(output_dir, config.MODEL_PREFIX, config.TRAIN)
    # Rank 0 decides: on a shared file system other ranks may see a file that it does not see.
    position = resume_from and resume_from[:3]
    position = distributed.gather_objects(position)[0]
    if position is not None and resume_from is None:
        resume_from = ResumePoint(*position, read_weights(position[0]))
    return resume_from


def test_best_checkpoint(run: Run) -> None:
    """Tests the best checkpoint on the test splits of the task (`--do-test`)."""
    config = run.task.config
    best = checkpoint.best_file(run.output_dir, config.MODEL_PREFIX)
    tasks = run.task.test_tasks()
    if not tasks:
        logger.warning("--do-test: %s has no test split", run.task.name)
    elif not distributed.gather_objects(best.exists())[0]:
        logger.warning("--do-test: no best checkpoint %s", best)
    else:
        for task in tasks:
            folder = output_folder(task.config, run.cfg_path, "test")
            Evaluation(task, best, folder, run.device, run.precision).write_test_result()


def parameter_table(model: nn.Module) -> str:
    """Returns the table of trainable parameters, and the numbers of trainable, frozen and all parameters."""
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
    """Seeds the global random generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def load_train_config(args: argparse.Namespace, task_class: type[AnyTask]) -> ExperimentConfig:
    """Reads `--cfg` and applies `--set`, `--partial-pretrain` and `--model-dir`.

    Raises:
        ConfigError: see `load_config`; or the configuration has no epoch to train.
    """
    overrides = list(args.set)
    if getattr(args, "partial_pretrain", None) is not None:
        overrides.append(f"NETWORK.PARTIAL_PRETRAIN={json.dumps(args.partial_pretrain)}")
    config = load_config(task_class.config_class, args.cfg, overrides)
    if config.TRAIN.END_EPOCH < 1:
        raise ConfigError(f"{args.cfg}: TRAIN.END_EPOCH: {config.TRAIN.END_EPOCH}: must be at least 1")
    return with_output_root(config, args.model_dir)
