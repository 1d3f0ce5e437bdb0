import json
import sys

import pytest

from benchmarks import scale

pytestmark = pytest.mark.integration


def test_measures_what_is_opened_and_read(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    for name, less in (("BLOCK_LINES", 90), ("VOCABULARY", 300), ("PICTURES", 3)):
        monkeypatch.setattr(scale, name, less)
    sizes = ["--captions", "200", "--lines", "301", "--workers", "1", "--batches", "4"]
    monkeypatch.setattr(sys, "argv", ["scale", *sizes, "--folder", str(tmp_path), "--json", str(out)])
    scale.main()
    found = {row["what"]: row["number"] for row in json.loads(out.read_text())["rows"]}
    counts = [found[f"{name}: lines"] for name in ("train_frcnn.json", "one.doc", "two.doc")]
    assert counts == [200, 151, 150]
    assert found["samples"] == 4 * (32 + 32)
    assert found["second run: s until all is open"] > found["second run: s of opening"] > 0
    for who in ("libraries alone", "main process", "worker 1"):
        assert found[f"{who}: resident MB"] > found[f"{who}: anonymous MB"] > 0
        assert found[f"{who}: resident MB"] > found[f"{who}: its own MB"] > 0
    assert "worker 2: resident MB" not in found
    assert "worker 1: its own MB" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(("count", "expected"), [(0, b""), (2, b"ab"), (3, b"abc"), (7, b"abcabca")])
def test_lines_are_repeated(tmp_path, count, expected):
    scale.write_repeated(tmp_path / "x", [b"a", b"b", b"c"], count)
    assert (tmp_path / "x").read_bytes() == expected
