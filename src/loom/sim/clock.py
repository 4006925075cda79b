"""Virtual time: what is due is called in the order of its time, ties in the order in which they were set."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

_START_S: Final = 1000.0  # a monotonic clock does not begin at 0


class Timer:
    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self._call = None

    def fire(self) -> bool:
        call, self._call = self._call, None
        if call is None:
            return False
        call()
        return True


class Clock:
    def __init__(self) -> None:
        self.now = _START_S
        self.n_fired = 0
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        self._count += 1
        heappush(self._heap, (self.now + max(0.0, delay_s), self._count, timer))
        return timer

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        return self.after(when - self.now, call)

    def fire_next(self) -> bool:
        """Go to the next thing that is due and do it; False when there is none."""
        while self._heap:
            when, _, timer = heappop(self._heap)
            self.now = max(self.now, when)
            if timer.fire():
                self.n_fired += 1
                return True
        return False
