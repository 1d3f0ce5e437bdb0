"""Zip archives of many kinds: each function of `KINDS` makes one."""

import os
import random
import struct
import zipfile
from io import BytesIO
from zlib import crc32

import pytest

NAMES = [f"folder/{number:03d}.json" for number in range(100)]


def content(number):
    return random.Random(number).randbytes(50) * (1 + number % 7)


def build(path, names=NAMES, *, method=zipfile.ZIP_STORED, mode="w"):
    with zipfile.ZipFile(path, mode, method) as file:
        for number, name in enumerate(names):
            file.writestr(name, content(number))
    return str(path)


def stored(path):
    build(path)


def deflated(path):
    build(path, method=zipfile.ZIP_DEFLATED)


def other_methods(path):
    build(path, method=zipfile.ZIP_BZIP2)
    build(path, ["lzma"], method=zipfile.ZIP_LZMA, mode="a")


def mixed(path):
    build(path, NAMES[:40])
    build(path, NAMES[40:], method=zipfile.ZIP_DEFLATED, mode="a")


def zip64_members(path):
    with zipfile.ZipFile(path, "w") as file:
        for number, name in enumerate(NAMES):
            with file.open(name, "w", force_zip64=True) as member:
                member.write(content(number))


def zip64_limits(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 20)
        patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
        build(path, method=zipfile.ZIP_DEFLATED)
    assert b"PK\6\6" in path.read_bytes()


def comments(path):
    with zipfile.ZipFile(path, "w") as file:
        for number, name in enumerate(NAMES):
            info = zipfile.ZipInfo(name)
            info.comment, info.extra = b"said of it, up" * (number % 3), b"\xfe\xca\4\0data" * (number % 2)
            file.writestr(info, content(number))
        file.comment = b"of all " * 5000


def long_comment(path):
    build(path)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"." * 65535


def data_descriptors(path):
    class Stream(BytesIO):
        def seekable(self):
            return False

        def seek(self, *_):
            raise OSError

        def tell(self):
            raise OSError

    stream = Stream()
    build(stream, method=zipfile.ZIP_DEFLATED)
    path.write_bytes(stream.getvalue())
    assert b"PK\7\x08" in path.read_bytes()


def unicode_names(path):
    build(path, ["ä.json", "漢字/😀", "e\u0301", "plain", "Ω"])
    # As archivers wrote them that did not know UTF-8: byte 0x84 is ä.
    build(path.with_name("old"), ["?/1", "?/2", "a"])
    data = path.with_name("old").read_bytes().replace(b"?/", b"\x84/")
    path.with_name("old.zip").write_bytes(data)
    with zipfile.ZipFile(path.with_name("old.zip")) as old:
        assert old.namelist() == ["ä/1", "ä/2", "a"]


def old_names(path):
    unicode_names(path)
    os.replace(path.with_name("old.zip"), path)


def names_in_extra_fields(path):
    field = struct.pack("<BL", 1, crc32(b"_.json")) + "é.json".encode()
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("_.json")
        info.extra = struct.pack("<2sH", b"up", len(field)) + field
        file.writestr(info, b"accent")


def a_zero_in_a_name(path):
    build(path, ["abc", "x?y", "z"])
    path.write_bytes(path.read_bytes().replace(b"x?y", b"x\0y"))


def directories(path):
    build(path, ["a/", "a/b/", "a/b/c", "a/d"])


def duplicates(path):
    build(path, ["a", "b", "a", "c", "b", "a"])


def prefixed(path):
    build(path)
    path.write_bytes(b"#!/bin/sh\nPK\1\2PK\5\6" + bytes(100) + path.read_bytes())


def prefixed_zip64(path):
    zip64_limits(path)
    path.write_bytes(bytes(77) + path.read_bytes())


def prefixed_and_counted(path):
    path.write_bytes(bytes(55))
    build(path, mode="a")


def beyond_4_gb(path):
    with path.open("wb") as file:
        file.truncate(5 * 2**30)  # a hole, which takes no space
    build(path, mode="a")


def of_one(path):
    build(path, ["only"])


KINDS = [
    stored,
    deflated,
    other_methods,
    mixed,
    zip64_members,
    zip64_limits,
    comments,
    long_comment,
    data_descriptors,
    unicode_names,
    old_names,
    names_in_extra_fields,
    a_zero_in_a_name,
    directories,
    duplicates,
    prefixed,
    prefixed_zip64,
    prefixed_and_counted,
    beyond_4_gb,
    of_one,
]
