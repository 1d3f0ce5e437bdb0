"""Draws the validation curves of the toy runs, from their log files.

`python -m figs.curves --runs output/toy` after `scripts/quickstart.sh all`; the curve of VQA from
pre-trained weights also needs `python vqa/train_end2end.py --cfg cfgs/vqa/toy_pretrained.yaml`.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from common.cli.run import run
from common.errors import DataError, UsageError
from figs.style import (
    ACCENT,
    CARD,
    FAINT,
    MUTED,
    REGION,
    SMALL,
    TEXT,
    WIDTH,
    WORD,
    out_flag,
    page,
    plot_axes,
    px,
)

logger = logging.getLogger(__name__)

Curve = dict[int, float]
"""A metric in percent by number of epochs."""

_VALIDATION = re.compile(r"Epoch\[(\d+)\] \tVal-(\S.*)")


class Source(NamedTuple):
    """A curve and the run that it is read from.

    Attributes:
        label: name in the figure.
        run: run folder: task and name of the yaml file.
        metric: name of the metric in the log, a fraction.
        color: line color.
    """

    label: str
    run: str
    metric: str
    color: str


class Panel(NamedTuple):
    """A plot with one or several curves.

    Attributes:
        title: the task.
        sources: the curves.
        blind: accuracy in percent of a model without images; None if unknown.
    """

    title: str
    sources: tuple[Source, ...]
    blind: float | None = None


# Blind accuracy: VCR has four choices that the text alone does not distinguish; VQA is the number in the README;
# RefCOCO+ is the mean of 1 / (objects of the image) over the sentences of val.
PANELS = (
    Panel(
        "Pre-training",
        (
            Source("masked regions", "pretrain/toy_prec", "MVRCAccuracy", REGION),
            Source("masked words", "pretrain/toy_prec", "MLMAccWVC", WORD),
        ),
    ),
    Panel(
        "VCR",
        (
            Source("Q→A", "vcr/toy_q2a", "Acc", WORD),
            Source("QA→R", "vcr/toy_qa2r", "Acc", REGION),
        ),
        25.0,
    ),
    Panel(
        "VQA",
        (
            Source("pre-trained", "vqa/toy_pretrained", "SoftAcc", ACCENT),
            Source("from scratch", "vqa/toy", "SoftAcc", WORD),
        ),
        41.1,
    ),
    Panel("RefCOCO+", (Source("val", "refcoco/toy", "RefAcc", WORD),), 34.4),
)


def read_curve(logs: Sequence[Path], metric: str) -> Curve:
    """Reads a metric of a run.

    Args:
        logs: log files of the run, oldest first.
        metric: name of the metric.

    Raises:
        DataError: a file cannot be read, or a value is not a number.
    """
    curve: Curve = {}
    for path in logs:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        for number, values in _VALIDATION.findall(text):
            epochs = int(number) + 1
            metrics = dict(pair.split("=", 1) for pair in re.split(r",\s*", values) if "=" in pair)
            # A log that starts at an earlier epoch replaces the later epochs of previous logs.
            curve = {epoch: value for epoch, value in curve.items() if epoch < epochs}
            if metric in metrics:
                try:
                    curve[epochs] = 100 * float(metrics[metric])
                except ValueError as error:
                    raise DataError(
                        f"{path}: epoch {number}: Val-{metric}={metrics[metric]}: not a number"
                    ) from error
    return curve


def read_panels(runs: Path) -> list[tuple[Panel, list[tuple[Source, Curve]]]]:
    """Reads the curves of all runs below a folder; panels without curves are left out.

    Raises:
        UsageError: no known run has been validated.
        DataError: a log cannot be read.
    """
    panels, missing = [], []
    for panel in PANELS:
        curves = []
        for source in panel.sources:
            curve = read_curve(sorted(runs.glob(f"{source.run}/*_train/*.log")), source.metric)
            if curve:
                curves.append((source, curve))
            else:
                missing.append(source)
        if curves:
            panels.append((panel, curves))
    if not panels:
        raise UsageError(f"--runs {runs}: no log of a toy run found; run `scripts/quickstart.sh all`")
    for source in missing:
        logger.warning("%s/%s: no Val-%s in its logs; skipped", runs, source.run, source.metric)
    return panels


def draw_curves(panels: Sequence[tuple[Panel, Sequence[tuple[Source, Curve]]]], path: Path) -> None:
    left, top, gap, height = 52.0, 52.0, 22.0, 170.0
    width = (WIDTH - left - 24 - gap * (len(panels) - 1)) / len(panels)
    with page(path, top + height + 46) as sheet:
        for number, (panel, curves) in enumerate(panels):
            x = left + number * (width + gap)
            sheet.text(x, top - 24, panel.title, fontweight="bold", va="center")
            _plot(plot_axes(sheet, x, top, width, height), panel, curves, first=number == 0)
        sheet.text(left, top + height + 33, "epochs", size=SMALL, color=MUTED, va="center")
        note = "accuracy in percent on held-out toy images; dots and numbers mark the best epochs"
        sheet.text(WIDTH - 24, top + height + 33, note, size=SMALL, color=MUTED, va="center", ha="right")


def _plot(axes: Axes, panel: Panel, curves: Sequence[tuple[Source, Curve]], *, first: bool) -> None:
    last = max(max(curve) for _, curve in curves)
    axes.set(xlim=(0, last * 1.02), ylim=(0, 103), facecolor="none")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=MUTED, labelleft=first)
    axes.set_yticks(range(0, 101, 25))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(axis="y", color=FAINT, linewidth=px(1))
    axes.set_axisbelow(True)
    if panel.blind is not None:
        axes.axhline(panel.blind, color=MUTED, linewidth=px(1), linestyle=(0, (4, 3)))
        axes.text(
            last, panel.blind - 2, f"blind {panel.blind:.0f}", size=SMALL, color=MUTED, ha="right", va="top"
        )
    for source, curve in curves:
        epochs, values = zip(*sorted(curve.items()), strict=True)
        axes.plot(epochs, values, color=source.color, linewidth=px(2), solid_capstyle="round")
        best = best_epoch(curve)
        axes.plot(best, curve[best], "o", color=source.color, markersize=px(6), clip_on=False)
    _label(axes, curves, last)


def best_epoch(curve: Curve) -> int:
    """Returns the best epoch, the first one if tied: its checkpoint is kept."""
    return max(curve, key=lambda epoch: (curve[epoch], -epoch))


def _label(axes: Axes, curves: Sequence[tuple[Source, Curve]], last: int) -> None:
    """Writes names and best values in rows at the right, best first."""
    ranked = sorted(curves, key=lambda item: -max(item[1].values()))
    for row, (source, curve) in enumerate(ranked):
        text = f"{source.label} {max(curve.values()):.1f}"
        behind = {"facecolor": CARD, "edgecolor": "none", "pad": 1}
        axes.text(last, 56 - 9 * row, text, color=source.color, size=TEXT, ha="right", bbox=behind)


def main() -> None:
    """Runs the command line."""
    flags = argparse.ArgumentParser(description="Draw the validation curves of the toy runs.")
    flags.add_argument("--runs", type=Path, default=Path("output/toy"), help="folder (default: %(default)s)")
    out_flag(flags, "training_curves.svg")
    args = flags.parse_args()
    draw_curves(read_panels(args.runs), args.out)


if __name__ == "__main__":
    sys.exit(run(main))
