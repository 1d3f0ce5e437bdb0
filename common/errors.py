"""Errors that users see: one message that names the file, record, key or flag and says what would be right.

Every entry point turns a `UserError` into its message on stderr and its exit status, without a traceback.
All of them carry a single string, so that they cross the border of a data-loading worker unharmed.
"""

from __future__ import annotations


class UserError(Exception):
    """Something outside our code is wrong: a file, a record, a key, a flag."""

    exit_status = 1


class UsageError(UserError):
    """A flag of the command line is wrong."""

    exit_status = 2


class ConfigError(UsageError):
    """A yaml file or a `--set` override is wrong."""


class DataError(UserError):
    """A data file or one record of it cannot be used."""


class CheckpointError(UserError):
    """A weight file or checkpoint cannot be used."""


class TrainingError(UserError):
    """A run cannot go on: not a number, out of memory, a process that stalls."""


def did_you_mean(name: str, known: list[str]) -> str:
    """Returns `; did you mean X?` for the closest of `known`, or an empty string."""
    import difflib

    # Case is compared last: the commonest slip is a lower-case key.
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""
