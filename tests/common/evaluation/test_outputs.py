import json
import math

from common.evaluation.outputs import write_json


def test_what_is_no_number_is_null_in_json(tmp_path):
    write_json(tmp_path / "x.json", [{"a": math.nan, "b": math.inf, "c": 0.5, "d": "nan"}])
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=lambda name: f"no json: {name}") == [
        {"a": None, "b": None, "c": 0.5, "d": "nan"}
    ]
