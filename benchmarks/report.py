"""Reports of benchmarks: the machine, a table on the screen, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Row = Mapping[str, str | float]


def machine(device: str = "cpu") -> dict[str, Any]:
    """Returns what the numbers depend on besides the code."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
    }


def table(rows: Sequence[Row]) -> str:
    """Formats rows with equal keys: text is left-aligned, numbers are right-aligned with four digits."""
    if not rows:
        return ""
    columns = []
    for key in rows[0]:
        cells = [_cell(row[key]) for row in rows]
        width = max(map(len, [key, *cells]))
        text = isinstance(rows[0][key], str)
        columns.append([f"{cell:<{width}}" if text else f"{cell:>{width}}" for cell in [key, *cells]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def publish(rows: Sequence[Row], path: Path | None, **more: Any) -> None:
    """Prints `more` and a table of rows, and writes both to `path` as JSON."""
    for key, value in more.items():
        if value:
            print(f"{key.replace('_', ' ')}: {json.dumps(value) if isinstance(value, dict) else value}")
    if rows:
        print(table(rows))
    if path:
        path.write_text(json.dumps({**more, "rows": rows}, indent=2) + "\n", encoding="utf-8")
