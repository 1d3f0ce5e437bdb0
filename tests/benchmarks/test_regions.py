import json
import sys

import pytest

from benchmarks import regions


def test_measures_all_forms(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["regions", "--images", "3", "--passes", "2", "--json", str(out)])
    regions.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["form"] for row in rows] == ["json folder", "json zip", "packed float32", "packed float16"]
    for row in rows:
        assert 0 < row["us/image"] <= row["first pass"]
        assert row["times faster"] == pytest.approx(rows[0]["us/image"] / row["us/image"])
    # base64 takes 4 bytes for 3
    assert rows[2]["size of json"] == pytest.approx(0.75, abs=0.02)
    assert rows[3]["size of json"] == pytest.approx(0.375, abs=0.02)
    assert "packed float16" in capsys.readouterr().out
