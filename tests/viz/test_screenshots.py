import sys
from dataclasses import replace

import numpy as np
import pytest

from common.cli.run import run
from common.errors import DataError, UsageError
from tests.viz.example import example
from viz import screenshots


def command(*arguments: object) -> int:
    return run(lambda: screenshots.main([str(argument) for argument in arguments]))


def test_strongest_link_is_from_word_to_region():
    record = example(2, 3, words=4, regions=3)  # words at 1..4, whole image at 6, regions at 7..9
    maps = np.zeros_like(record.maps)
    maps[0, 1, 0, 7] = maps[0, 1, 2, 6] = maps[0, 1, 7, 2] = 1.0  # [CLS], whole image, region to word
    maps[1, 2, 3, 8] = 0.5
    assert screenshots.strongest_link(replace(record, maps=maps)) == (1, 2, 3)
    with pytest.raises(DataError, match="3 words and 0 regions"):
        screenshots.strongest_link(example(1, 1, words=3, regions=0))


def test_screenshots_name_missing_requirements(tmp_path, capsys, monkeypatch):
    maps = example(1, 1, words=3, regions=2).save(tmp_path)
    assert command("--attention", maps, "--out", tmp_path / "none") == 2
    assert "none: no such folder" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "playwright.sync_api", None)
        with pytest.raises(UsageError, match=r"requirements-dev.txt"), screenshots.open_chromium():
            pass
    pytest.importorskip("playwright")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("--attention", maps, "--out", tmp_path) == 2
    assert "needs Chromium: apt-get install chromium" in capsys.readouterr().err
    assert list(tmp_path.glob("*.png")) == []
