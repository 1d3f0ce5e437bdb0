"""What all entry points share: arguments, configuration, output folder, log, seeds, building and training.

Sources: train_eval spec, sections 2 and 3.1.
"""

from __future__ import annotations

import argparse
import datetime
import errno
import inspect
import json
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
import torch
from torch import nn

from common.config import ExperimentConfig, dump_config, load_config
from common.config_files import read_tree
from common.config_types import Split
from common.data.loader import explained_workers
from common.engine import checkpoint, distributed
from common.engine.build import AnyTask, build_split
from common.engine.callbacks import (
    Callback,
    Checkpointing,
    ProgressBar,
    Speedometer,
    ValidationMonitor,
)
from common.engine.dry_run import dry_run
from common.engine.evaluator import evaluate
from common.engine.interrupt import INTERRUPT_STATUS, Interruptible, Stopped, StopRequest, outlive_stop
from common.engine.launch import first_to_report
from common.engine.optim import build_optimizer, build_schedule, effective_batch
from common.engine.precision import Precision
from common.engine.progress import updates_per_epoch
from common.engine.results import result_folder, write_test_result
from common.engine.tensorboard import TensorBoard
from common.engine.trainer import Trainer
from common.engine.watchdog import Watchdog
from common.errors import ConfigError, UsageError, UserError
from common.files import remove_leftovers
from common.modeling.pretrained import LoadReport, read_weights

logger = logging.getLogger(__name__)

TaskT = TypeVar("TaskT", bound=AnyTask)

Resumed = tuple[Path, int] | None
"""The checkpoint that a run continues from, and the epoch that it ended."""


# --- Command lines -----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Raises for a wrong command line, so that one of several processes says it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the flags that every command has."""
    result = _Parser(description=description)
    result.add_argument("--cudnn-off", action="store_true", help="do not use cuDNN")
    result.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="replace a value of the yaml file; repeatable",
    )
    return result


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


def evaluation_parser(description: str, result_path: str | None = None) -> argparse.ArgumentParser:
    """Returns the flags that every `val.py` and `test.py` has; tasks add theirs for configurations."""
    result = parser(description)
    result.add_argument("--gpus", type=int, nargs="+", metavar="N", help="GPUs to use; -1 for the CPU")
    result.add_argument("--fp16", action="store_true", help="compute in half precision")
    result.add_argument("--result-path", default=result_path, help="folder of the result files")
    result.add_argument("--result-name", help="first part of their names (default: MODEL_PREFIX)")
    return result


def checkpoint_parser(description: str, split_help: str) -> argparse.ArgumentParser:
    """Returns the flags of a `val.py` or `test.py` that runs one checkpoint (`load_evaluation`).

    Args:
        description: what the command does.
        split_help: what `--split` names.
    """
    result = evaluation_parser(description)
    result.add_argument("--cfg", required=True, help="yaml file of the experiment")
    result.add_argument("--ckpt", help="checkpoint (default: the best one of the training run)")
    result.add_argument("--bs", type=int, help="batch size")
    result.add_argument("--model-dir", help="folder in front of OUTPUT_PATH")
    result.add_argument("--split", help=split_help)
    return result


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _report_end(text: str) -> None:
    """Says why the run ends, unless another process of this machine has said so."""
    if first_to_report(os.environ):
        sys.stderr.write(text)


def run(main: Callable[[], object]) -> int:
    """Runs an entry point and returns its exit status.

    A user's mistake ends with its message alone. A run that SIGTERM or SIGUSR1 ended has status 75: it is to be
    started again; one that was interrupted has status 130. Other errors are our own and keep their traceback.
    """
    with _console():
        try:
            main()
        except UserError as error:
            _report_end(f"error: {error}\n")
            return error.exit_status
        except Stopped as stopped:
            _report_end(f"stopped by {stopped}\n")
            return stopped.exit_status
        except KeyboardInterrupt:
            _report_end("interrupted\n")
            return INTERRUPT_STATUS
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                _report_end(f"error: {error.filename or 'a file of this run'}: {error.strerror}\n")
            elif first_to_report(os.environ):
                raise
            return 1
        finally:
            distributed.destroy()
    return 0


