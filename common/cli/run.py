"""What every command shares: its parser, its log, and how an error becomes a message and an exit status.

All commands import this module, so it imports nothing heavy.
"""

from __future__ import annotations

import argparse
import datetime
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from common.distributed.launcher import first_to_report
from common.errors import INTERRUPT_STATUS, Stopped, UsageError, UserError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing, so that only one of several processes reports a wrong command line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the flags of every command."""
    result = _Parser(description=description)
    result.add_argument("--cudnn-off", action="store_true", help="do not use cuDNN")
    result.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        help="override a value of the yaml file; repeatable",
    )
    return result


def run(main: Callable[[], object]) -> int:
    """Runs the body of a command with logging to stdout and returns the exit status of the process.

    Expected errors become one line on stderr; see `_describe`. Any other error is a bug and keeps its traceback.
    If torchrun started several processes of this machine, only the first one to fail reports its error: the others
    usually fail because of it.
    """
    with _console_log():
        try:
            main()
        except (Exception, KeyboardInterrupt) as error:
            status, message = _describe(error)
            if first_to_report(os.environ):
                if message is None:
                    raise
                sys.stderr.write(f"{message}\n")
            return status
        finally:
            # Importing the module here would make commands without torch slow to start.
            if (process_group := sys.modules.get("common.distributed.process_group")) is not None:
                process_group.cleanup()
    return 0


def _describe(error: BaseException) -> tuple[int, str | None]:
    """Returns exit status and message of an error; no message for a bug."""
    match error:
        case UserError():
            return error.exit_status, f"error: {error}"
        case Stopped():
            return error.exit_status, f"stopped by {error}"
        case KeyboardInterrupt():
            return INTERRUPT_STATUS, "interrupted"
        case OSError(errno=number) if number in _DISK_ERRORS:
            return 1, f"error: {error.filename or 'a file of this run'}: {error.strerror}"
    return 1, None


@contextmanager
def _console_log() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    try:
        with _log_handler(logging.StreamHandler(sys.stdout)):
            yield
    finally:
        root.setLevel(level)


@contextmanager
def _log_handler(handler: logging.Handler) -> Iterator[None]:
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        # On a full disk closing the log file fails too. It must not hide the error that ended the run.
        with suppress(OSError):
            handler.close()


def log_to_stderr() -> None:
    """Moves the log from stdout to stderr, for commands that print their result on stdout."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)


@contextmanager
def log_file(folder: Path, cfg: str | Path) -> Iterator[None]:
    """Also logs to `{cfg stem}_{time}.log` on rank 0; the other ranks log only warnings, on the console."""
    from common.distributed import process_group as distributed

    if not distributed.is_main():
        logging.getLogger().setLevel(logging.WARNING)
        yield
        return
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H-%M")
    with _log_handler(logging.FileHandler(folder / f"{Path(cfg).stem}_{now}.log", encoding="utf-8")):
        yield
