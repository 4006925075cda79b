"""Columns of numbers inside messages, and what a peer may call itself."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Literal

from loom.errors import ProtocolError
from loom.limits import MAX_PEER_CHARS


def column(data: bytes, code: Literal["H", "I", "Q"]) -> memoryview[int]:
    """View a column's numbers; ProtocolError where its length does not fit."""
    try:
        return memoryview(data).cast(code)
    except TypeError:
        raise ProtocolError("a column is cut short") from None


def ids_column(ids: Iterable[int]) -> bytes:
    return array("Q", ids).tobytes()


def is_plain_text(name: str) -> bool:
    """Whether a peer may be called so, in logs and by others: bounded, and nothing that a terminal would obey."""
    return len(name) <= MAX_PEER_CHARS and name.isprintable()
