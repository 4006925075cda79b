"""Where large objects from other hosts land in a client: in the value that users are given, where that is bytes."""

from __future__ import annotations

import errno
import os

from loom.data.buffers import Segment
from loom.data.fresh import NewBytes


class MemoryLanding:
    """One object on its way into memory. OSError where there is too little."""

    def __init__(self, size_bytes: int) -> None:
        try:
            self._value = NewBytes(size_bytes)
        except MemoryError:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from None

    def take(self, piece: memoryview) -> None:
        self._value.append(piece)

    def end(self) -> Segment:
        return self._value.value()

    def drop(self) -> None:
        """The memory goes now: the broken link's callback, in a cycle with it, may keep this for long."""
        del self._value
