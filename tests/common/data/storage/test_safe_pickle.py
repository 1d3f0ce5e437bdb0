import collections
import os
import pickle

import pytest

from common.data.storage.safe_pickle import read_pickle
from common.errors import DataError


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values(protocol):
    value = [{"a": (1, 2.5, None, True), "b": "caf\xe9"}, [], 2**70]
    assert read_pickle(pickle.dumps(value, protocol), "x.p") == value


def test_byte_strings_of_python_2():
    assert read_pickle(b"(lp0\nS'caf\\xe9'\np1\na.", "x.p") == ["caf\xe9"]


@pytest.mark.parametrize("value", [Evil(), [{"a": Evil()}], collections.OrderedDict(), print])
def test_classes_and_functions_are_refused(value):
    with pytest.raises(DataError, match=r"x\.p: refused: the pickle asks for [\w.]+; expected plain lists"):
        read_pickle(pickle.dumps(value), "x.p")


def test_what_is_allowed():
    data = pickle.dumps(collections.OrderedDict(a=1))
    assert read_pickle(data, "x.p", {"collections.OrderedDict": dict}) == {"a": 1}


@pytest.mark.parametrize(
    ("data", "found"), [(b"", "it is empty"), (b"\x80\x04", ""), (b"text", ""), (b"0.", "")]
)
def test_damage(data, found):
    with pytest.raises(DataError, match=rf"x\.p: not a readable pickle \({found}.*copy or download it again"):
        read_pickle(data, "x.p")
