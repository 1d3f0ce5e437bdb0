"""Selection of the device that a command computes on."""

from __future__ import annotations

import torch

from common.errors import UsageError


def device_of(name: str | torch.device | None) -> torch.device:
    """Returns the named device; by default the first GPU, or the CPU if there is none.

    Raises:
        UsageError: no such device on this machine.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise UsageError(f'--device: "{name}": no such device; use cpu, cuda or cuda:N') from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device: {name}: use cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device: {name}: this machine has {torch.cuda.device_count()} GPUs")
    return device
