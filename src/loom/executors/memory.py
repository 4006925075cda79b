"""Watches what runs take that have asked for an amount of memory.

What counts is anonymous memory: what a process has allocated, not files that it has mapped or the results that it
writes. Of a program it is that of the whole tree, of an executor what its tree has more than when the task began.
Memory that a fork shares with its parent counts once.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Final

from loom.executors.trees import descendants
from loom.limits import KIB

_SAMPLE_S: Final = 0.05
_COST_PART: Final = 20  # looking takes at most a 20th of the loop's time: some 20 us a process, more where forks share
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

Run = tuple[int, int]  # task and attempt


class _Watched:
    def __init__(self, pid: int, limit_bytes: int, has_begun: Callable[[], bool] | None) -> None:
        self.pid = pid
        self.limit_bytes = limit_bytes
        self.has_begun = has_begun
        self.before_bytes = _rss_bytes([pid, *descendants(pid)]) if has_begun is not None else 0
        self.peak_bytes = 0
        self.suspected = False
        self.told = False

    def is_over(self) -> bool:
        """Whether it is above its limit, for all that can be seen."""
        if self.has_begun is not None:
            if not self.has_begun():  # another task runs there, or the process is still starting
                self.before_bytes = _rss_bytes([self.pid, *descendants(self.pid)])
                return False
            self.has_begun = None
        processes = [self.pid, *descendants(self.pid)]
        taken_bytes = _rss_bytes(processes) - self.before_bytes
        is_over = taken_bytes > self.limit_bytes
        if is_over and len(processes) > 1:
            taken_bytes = _pss_bytes(processes) - self.before_bytes
            # A process that is just starting another one is seen twice: that is over at the next look.
            suspected, self.suspected = self.suspected, taken_bytes > self.limit_bytes
            is_over = suspected and self.suspected
            if self.suspected and not is_over:
                return False
        self.peak_bytes = max(self.peak_bytes, taken_bytes)
        return is_over


class MemoryWatch:
    """`over(task, attempt, peak_bytes)` is called once for a run that takes more than it asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, over: Callable[[int, int, int], None]) -> None:
        self._loop = loop
        self._over = over
        self._watched: dict[Run, _Watched] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, run: Run, limit_bytes: int, pid: int, has_begun: Callable[[], bool] | None = None) -> None:
        """Watch a run in this process, and below it.

        `has_begun`: the process is there before the run, and this says whether it runs it now.
        """
        self._watched[run] = _Watched(pid, limit_bytes, has_begun)
        if self._timer is None:
            self._timer = self._loop.call_later(_SAMPLE_S, self._look)

    def end(self, run: Run) -> None:
        """Nothing happens if the run is not watched."""
        self._watched.pop(run, None)

    def close(self) -> None:
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._watched:
            return
        began_s = perf_counter()
        for run, watched in list(self._watched.items()):
            if not watched.told and watched.is_over():
                watched.told = True
                self._over(*run, watched.peak_bytes)
        pause_s = max(_SAMPLE_S, _COST_PART * (perf_counter() - began_s))
        self._timer = self._loop.call_later(pause_s, self._look)


def _rss_bytes(pids: Sequence[int]) -> int:
    """Anonymous memory of processes, those that have ended left out; what forks share counts for each."""
    pages = 0
    for pid in pids:
        with suppress(OSError, ValueError, IndexError):
            _, resident, of_files, *_ = _read(f"/proc/{pid}/statm").split()
            pages += int(resident) - int(of_files)
    return pages * _PAGE_BYTES


def _pss_bytes(pids: Sequence[int]) -> int:
    """The same, with what processes share divided among them; takes milliseconds where that is much."""
    total_bytes = 0
    for pid in pids:
        found = None
        with suppress(OSError, ValueError, IndexError):
            for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
                if line.startswith(b"Pss_Anon:"):
                    found = int(line.split()[1]) * KIB
        total_bytes += _rss_bytes([pid]) if found is None else found
    return total_bytes


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 14)
    finally:
        os.close(descriptor)
