"""What all entry points share: arguments, configuration, output folder, log, seeds, building and training.

Sources: train_eval spec, sections 2 and 3.1.
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

from common.distributed import process_group as distributed
from common.distributed.launcher import first_to_report
from common.distributed.signals import INTERRUPT_STATUS, Stopped
from common.errors import UsageError, UserError


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
            distributed.cleanup()
    return 0


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
