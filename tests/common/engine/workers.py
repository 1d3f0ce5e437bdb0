"""Workers of `common.engine.pool` that other processes can import."""

from __future__ import annotations

import logging
import os
import signal
import time

from common.errors import DataError


class Squares:
    """Squares numbers; some of them are trouble."""

    def __init__(self, device):
        self.device = device

    def __call__(self, number):
        if number == 13:
            raise DataError("13 is bad")
        if number == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 5:
            logging.getLogger("worker").warning("five")
        time.sleep(0.2 / (number + 1))  # later ones are faster
        return number * number, str(self.device), os.getpid()


def fails(device):
    raise DataError(f"nothing works on {device}")
