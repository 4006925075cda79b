"""Tasks on any data object: get, slice, size, length, and the dynamic dget and dslice."""

from collections.abc import Sequence
from typing import Final, NoReturn, SupportsIndex

from msgspec.msgpack import Decoder, Encoder

from loom.data.array import Array
from loom.data.base import DataObject
from loom.data.file import FileObject
from loom.data.index import Index
from loom.data.own import OwnObject
from loom.data.plain import Plain
from loom.errors import LoomError
from loom.messages import DGET, DSLICE, GET, SAME, SLICE, GetConfig, SliceConfig
from loom.tasktypes import checks
from loom.tasktypes.base import RunContext, TaskError, TaskType
from loom.tasktypes.outputs import store_plain
from loom.tasktypes.task import Source, Task
from loom.tasktypes.wrappers import element_of, slice_of

SIZE: Final = "loom/base/size"
LENGTH: Final = "loom/base/length"
OPENS_OWN: Final = frozenset({GET, SLICE})  # on own data these run the code of its type

_encode: Final = Encoder().encode
_GET_DECODER: Final = Decoder(GetConfig)
_SLICE_DECODER: Final = Decoder(SliceConfig)


def get(input: Source, index: SupportsIndex) -> Task:
    """Element `index` of an array, an index or own data, counted from 0; out of range the task fails."""
    config = GetConfig(checks.integer("get", index))
    return Task(GET, (input,), _encode(config))


def slice(input: Source, start: SupportsIndex, end: SupportsIndex) -> Task:
    """Elements `start` to `end`, without `end`: of an array an array, of an index one plain object, of own data what
    its type makes of them.

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


def dslice(input: Source) -> Task:
    """The input in slices, whose number the server finds when it knows the length: some four a core of the cluster.

    Each task that has this one as an input is copied once a slice, and who consumes that task gets all copies in its
    place, in order. No slice is empty; an input of length 0 gives one that is.
    """
    return _dynamic(DSLICE, input)


def dget(input: Source) -> Task:
    """The elements of the input, however many there are: as `dslice` with pieces of one element each.

    An input without elements fails the task.
    """
    return _dynamic(DGET, input)


def _dynamic(symbol: str, input: Source) -> Task:
    task = Task(symbol, (input,))
    task.policy = "scheduler"
    return task


def _run_get(context: RunContext, config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    pieces = _pieces(GET, inputs)
    index = checks.parse_config(GET, config, _GET_DECODER).index
    if not 0 <= index < pieces.length():
        raise TaskError(f"{GET}: element {index} is out of range, the input has {pieces.length()}")
    return _own_bytes(context, pieces, element_of(pieces, index))


def _run_slice(context: RunContext, config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    pieces = _pieces(SLICE, inputs)
    bounds = checks.parse_config(SLICE, config, _SLICE_DECODER)
    if bounds.start < 0 or bounds.end < 0:
        raise TaskError(f"{SLICE}: bounds count from 0, {bounds.start} to {bounds.end} do not")
    return _own_bytes(context, pieces, slice_of(pieces, bounds.start, bounds.end))


def _run_size(_context: RunContext, _config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    return _number(checks.only_input(SIZE, inputs).size())


def _run_length(_context: RunContext, _config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    return _number(checks.only_input(LENGTH, inputs).length())


def _run_same(_context: RunContext, _config: bytes, inputs: Sequence[DataObject]) -> DataObject:
    return checks.only_input(SAME, inputs)


def _pieces(symbol: str, inputs: Sequence[DataObject]) -> Array | Index | OwnObject:
    value = checks.only_input(symbol, inputs)
    if not isinstance(value, (Array, Index, OwnObject)):
        raise TaskError(f"{symbol}: the input is {value.symbol}, only arrays and indexes have elements")
    return value


def _own_bytes(context: RunContext, source: Array | Index | OwnObject, piece: DataObject) -> DataObject:
    """The piece; a copy where it lies in an external file, which others may change or remove."""
    if isinstance(source, Index) and isinstance(source.data, FileObject) and isinstance(piece, Plain):
        return store_plain(context, piece.segments())
    return piece


def _run_dynamic(_context: RunContext, _config: bytes, _inputs: Sequence[DataObject]) -> NoReturn:
    raise AssertionError("the server expands these tasks, they do not run")


def _number(value: int) -> Plain:
    return Plain(value.to_bytes(8, "little"))


TYPES: Final = (
    TaskType(GET, "inline", _run_get),
    TaskType(SLICE, "inline", _run_slice),
    TaskType(SIZE, "inline", _run_size),
    TaskType(LENGTH, "inline", _run_length),
    TaskType(SAME, "inline", _run_same),
    TaskType(DSLICE, "inline", _run_dynamic),
    TaskType(DGET, "inline", _run_dynamic),
)
