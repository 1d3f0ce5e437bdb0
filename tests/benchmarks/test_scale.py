import json
import sys

import pytest

from benchmarks import scale

pytestmark = pytest.mark.integration


def test_scale_measures_opening_and_reading(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    for name, value in (("BLOCK_LINES", 90), ("VOCAB_SIZE", 300), ("NUM_IMAGES", 3)):
        monkeypatch.setattr(scale, name, value)
    sizes = ["--captions", "200", "--lines", "301", "--workers", "1", "--batches", "4"]
    monkeypatch.setattr(sys, "argv", ["scale", *sizes, "--folder", str(tmp_path), "--json", str(out)])
    scale.main()
    measured = {row["what"]: row["value"] for row in json.loads(out.read_text())["rows"]}
    counts = [measured[f"{name}: lines"] for name in ("train_frcnn.json", "one.doc", "two.doc")]
    assert counts == [200, 151, 150]
    assert measured["samples"] == 4 * (32 + 32)
    assert measured["second run: s from process start to open"] > measured["second run: s to open"] > 0
    for label in ("imports only", "main process", "worker 1"):
        assert measured[f"{label}: resident MB"] > measured[f"{label}: anonymous MB"] > 0
        assert measured[f"{label}: resident MB"] > measured[f"{label}: private MB"] > 0
    assert "worker 2: resident MB" not in measured
    assert "worker 1: private MB" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(("count", "expected"), [(0, b""), (2, b"ab"), (3, b"abc"), (7, b"abcabca")])
def test_write_repeated_writes_count_lines(tmp_path, count, expected):
    scale.write_repeated(tmp_path / "x", [b"a", b"b", b"c"], count)
    assert (tmp_path / "x").read_bytes() == expected
