"""Checks that the families have in common: of what a builder is given, and of what a run is given."""

import operator
from collections.abc import Iterable, Sequence
from typing import Final, SupportsIndex, TypeVar

import msgspec

from loom.data.base import DataObject, DObject
from loom.errors import LoomError
from loom.tasktypes.base import TaskError

_INT64_BOUND: Final = 1 << 63

_Config = TypeVar("_Config")
_Item = TypeVar("_Item")


def series(builder: str, values: Iterable[_Item]) -> tuple[_Item, ...]:
    """A builder's argument that has to be a series; what is in it is checked when the task is submitted."""
    try:
        return tuple(values)
    except TypeError:
        raise LoomError(f"{builder}: {values!r} is no series of tasks") from None


def integer(builder: str, value: SupportsIndex) -> int:
    """A builder's argument that has to be an integer of 64 bits."""
    try:
        number = operator.index(value)
    except TypeError:
        raise LoomError(f"{builder}: {value!r} is no integer") from None
    if not -_INT64_BOUND <= number < _INT64_BOUND:
        raise LoomError(f"{builder}: {number} is out of range")
    return number


def as_bytes(builder: str, value: bytes | bytearray | memoryview | str) -> bytes:
    """A builder's argument that has to be bytes or text, which is taken as UTF-8."""
    if type(value) is bytes:  # as nearly all are
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise LoomError(f"{builder}: {value[:40]!r} is no valid text") from None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise LoomError(f"{builder}: {value!r} is neither bytes nor str")


def parse_config(symbol: str, config: bytes, decoder: "msgspec.msgpack.Decoder[_Config]") -> _Config:
    """The configuration of a task that may have been made by hand; TaskError where it is malformed."""
    try:
        return decoder.decode(config)
    except msgspec.MsgspecError as error:
        raise TaskError(f"{symbol}: the configuration is malformed: {error}") from None


def only_input(symbol: str, inputs: Sequence[DataObject]) -> DataObject:
    """The input of a task that has to have exactly one."""
    if len(inputs) != 1:
        raise TaskError(f"{symbol}: takes one input, not {len(inputs)}")
    return inputs[0]


def d_object(symbol: str, position: int, value: DataObject) -> DObject:
    """An input that has to have plain bytes."""
    if not isinstance(value, DObject):
        raise TaskError(f"{symbol}: input {position} is no D-object but {value.symbol}")
    return value
