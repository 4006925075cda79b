"""PyObj: any Python value, pickled where it was made."""

import pickle
import sys
from collections.abc import Collection
from typing import Any, Final

import cloudpickle

from loom.data.base import DataObject
from loom.data.buffers import Segment, segment_view

_PROTOCOL: Final = 5
_LEAF_TYPES: Final = frozenset({int, float, complex, bool, str, bytes, type(None)})
_CONTAINER_TYPES: Final = frozenset({tuple, list, dict, set, frozenset})
_QUICK_LOOK_VALUES: Final = 64  # above it the few microseconds that cloudpickle takes to start do not matter
_IN_BAND_BYTES: Final = 4096  # a smaller buffer is copied into the stream for less than a segment of its own costs


class PyObj(DataObject):
    """A Python value as a pickle stream and its out-of-band buffers."""

    __slots__ = ("_value_size", "buffers", "stream")
    symbol = "loom/pyobj"

    def __init__(self, stream: Segment, buffers: list[Segment], value_size: int) -> None:
        self.stream = stream
        self.buffers = buffers
        self._value_size = value_size

    @classmethod
    def of(cls, value: object) -> "PyObj":
        """Pickle a value; raises whatever its pickling raises.

        Large buffers of the value (NumPy arrays) are not copied: what is done to them later is seen here.
        """
        buffers: list[Segment] = []
        return cls(pickle_value(value, buffers), buffers, sys.getsizeof(value))

    def size(self) -> int:
        return self._value_size

    def load(self) -> Any:
        """A new copy of the value; buffers are shared, read-only. Raises whatever unpickling raises."""
        return pickle.loads(segment_view(self.stream), buffers=map(segment_view, self.buffers))


def pickle_value(value: object, buffers: list[Segment] | None = None) -> bytes:
    """Pickle so that another process can load it: functions and classes of `__main__` travel by value.

    Large buffers are put into `buffers` where that is given. Plain pickle would write such functions down as names
    that only this process knows; it serves values of built-in types only, where it is ten times faster.
    """
    if type(value) is tuple and _LEAF_TYPES.issuperset(map(type, value)):  # as most direct arguments are
        return pickle.dumps(value, _PROTOCOL)
    if _is_plain_value(value):
        return pickle.dumps(value, _PROTOCOL)
    if buffers is None:
        return bytes(cloudpickle.dumps(value, _PROTOCOL))

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if len(view) < _IN_BAND_BYTES:
            return True
        buffers.append(view.toreadonly())
        return False

    return bytes(cloudpickle.dumps(value, _PROTOCOL, buffer_callback=keep_in_band))


def _is_plain_value(value: object) -> bool:
    """Whether a quick look shows nothing but a few built-in values of exact types."""
    unseen: list[object] = [value]
    allowed = _QUICK_LOOK_VALUES
    while unseen:
        value = unseen.pop()
        kind = type(value)
        if kind in _LEAF_TYPES:
            continue
        if kind not in _CONTAINER_TYPES or not isinstance(value, Collection):
            return False
        allowed -= 1 + len(value)
        if allowed < 0:
            return False
        unseen.extend(value)
        if isinstance(value, dict):
            unseen.extend(value.values())
    return True
