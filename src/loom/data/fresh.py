"""Large values of bytes in new memory: made empty and filled in place, so that nothing is copied twice.

The first touch of new memory costs as much as the copying. It costs half of that where the kernel is asked for many
pages at a time: 256 MiB in 100 ms instead of 160. (Large pages, 70 ms, take 500 ms in virtual machines that give free
ones back to their host.)
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from loom.limits import MIB

if TYPE_CHECKING:
    import ctypes

LARGE_VALUE_BYTES: Final = 4 * MIB
"""From here on it pays."""

_STEP_BYTES: Final = 1 * MIB  # touched and then filled, while it is in the processor's cache
_PAGE_BYTES: Final = 4096
_MADV_POPULATE_WRITE: Final = 23


class NewBytes:
    """A value of bytes that is still to be filled. MemoryError where there is too little memory."""

    def __init__(self, size_bytes: int) -> None:
        import ctypes  # takes a few milliseconds, and most never need it

        self._value = _calls().PyBytes_FromStringAndSize(None, size_bytes)
        self._address: int = _calls().PyBytes_AsString(self._value)
        self._memory = memoryview((ctypes.c_char * size_bytes).from_address(self._address)).cast("B")
        self._filled_bytes = 0
        self._touched = self._address

    def append(self, view: memoryview) -> None:
        """ValueError where it is more than has room."""
        for start in range(0, len(view), _STEP_BYTES):
            part = view[start : start + _STEP_BYTES]
            end = self._filled_bytes + len(part)
            if end > len(self._memory):
                raise ValueError(f"more than the {len(self._memory)} bytes that were to come")
            self._touch(self._address + end)
            self._memory[self._filled_bytes : end] = part
            self._filled_bytes = end

    def _touch(self, end: int) -> None:
        if end > self._touched:
            start = self._touched // _PAGE_BYTES * _PAGE_BYTES
            end = min(start + _STEP_BYTES, self._address + len(self._memory))
            _madvise()(start, end - start, _MADV_POPULATE_WRITE)  # older kernels refuse: it is done page by page then
            self._touched = end

    def value(self) -> bytes:
        """Once all of it is filled; ValueError before. Nothing may be appended any more."""
        if self._filled_bytes < len(self._memory):
            raise ValueError(f"{self._filled_bytes} bytes where {len(self._memory)} were to come")
        value: bytes = self._value
        return value


@cache
def _calls() -> ctypes.PyDLL:
    import ctypes

    calls = ctypes.PyDLL(None)
    calls.PyBytes_FromStringAndSize.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t]
    calls.PyBytes_FromStringAndSize.restype = ctypes.py_object
    calls.PyBytes_AsString.argtypes = [ctypes.py_object]
    calls.PyBytes_AsString.restype = ctypes.c_void_p
    return calls


@cache
def _madvise() -> ctypes._NamedFuncPointer:
    import ctypes

    madvise = ctypes.CDLL(None).madvise  # other threads go on meanwhile
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise
