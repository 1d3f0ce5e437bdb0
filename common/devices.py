"""A trained model for pictures of one's own: what it predicts, what it makes of words and regions, where it looks.

Letters: n regions, T text tokens, H hidden width, L layers, A heads, S = T + n + 1 places: text, regions, [END].
"""

from __future__ import annotations

import torch

from common.errors import UsageError


def device_of(name: str | torch.device | None) -> torch.device:
    """Returns the device of that name; by default the first GPU, else the CPU.

    Raises:
        UsageError: there is no such device.
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
