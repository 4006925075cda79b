"""Tasks on any data object: get, slice, size, length."""

from collections.abc import Sequence
from typing import Final, SupportsIndex

from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from loom.data.array import Array
from loom.data.base import DataObject
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.plain import Plain
from loom.errors import LoomError
from loom.tasktypes import checks
from loom.tasktypes.base import RunContext, TaskError, TaskType
from loom.tasktypes.outputs import store_plain
from loom.tasktypes.task import Source, Task

GET: Final = "loom/base/get"
SLICE: Final = "loom/base/slice"
SIZE: Final = "loom/base/size"
LENGTH: Final = "loom/base/length"
SAME: Final = "loom/base/same"  # what the server makes of a task that was redirected; it has no builder


class GetConfig(Struct, array_like=True, frozen=True):
    index: int


class SliceConfig(Struct, array_like=True, frozen=True):
    start: int
    end: int


_encode: Final = Encoder().encode
_GET_DECODER: Final = Decoder(GetConfig)
_SLICE_DECODER: Final = Decoder(SliceConfig)


def get(input: Source, index: SupportsIndex) -> Task:
    """Element `index` of an array or an index, counted from 0; out of range the task fails."""
    config = GetConfig(checks.integer("get", index))
    return Task(GET, (input,), _encode(config))


def slice(input: Source, start: SupportsIndex, end: SupportsIndex) -> Task:
    """Elements `start` to `end`, without `end`: of an array an array, of an index one plain object.

    Bounds past the end are cut; nothing is left of `start >= end`. Negative bounds raise LoomError.
    """
    config = SliceConfig(checks.integer("slice", start), checks.integer("slice", end))
    if config.start < 0 or config.end < 0:
        raise LoomError(f"slice: bounds count from 0, {start} to {end} do not")
    return Task(SLICE, (input,), _encode(config))


def size(input: Source) -> Task:
    """The size of a data object, as an unsigned 64-bit little-endian number."""
    return Task(SIZE, (input,))


def length(input: Source) -> Task:
    """The number of inner pieces of a data object, as an unsigned 64-bit little-endian number."""
    return Task(LENGTH, (input,))


def _run_get(context: RunContext, config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    pieces = _pieces(GET, inputs)
    index = checks.parse_config(GET, config, _GET_DECODER).index
    if not 0 <= index < pieces.length():
        raise TaskError(f"{GET}: element {index} is out of range, the input has {pieces.length()}")
    return _own_bytes(context, pieces, pieces.get(index))


def _run_slice(context: RunContext, config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    pieces = _pieces(SLICE, inputs)
    bounds = checks.parse_config(SLICE, config, _SLICE_DECODER)
    if bounds.start < 0 or bounds.end < 0:
        raise TaskError(f"{SLICE}: bounds count from 0, {bounds.start} to {bounds.end} do not")
    return _own_bytes(context, pieces, pieces.slice(bounds.start, bounds.end))


def _run_size(_context: RunContext, _config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    return _number(checks.only_input(SIZE, inputs).size())


def _run_length(_context: RunContext, _config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    return _number(checks.only_input(LENGTH, inputs).length())


def _run_same(_context: RunContext, _config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    return checks.only_input(SAME, inputs)


def _pieces(symbol: str, inputs: Sequence[DataObject]) -> Array | Index:
    value = checks.only_input(symbol, inputs)
    if not isinstance(value, (Array, Index)):
        raise TaskError(f"{symbol}: the input is {value.symbol}, only arrays and indexes have elements")
    return value


def _own_bytes(context: RunContext, source: Array | Index, piece: DataObject) -> DataObject:
    """The piece; a copy where it lies in an external file, which others may change or remove."""
    if isinstance(source, Index) and isinstance(source.data, FileObject) and isinstance(piece, Plain):
        return store_plain(context, piece.segments())
    return piece


def _number(value: int) -> Plain:
    return Plain(value.to_bytes(8, "little"))


TYPES: Final = (
    TaskType(GET, "inline", _run_get),
    TaskType(SLICE, "inline", _run_slice),
    TaskType(SIZE, "inline", _run_size),
    TaskType(LENGTH, "inline", _run_length),
    TaskType(SAME, "inline", _run_same),
)
