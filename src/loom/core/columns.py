"""Columns of numbers inside messages."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Literal

from loom.errors import ProtocolError


def column(data: bytes, code: Literal["H", "I", "Q"]) -> memoryview[int]:
    """View a column's numbers; ProtocolError where its length does not fit."""
    try:
        return memoryview(data).cast(code)
    except TypeError:
        raise ProtocolError("a column is cut short") from None


def ids_column(ids: Iterable[int]) -> bytes:
    return array("Q", ids).tobytes()
