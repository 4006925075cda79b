"""Native plugins: shared libraries with the interface of include/loom/plugin.h, whose structs stand here once more.

What a library passes in is checked as far as it can be; a pointer that leads nowhere ends the executor, and the task
with it.
"""

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_char_p, c_ssize_t, c_uint32, c_uint64, c_void_p, cast, py_object, pythonapi
from functools import wraps
from typing import Any, Final

from loom.data.array import Array
from loom.data.base import MAX_TOLD_SIZE, DataObject, DObject
from loom.data.buffers import joined_view, total_size
from loom.data.index import Index
from loom.data.own import OwnObject
from loom.errors import LoomError
from loom.plugins.types import add_native, check_own_symbol
from loom.tasktypes.base import RunContext, TaskError
from loom.tasktypes.outputs import store_object, store_plain
from loom.tasktypes.wrappers import element_of

ABI_VERSION: Final = 1
ENTRY: Final = "loom_plugin_entry"
_MAX_TASK_TYPES: Final = 10_000  # more is no number but rubbish
_PYBUF_SIMPLE: Final = 0
_PYBUF_READ: Final = 0x100


class _Object(Structure):
    _fields_ = [("symbol", c_char_p), ("data", c_void_p), ("size", c_uint64), ("length", c_uint64)]


class _Task(Structure):
    _fields_ = [
        ("functions", c_void_p),
        ("config", c_void_p),
        ("config_size", c_uint64),
        ("inputs", POINTER(_Object)),
        ("n_inputs", c_uint64),
    ]


class _TaskType(Structure):
    _fields_ = [("symbol", c_char_p), ("run", c_void_p)]


class _Plugin(Structure):
    _fields_ = [("abi_version", c_uint32), ("n_task_types", c_uint32), ("task_types", POINTER(_TaskType))]


