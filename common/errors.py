"""Errors for users: one message that names the file, record, key or flag and says what would be right.

Every entry point prints the message of a `UserError` on stderr, without a traceback, and exits with its status.
The only argument of these errors is the message, so that they can be pickled on their way out of a data worker.
"""

from __future__ import annotations

import difflib
import os
import signal

REQUEUE_STATUS = os.EX_TEMPFAIL
"""Exit status (75) of a run that SIGTERM or SIGUSR1 ended: the same command resumes it."""

INTERRUPT_STATUS = 128 + signal.SIGINT
"""Exit status (130) of a run that SIGINT (Ctrl-C) ended."""


class UserError(Exception):
    """The cause is outside the code: a file, a record, a key, a flag."""

    exit_status = 1


class UsageError(UserError):
    """A command-line flag is wrong."""

    exit_status = 2


class ConfigError(UsageError):
    """A yaml file or a `--set` override is wrong."""


class DataError(UserError):
    """A data file or one of its records cannot be used."""


class CheckpointError(UserError):
    """A weight file or checkpoint cannot be used."""


class TrainingError(UserError):
    """A run cannot continue: values that are not finite, out of memory, a stalled rank."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal ended the run after its work was saved.

    Args:
        number: the signal.
        resumable: whether the same command resumes the run.

    Attributes:
        exit_status: exit status for the process.
    """

    def __init__(self, number: int, resumable: bool = True) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = REQUEUE_STATUS if resumable and number != signal.SIGINT else 128 + number


def did_you_mean(name: str, known: list[str]) -> str:
    """Returns `; did you mean X?` for the closest of `known`, or an empty string."""
    # Ignore case: a lower-case key is the most common mistake.
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""
