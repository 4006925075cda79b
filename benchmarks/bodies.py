"""What the Python tasks do. Executors and pools import it by name, so it imports next to nothing."""

import os
import time
from typing import Protocol

_MIB = 1 << 20
_PAUSE_S = 0.03
PLACE_BYTES = 16  # the start of what `make` makes names the worker


class Input(Protocol):
    """As much of a task's wrapped input as is used here."""

    def read(self) -> bytes: ...
    def size(self) -> int: ...


def noop(*_: object) -> bytes:
    return b""


def same(value: Input) -> Input:
    return value


def busy(seconds: float, *_: object) -> bytes:
    """Use so many seconds of this thread's CPU time (not wall time, so that contention shows)."""
    clock = time.thread_time
    end = clock() + seconds
    while clock() < end:
        pass
    return b""


def blob(size_bytes: int) -> bytes:
    return bytes(size_bytes)


def make(size_bytes: int) -> bytes:
    """Random bytes, a MiB of them over and over; the first PLACE_BYTES name the worker that made them."""
    block = os.urandom(min(size_bytes, _MIB))
    place = b"%*d" % (PLACE_BYTES, os.getppid())
    return b"".join([place, block[PLACE_BYTES:], *[block] * (size_bytes // len(block) - 1)])


def make_slowly(size_bytes: int) -> bytes:
    """The same after a while, so that two of them do not run on one core, one after the other."""
    time.sleep(_PAUSE_S)
    return make(size_bytes)


def sizes(*values: Input) -> str:
    return " ".join(str(value.size()) for value in values)


def places(*values: Input) -> bytes:
    """Where `make` ran, for each; reads all of all."""
    return b"".join(value.read()[:PLACE_BYTES] for value in values)