# --- Log and output folder ---------------------------------------------------------------------------------


@contextmanager
def _handler(handler: logging.Handler) -> Iterator[None]:
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with suppress(OSError):  # of a full disk, which says itself what ends the run
            handler.close()


@contextmanager
def _console() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    try:
        with _handler(logging.StreamHandler(sys.stdout)):
            yield
    finally:
        root.setLevel(level)


def log_to_stderr() -> None:
    """Moves the log of the console away from stdout, for commands whose answer is what they print."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)


@contextmanager
def log_file(folder: Path, cfg: str | Path) -> Iterator[None]:
    """Also writes the log to `{cfg stem}_{time}.log`; only rank 0 does, the others keep to warnings."""
    if not distributed.is_main():
        logging.getLogger().setLevel(logging.WARNING)
        yield
        return
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M")
    with _handler(logging.FileHandler(folder / f"{Path(cfg).stem}_{now}.log", encoding="utf-8")):
        yield


def run_folder(config: ExperimentConfig, cfg: str | Path, split: Split) -> Path:
    """Returns `{OUTPUT_PATH}/{cfg stem}/{image set}_{split}`."""
    return Path(config.OUTPUT_PATH) / Path(cfg).stem / f"{config.datasets[0].image_set(split)}_{split}"


def output_folder(config: ExperimentConfig, cfg: str | Path, split: Split) -> Path:
    """Makes the `run_folder` and returns it.

    Raises:
        ConfigError: nothing can be written there.
    """
    folder = run_folder(config, cfg, split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"OUTPUT_PATH: {folder}: cannot write there: {error.strerror}; choose another or use --model-dir"
        ) from error
    return folder


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


# --- Building ----------------------------------------------------------------------------------------------


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
    return _below(config, args.model_dir)


def _below(config: ExperimentConfig, folder: str | None) -> ExperimentConfig:
    """Puts the folder of `--model-dir` in front of OUTPUT_PATH."""
    return config.model_copy(update={"OUTPUT_PATH": str(Path(folder or "") / config.OUTPUT_PATH)})


def _with_seed(config: ExperimentConfig, written: Path | None, new: int) -> ExperimentConfig:
    """Decides the seed that RNG_SEED -1 leaves open, the same for all ranks.

    Args:
        config: the experiment.
        written: checkpoint whose run had the seed, if any.
        new: the seed without one.
    """
    if config.RNG_SEED >= 0:
        return config
    run = checkpoint.config_of(read_weights(written)) if written else {}
    seed = distributed.gather_objects(run.get("RNG_SEED", new))[0]
    logger.info("RNG_SEED -1: this run uses %d", seed)
    return config.model_copy(update={"RNG_SEED": seed})


def load_evaluation(
    args: argparse.Namespace, task_class: type[TaskT], split: Split
) -> tuple[TaskT, Path, Path]:
    """Reads `--cfg` under the other flags of `checkpoint_parser`.

    Args:
        args: the flags. `--split` replaces the image set of `split`, of several datasets that of the first.
        task_class: of the model.
        split: section of the configuration, val or test, whose data are run.

    Returns:
        The task under the configuration that the flags describe, the checkpoint, and the folder of the results.

    Raises:
        ConfigError: see `load_config`; also for a result folder where nothing can be written.
    """
    section = split.upper()
    overrides = [*args.set, f"{section}.SHUFFLE=false"]
    datasets = read_tree(Path(args.cfg)).values.get("DATASET")
    count = len(datasets) if isinstance(datasets, list) else 0
    if args.split is not None:
        first = "DATASET.0" if count else "DATASET"
        overrides.append(f"{first}.{section}_IMAGE_SET={json.dumps(args.split)}")
    if args.bs is not None:
        overrides.append(f"{section}.BATCH_IMAGES={[args.bs] * count if count else args.bs}")
    config = _below(load_config(task_class.config_class, args.cfg, overrides), args.model_dir)
    trained = run_folder(config, args.cfg, "train")
    path = Path(args.ckpt) if args.ckpt is not None else checkpoint.best_file(trained, config.MODEL_PREFIX)
    folder = result_folder(args.result_path) if args.result_path else output_folder(config, args.cfg, split)
    # The random decisions of the run's own validation; without its seed, the same every time.
    return task_class(_with_seed(config, path, config.RNG_SEED)), path, folder


# --- Training ----------------------------------------------------------------------------------------------


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
    with StopRequest(config.TRAIN.goes_on) as stop:  # other processes may be waited for
        device = distributed.prepare(
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
    stop: StopRequest,
) -> nn.Module:
    if distributed.is_main():
        remove_leftovers(folder, f"{config.MODEL_PREFIX}-*.model")
    # One rank decides: the others could see a file that it does not.
    found = checkpoint.find(folder, config.MODEL_PREFIX, config.TRAIN) if distributed.is_main() else None
    resumed: Resumed = distributed.gather_objects(found)[0]
    config = _with_seed(config, resumed and resumed[0], random.SystemRandom().randrange(2**31))
    logger.info("training args:%s", args)
    logger.info("training config:\n%s", dump_config(config))
    task = task_class(config)
    log_dir = Path(args.log_dir or folder / "tensorboard_logs")
    model = _train(task, device, folder, log_dir, Path(args.cfg), resumed, stop)
    if args.do_test and not task.tests():
        logger.warning("--do-test: %s has no test split", task.name)
    elif args.do_test:
        best = checkpoint.best_file(folder, config.MODEL_PREFIX)
        if distributed.gather_objects(best.exists())[0]:
            precision = Precision(device, config.TRAIN.number_format)
            for tested in task.tests():
                results = output_folder(tested.config, args.cfg, "test")
                write_test_result(tested, best, results, device, precision)
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
    stop: StopRequest,
) -> nn.Module:
    config = task.config
    seed_everything(config.RNG_SEED)
    # Data first: what is wrong with it shows before large files are read.
    loader, val_loader = build_split(task, "train"), build_split(task, "val")
    model = task.build_model()
    if resumed is None:
        _report(task.load_pretrained(model), folder)
    model.to(device)
    if distributed.is_main():
        _describe(model, folder, cfg, config)
    names = task.names
    processes = distributed.world_size()
    optimizer = build_optimizer(config.TRAIN, checkpoint.named_parameters(model, names), processes)
    updates = updates_per_epoch(len(loader), config.TRAIN.GRAD_ACCUMULATE_STEPS)
    schedule = build_schedule(config.TRAIN, optimizer, updates)
    batch = effective_batch(config.TRAIN, processes)
    logger.info(
        "effective batch %d, base lr %g, %d updates per epoch", batch, config.TRAIN.LR * batch, updates
    )
    model = distributed.wrap(model)
    # From here on every rank draws its own dropout.
    seed_everything(config.RNG_SEED + distributed.rank())
    precision = Precision(device, config.TRAIN.number_format, config.TRAIN.FP16_LOSS_SCALE)
    watchdog = Watchdog(config.STALL_SECONDS)
    for each in (loader, val_loader):
        each.worker_init_fn = outlive_stop
    validation = Interruptible(val_loader, stop, watchdog.beat)
    validate = partial(evaluate, task, model, validation, device, "val", precision)
    epochs = config.TRAIN.END_EPOCH - (resumed[1] + 1 if resumed else config.TRAIN.BEGIN_EPOCH)
    callbacks = _callbacks(task, validate, (epochs, len(loader)), folder, log_dir, stop)
    trainer = Trainer(task, model, optimizer, schedule, device, callbacks, precision, watchdog)
    if resumed is not None:
        path, epoch = resumed
        logger.info("%s training from %s", "Continue" if config.TRAIN.RESUME else "Auto continue", path)
        trainer.load_state_dict(read_weights(path), str(path), epoch + 1)
    dry_run(trainer, loader)
    with watchdog, stop.deferred(), explained_workers(training=loader, validation=val_loader):
        trainer.fit(loader)
    return distributed.unwrap(model)


def _callbacks(
    task: AnyTask,
    validate: Callable[[], dict[str, float]],
    size: tuple[int, int],
    folder: Path,
    log_dir: Path,
    stop: StopRequest,
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
