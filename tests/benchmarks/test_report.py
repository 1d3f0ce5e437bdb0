import json

from benchmarks import report


def test_table_aligns_columns():
    rows = [
        {"name": "a", "GFLOP": 1786.13, "ratio": 0.71234},
        {"name": "long name", "GFLOP": 12.0, "ratio": 10},
    ]
    assert (
        report.table(rows) == "name       GFLOP   ratio\na          1,786  0.7123\nlong name     12      10"
    )
    assert report.table([]) == ""


def test_publish_prints_and_writes_other_values(tmp_path, capsys):
    report.publish([], tmp_path / "out.json", machine={"cores": 2}, left_out=["vqa_base"])
    assert capsys.readouterr().out == "machine: {\"cores\": 2}\nleft out: ['vqa_base']\n"
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "machine": {"cores": 2},
        "left_out": ["vqa_base"],
        "rows": [],
    }
