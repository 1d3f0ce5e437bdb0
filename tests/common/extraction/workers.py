"""Workers of `common.extraction.workers` that other processes can import."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import torch

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


def interrupted(device):
    """Makes a worker that gets a Ctrl-C, and tells how many threads it may use; 0 if it heard it."""

    def work(piece):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        except KeyboardInterrupt:
            return 0
        return torch.get_num_threads()

    return work


def endless(device):
    """Makes a worker that writes a file of its name, its process, into the folder that it gets, and stays."""

    def work(folder):
        (Path(folder) / str(os.getpid())).touch()
        time.sleep(600)

    return work