class _Buffer(Structure):
    """Py_buffer, which is part of Python's stable ABI."""

    _fields_ = [
        ("buf", c_void_p),
        ("obj", c_void_p),
        ("len", c_ssize_t),
        ("itemsize", c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", c_void_p),
        ("shape", c_void_p),
        ("strides", c_void_p),
        ("suboffsets", c_void_p),
        ("internal", c_void_p),
    ]


_get_buffer = pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = [py_object, POINTER(_Buffer), ctypes.c_int]
_release_buffer = pythonapi.PyBuffer_Release
_release_buffer.argtypes = [POINTER(_Buffer)]
_release_buffer.restype = None
_memory_view = pythonapi.PyMemoryView_FromMemory
_memory_view.argtypes = [c_void_p, c_ssize_t, ctypes.c_int]
_memory_view.restype = py_object

_NO_BYTES: Final = ctypes.create_string_buffer(1)  # what an empty content points to


def register_library(path: str) -> None:
    """Load a library and register its task types. LoomError that says why it is no plugin for this Loom."""
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise LoomError(str(error).removeprefix(f"{path}: ")) from None
    try:
        entry = getattr(library, ENTRY)
    except AttributeError:
        raise LoomError(f"it does not export {ENTRY}(), see loom/plugin.h") from None
    entry.restype = c_void_p
    entry.argtypes = []
    address = entry()
    if not address:
        raise LoomError(f"{ENTRY}() returned NULL")
    version = c_uint32.from_address(address).value
    if version != ABI_VERSION:
        raise LoomError(
            f"it was built for version {version} of the plugin interface, this Loom has version {ABI_VERSION}; build it"
            " again with the header that `python -m loom.plugins --include` names"
        )
    plugin = _Plugin.from_address(address)
    count = plugin.n_task_types
    if count > _MAX_TASK_TYPES or (count and not plugin.task_types):
        raise LoomError(f"it says that it has {count} task types, which cannot be")
    for i in range(count):
        symbol, run = plugin.task_types[i].symbol, plugin.task_types[i].run
        if not symbol or not run:
            raise LoomError(f"its task type {i} has no {'function' if symbol else 'symbol'}")
        add_native(symbol.decode("utf-8", "backslashreplace"), path, _runner(run))


def _runner(address: int) -> Callable[[RunContext, bytes, Sequence[DataObject]], DataObject]:
    function = _RUN(address)

    def run(context: RunContext, config: bytes, inputs: Sequence[DataObject], /) -> DataObject:
        return _Run(context, inputs).result(function, config)

    return run


class _Run:
    """One task of a native type: the objects that its code knows, by address, and what keeps their memory."""

    current: "_Run | None" = None

    def __init__(self, context: RunContext, inputs: Sequence[DataObject]) -> None:
        self._context = context
        self._objects: dict[int, DataObject] = {}
        self._alive: list[object] = []
        self._elements: dict[tuple[int, int], int] = {}
        self.failure = ""
        self._inputs = (_Object * len(inputs))()
        for place, value in enumerate(inputs):
            self._describe(value, self._inputs[place])

    def result(self, function: Callable[[Any], int | None], config: bytes) -> DataObject:
        """Call the library; TaskError where it says that the task failed, or returns what is no object."""
        config_at = self._address_of(memoryview(config))
        task = _Task(ctypes.addressof(_FUNCTIONS), config_at, len(config), self._inputs, len(self._inputs))
        _Run.current = self
        try:
            returned = function(ctypes.byref(task))
        finally:
            _Run.current = None
        if self.failure:
            raise TaskError(self.failure)
        if not returned:
            raise TaskError("the native task returned NULL without a word (loom_fail says why)")
        found = self._objects.get(returned)
        if found is None:
            raise TaskError("the native task returned a pointer that is no object of its own")
        return found

    def _describe(self, value: DataObject, into: _Object) -> int:
        """Fill the struct of an object; returns its address, under which it is known from now on."""
        symbol = value.symbol.encode()
        self._alive.append(symbol)
        into.symbol = symbol
        into.size = value.size()
        into.length = value.length()
        if isinstance(value, DObject):
            into.data = self._address_of(value.view())
        address = ctypes.addressof(into)
        self._objects[address] = value
        return address

    def _address_of(self, view: memoryview) -> int:
        """Where the bytes lie; they stay there for as long as this object lives."""
        if not view.nbytes:
            return ctypes.addressof(_NO_BYTES)
        self._alive.append(view)
        buffer = _Buffer()
        _get_buffer(view, ctypes.byref(buffer), _PYBUF_SIMPLE)
        address: int = buffer.buf
        _release_buffer(ctypes.byref(buffer))  # the view itself holds on to the memory
        return address

    def add(self, value: DataObject) -> int:
        """Make an object known; returns the address of its struct."""
        struct = _Object()
        self._alive.append(struct)
        return self._describe(value, struct)

    def known(self, address: int | None) -> DataObject:
        found = self._objects.get(address or 0)
        if found is None:
            raise TaskError("a native task passed a pointer that is no object of its own")
        return found

    # -- What the library calls, on the way of `_FUNCTIONS` -----------------------------------------------------------

    def on_fail(self, text: bytes | None) -> None:
        self.failure = (text or b"").decode("utf-8", "backslashreplace") or "failed without a message"

    def on_bytes(self, data: int | None, size: int) -> int:
        return self.add(store_plain(self._context, [_memory("loom_bytes", data, size)]))

    def on_own(self, symbol: bytes | None, length: int, data: int | None, size: int) -> int:
        name = (symbol or b"").decode("utf-8", "backslashreplace")
        try:
            check_own_symbol(name)
        except ValueError as error:
            raise TaskError(f"loom_own: {error}") from None
        if length > MAX_TOLD_SIZE:
            raise TaskError(f"loom_own: {name}: the length {length} is above {MAX_TOLD_SIZE}")
        given = OwnObject(name, size, length, [_memory("loom_own", data, size)], None)
        kept = store_object(self._context, given)
        if kept is given:  # small, and still the library's memory
            kept = OwnObject(name, size, length, [bytes(_memory("loom_own", data, size))], None)
        return self.add(kept)

    def on_array(self, items: int | None, count: int) -> int:
        if count and not items:
            raise TaskError("loom_array: items is NULL")
        addresses = (c_void_p * count).from_address(items) if items else ()
        return self.add(Array([self.known(address) for address in addresses]))

    def on_element(self, address: int | None, index: int) -> int | None:
        value = self.known(address)
        if not isinstance(value, Array | Index | OwnObject) or index >= value.length():
            return None
        key = (address or 0, index)
        if key not in self._elements:
            self._elements[key] = self.add(element_of(value, index))
        return self._elements[key]

    def on_payload(self, address: int | None, size: Any) -> int | None:
        value = self.known(address)
        if not isinstance(value, DObject | OwnObject):
            return None
        segments = value.segments() if isinstance(value, DObject) else value.segments
        if size:
            size[0] = total_size(segments)
        return self._address_of(joined_view(segments))


def _memory(who: str, data: int | None, size: int) -> memoryview:
    """The library's own memory, to be copied from."""
    if not size:
        return memoryview(b"")
    if not data or size > MAX_TOLD_SIZE:
        raise TaskError(f"{who}: {size} bytes at {data:#x}" if data else f"{who}: {size} bytes at NULL")
    view: memoryview = _memory_view(data, size, _PYBUF_READ)
    return view


def _guarded(method: Callable[..., int | None]) -> Callable[..., int | None]:
    """A callback: nothing may be raised into the library, so an error becomes the task's failure."""

    @wraps(method)
    def call(_task: int, *args: Any) -> int | None:
        run = _Run.current
        if run is None:  # a thread that the library has left behind
            return None
        try:
            return method(run, *args)
        except BaseException as error:
            run.failure = run.failure or str(error) or type(error).__name__
            return None

    return call


_RUN: Final = ctypes.CFUNCTYPE(c_void_p, POINTER(_Task))

_CALLBACKS: Final = (
    ctypes.CFUNCTYPE(c_void_p, c_void_p, c_char_p)(_guarded(_Run.on_fail)),
    ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_uint64)(_guarded(_Run.on_bytes)),
    ctypes.CFUNCTYPE(c_void_p, c_void_p, c_char_p, c_uint64, c_void_p, c_uint64)(_guarded(_Run.on_own)),
    ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_uint64)(_guarded(_Run.on_array)),
    ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_uint64)(_guarded(_Run.on_element)),
    ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, POINTER(c_uint64))(_guarded(_Run.on_payload)),
)
_FUNCTIONS: Final = (c_void_p * len(_CALLBACKS))(*[cast(callback, c_void_p) for callback in _CALLBACKS])
