import logging
import sys

from common import progress
from common.progress import Progress, track


def test_track_shows_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(track("abc", "letters", unit="letter")) == ["a", "b", "c"]
    assert "letters:   0%|          | 0/3" in capsys.readouterr().err


def test_track_logs_without_a_terminal(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    caplog.set_level(logging.INFO)
    assert list(track(iter("ab"), "letters", 2, "letter")) == ["a", "b"]
    assert list(track(iter("c"), unit="letter")) == ["c"]
    assert caplog.messages == ["letters: 1 of 2 letters", "letters: 2 of 2 letters", "1 letters"]


def test_track_is_silent_before_the_log_interval(caplog):
    caplog.set_level(logging.INFO)
    assert list(track("abc")) == ["a", "b", "c"]
    assert not caplog.messages


def test_track_is_silent_when_disabled(monkeypatch, caplog, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    assert list(track("abc", disable=True)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    assert not caplog.messages


def test_progress_counts_from_initial_and_scales_bytes(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    caplog.set_level(logging.INFO)
    with Progress(5_000_000, "x.zip", "B", initial=1_000_000) as bar:
        bar.update(1_500_000)
    assert caplog.messages == ["x.zip: 2.50MB of 5.00MB"]


def test_progress_does_not_log_if_told(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0)
    caplog.set_level(logging.INFO)
    with Progress(2, log=False) as bar:
        bar.update()
    assert not caplog.messages
