"""What this process and everything that it has started use of the machine, from /proc."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final, NamedTuple

_TICK_US: Final = 1_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# Fields of /proc/PID/stat behind the name (proc(5) counts from 1, the name is 2): processor time of the process and of
# its children that were waited for, and what it has in memory.
_TIMES: Final = slice(11, 15)
_RSS: Final = 21


class Usage(NamedTuple):
    """`cpu_us` never falls but for what a child that left its parent takes along; memory that processes share counts
    for each.
    """

    cpu_us: int
    memory_bytes: int


def family_usage() -> Usage:
    """Of this process and all below it; some 20 us for each."""
    cpu_us = memory_bytes = 0
    pids = [os.getpid()]
    while pids:
        pid = pids.pop()
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
            cpu_us += sum(map(int, fields[_TIMES])) * _TICK_US
            memory_bytes += int(fields[_RSS]) * _PAGE_BYTES
            pids += map(int, _read(f"/proc/{pid}/task/{pid}/children").split())
    return Usage(cpu_us, memory_bytes)


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)
