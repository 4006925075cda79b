"""Names of files in a plan, as the one who builds it, who submits it and who runs it all check them."""

import os
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from loom.limits import MAX_PATH_BYTES

_MAX_PART_BYTES: Final = 255  # what Linux's file systems allow for one name


def check_inside(names: Iterable[bytes]) -> None:
    """ValueError where one of these names, no two of which are the same, is none of a file below a directory, or one is
    the folder of another.
    """
    files = list(names)
    for name in files:
        _check_name(name)
    ordered = sorted(name + b"/" for name in files)  # right behind a folder comes what is in it
    for name, following in pairwise(ordered):
        if following.startswith(name):
            raise ValueError(f"{shown(name[:-1])} is a file and the folder of {shown(following[:-1])}")


def check_absolute(path: bytes) -> None:
    """ValueError where this is no absolute path of a file."""
    if not path.startswith(b"/"):
        raise ValueError(f"{shown(path)} is no absolute path")
    if b"\0" in path or len(path) > MAX_PATH_BYTES or path.rpartition(b"/")[2] in (b"", b".", b".."):
        raise ValueError(f"{shown(path)} is no file name")


def shown(name: bytes) -> str:
    """The name in an error message."""
    text = repr(os.fsdecode(name))
    return text if len(text) <= 200 else text[:200] + "..."


def _check_name(name: bytes) -> None:
    if not name:
        raise ValueError("a file name is empty")
    if b"\0" in name or len(name) >= MAX_PATH_BYTES:
        raise ValueError(f"{shown(name)} is no file name")
    if name.startswith(b"/"):
        raise ValueError(f"the file name {shown(name)} is absolute: name a file below the program's directory")
    parts = name.split(b"/")
    if b".." in parts:
        raise ValueError(f"the file name {shown(name)} leaves the directory")
    if b"" in parts or b"." in parts:
        raise ValueError(f"{shown(name)} is no plain file name")
    if max(map(len, parts)) > _MAX_PART_BYTES:
        raise ValueError(f"{shown(name)} is no file name: a part of it is longer than {_MAX_PART_BYTES} bytes")
