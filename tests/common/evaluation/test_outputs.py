import math

import pytest

from common.errors import UsageError
from common.evaluation.outputs import check_result_file, write_json


def test_write_json_replaces_numbers_that_are_not_finite(tmp_path):
    write_json(tmp_path / "x.json", [{"a": math.nan, "b": math.inf, "c": 0.5, "d": "nän"}])
    assert (tmp_path / "x.json").read_text() == '[{"a": null, "b": null, "c": 0.5, "d": "n\\u00e4n"}]'


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/x", "--save: .*none/x: no such directory: .*none"),
        ("", "--save: .*: is a directory; name a file"),
        ("source", "--save: .*source: would overwrite an input; name another file"),
    ],
)
def test_check_result_file_rejects_unsuitable_paths(tmp_path, name, message):
    check_result_file(tmp_path / "x", "--save", [tmp_path / "source", None, ""])
    with pytest.raises(UsageError, match=message):
        check_result_file(tmp_path / name, "--save", [tmp_path / "source", None, ""])
