"""Validation curves from log files."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("matplotlib")

from common.cli.run import run
from common.errors import DataError, UsageError
from figs import curves
from figs.curves import best_epoch, draw_curves, read_curve, read_panels


def line(epoch: int, **values: float) -> str:
    text = "".join(f"{name}={value:f},\t" for name, value in values.items())
    return f"2026-11-23 17:54:51,938 Epoch[{epoch}] \tVal-{text}\n"


def write_log(runs, name: str, content: str, time: str = "17-54"):
    folder = runs / name / "some_train"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"toy_2026-11-23-{time}.log"
    path.write_text(content)
    return path


def test_read_curve(tmp_path):
    content = (
        "VAL_FREQUENT: 1\nEpoch[0] Batch [25]\tSpeed: 3 samples/s\tTrain-Acc=0.9,\t\n"
        + line(0, Loss=2.5, Acc=0.25)
        + "Best Val Acc: 0.25, Epoch: 0\n"
        + line(1, Loss=2.0, Acc=0.5)
    )
    log = write_log(tmp_path, "vcr/toy_q2a", content)
    assert read_curve([log], "Acc") == {1: 25.0, 2: 50.0}
    assert read_curve([log], "Los") == {}


def test_read_curve_later_log_replaces_epochs(tmp_path):
    first = write_log(tmp_path, "x/y", line(0, Acc=0.1) + line(1, Acc=0.2) + line(2, Acc=0.3), "10-00")
    second = write_log(tmp_path, "x/y", line(1, Acc=0.4), "11-00")
    assert read_curve([first, second], "Acc") == {1: 10.0, 2: 40.0}


def test_read_curve_bad_logs(tmp_path):
    log = write_log(tmp_path, "x/y", line(3, Acc=0.1).replace("0.100000", "0.1x"))
    with pytest.raises(DataError, match=r"log: epoch 3: Val-Acc=0.1x: not a number"):
        read_curve([log], "Acc")
    with pytest.raises(DataError, match="some_train: cannot be read"):
        read_curve([log.parent], "Acc")


def test_read_panels_skips_missing_runs(tmp_path, caplog):
    write_log(tmp_path, "vqa/toy", line(0, SoftAcc=0.5))
    write_log(tmp_path, "refcoco/toy", "no validation yet\n")
    ((panel, panel_curves),) = read_panels(tmp_path)
    assert panel.title == "VQA"
    assert [(source.label, curve) for source, curve in panel_curves] == [("from scratch", {1: 50.0})]
    assert "vqa/toy_pretrained: no Val-SoftAcc in its logs; skipped" in caplog.text
    assert "refcoco/toy: no Val-RefAcc" in caplog.text


def test_read_panels_without_runs_raises(tmp_path):
    with pytest.raises(
        UsageError, match=r"--runs .*: no log of a toy run found; run `scripts/quickstart.sh all`"
    ):
        read_panels(tmp_path / "nowhere")


def test_best_epoch_is_first_if_tied():
    assert best_epoch({1: 10.0, 2: 30.0, 3: 30.0, 4: 20.0}) == 2


@pytest.mark.integration
def test_draw_curves_labels_and_best_epochs(tmp_path, monkeypatch):
    drawn = []
    plot_axes = curves.plot_axes
    monkeypatch.setattr(curves, "plot_axes", lambda *bounds: drawn.append(plot_axes(*bounds)) or drawn[-1])
    write_log(tmp_path, "vcr/toy_q2a", line(0, Acc=0.3) + line(1, Acc=0.9) + line(2, Acc=0.8))
    write_log(tmp_path, "vcr/toy_qa2r", line(0, Acc=0.4) + line(1, Acc=0.95))
    write_log(tmp_path, "refcoco/toy", line(0, RefAcc=0.6))
    draw_curves(read_panels(tmp_path), tmp_path / "curves.svg")
    vcr, refcoco = drawn
    texts = {text.get_text(): text.get_position()[1] for text in vcr.texts}
    assert set(texts) == {"Q→A 90.0", "QA→R 95.0", "blind 25"}
    assert texts["QA→R 95.0"] > texts["Q→A 90.0"]  # best first
    dots = [line.get_xydata().tolist() for line in vcr.lines if line.get_marker() == "o"]
    assert dots == [[[2, 90]], [[2, 95]]]
    assert [text.get_text() for text in refcoco.texts] == ["blind 34", "val 60.0"]


@pytest.mark.integration
def test_command(tmp_path, monkeypatch, capsys):
    write_log(tmp_path, "vqa/toy", line(0, SoftAcc=0.5) + line(1, SoftAcc=0.6))
    out = tmp_path / "curves.svg"
    monkeypatch.setattr(sys, "argv", ["curves", "--runs", str(tmp_path), "--out", str(out)])
    assert run(curves.main) == 0
    assert out.read_text().startswith("<?xml")
    monkeypatch.setattr(sys, "argv", ["curves", "--runs", str(tmp_path / "none"), "--out", str(out)])
    assert run(curves.main) == 2
    assert "no log of a toy run found" in capsys.readouterr().err
