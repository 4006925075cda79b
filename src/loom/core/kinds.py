"""Kinds of tasks (symbol, label prefix, request, about what time limit) and what is known of their durations.

Windows are time: how many tasks may wait at a worker or executor follows from a careful estimate of what one takes. An
unmeasured kind is estimated at a whole window, so that one task a core goes out until a duration is known; after n
measurements the estimate may fall to 1/(n + 1) of the window, which lets the number in flight double with each answer.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from loom.errors import ProtocolError
from loom.limits import LIGHT_PROGRAMS, MAX_KINDS
from loom.messages import DGET, DSLICE, RUN
from loom.resources import Request, is_valid

WORKER_WINDOW_US: Final = 20_000  # work ahead per core at a worker: some hundred round trips, little to give back
EXECUTOR_WINDOW_US: Final = 4_000  # work ahead at an executor: covers the worker's own delays under load
LEAST_TASK_US: Final = 10  # what handling the smallest task costs anyway
LEAST_LIGHT_US: Final = 4  # the same for a light task, which a worker runs in its loop
_BUILT_IN: Final = "loom/"
_HIGH_QUANTILE: Final = 0.9
_MEAN_WEIGHT: Final = 0.05  # weight of a new duration in the running mean

_LIMIT_BITS: Final = 4  # of a time limit that tell kinds apart: tasks with limits of their own share some 300 at most

QueueKey = tuple[Request, str, int]


class Durations:
    """Running mean and high quantile (stochastic approximation, Robbins and Monro 1951) of durations in us."""

    __slots__ = ("count", "high_us", "mean_us")

    def __init__(self) -> None:
        self.count = 0
        self.mean_us = 0.0
        self.high_us = 0.0

    def add(self, duration_us: int) -> None:
        self.count += 1
        if self.count == 1:
            self.mean_us = self.high_us = float(duration_us)
            return
        self.mean_us += (duration_us - self.mean_us) * max(_MEAN_WEIGHT, 1 / self.count)
        step = 0.1 * self.high_us + 1
        self.high_us += step * _HIGH_QUANTILE if duration_us > self.high_us else -step * (1 - _HIGH_QUANTILE)

    def estimate_us(self, window_us: int, least_us: int) -> int:
        """What one more task should be taken for when a window of `window_us` is filled; O(1)."""
        return int(max(self.mean_us, self.high_us, window_us / (self.count + 1), least_us))


class Kind:
    """Tasks whose durations are alike. `number` names it on the wire.

    `time_limit_ms` is that of its tasks, rounded up. `siblings` differ in nothing else and have the same durations.
    """

    __slots__ = (
        "cpus",
        "durations",
        "estimate_us",
        "extras",
        "is_dynamic",
        "is_own",
        "label",
        "n_at_once",
        "number",
        "queue_key",
        "request",
        "siblings",
        "symbol",
        "time_limit_ms",
    )

    def __init__(
        self, number: int, symbol: str, label: str, request: Request, time_limit_ms: int, siblings: list[Kind]
    ) -> None:
        self.number = number
        self.symbol = symbol
        self.label = label
        self.request = request
        self.time_limit_ms = time_limit_ms
        self.cpus = request.cpus
        self.extras = request.extras
        self.is_own = not symbol.startswith(_BUILT_IN)  # some workers may not have it
        self.n_at_once = LIGHT_PROGRAMS if symbol == RUN else 1  # at a worker, where it asks for no core
        self.is_dynamic = symbol in (DGET, DSLICE)
        # what may run at the same workers waits in one line
        self.queue_key: QueueKey = (request, symbol if self.is_own else "", time_limit_ms)
        self.siblings = siblings
        siblings.append(self)
        self.durations: Durations = siblings[0].durations if len(siblings) > 1 else Durations()
        self.estimate_us = 0
        self.estimate()

    def estimate(self) -> None:
        """Draw the conclusion from `durations`: once a batch of measurements, not for each."""
        if self.cpus:
            estimate_us = self.durations.estimate_us(WORKER_WINDOW_US, LEAST_TASK_US)
        else:  # built-ins: short until shown otherwise
            estimate_us = int(max(self.durations.mean_us, self.durations.high_us, LEAST_LIGHT_US))
        for sibling in self.siblings:
            sibling.estimate_us = estimate_us

    def needs_us(self) -> float:
        """How long one may take, as far as is known: its time limit, else what most of them took."""
        return 1000 * self.time_limit_ms or self.durations.high_us


def label_prefix(label: str) -> str:
    """Labels that share the part before the first `:` are of one kind (and one colour in reports)."""
    return label.partition(":")[0]


class Kinds:
    """The table of all kinds; above MAX_KINDS tasks of one symbol and request share one whatever their label.

    What no task has any more is forgotten when there are many.
    """

    def __init__(self) -> None:
        self._next_number = 0
        self._many = 2 * MAX_KINDS
        self._kinds: dict[tuple[str, str, Request, int], Kind] = {}
        self._siblings: dict[tuple[str, str, Request], list[Kind]] = {}

    def find(self, symbol: str, label: str, request: Request, time_limit_ms: int = 0) -> Kind:
        key = (symbol, label_prefix(label), request, _rounded_up(time_limit_ms))
        kind = self._kinds.get(key)
        if kind is not None:
            return kind
        if not is_valid(request):
            raise ProtocolError(f"a task asks for {request}")
        if len(self._kinds) >= MAX_KINDS:
            key = (symbol, "", request, key[3])
            kind = self._kinds.get(key)
            if kind is not None:
                return kind
        siblings = self._siblings.setdefault(key[:3], [])
        kind = self._kinds[key] = Kind(self._next_number, symbol, key[1], request, key[3], siblings)
        self._next_number += 1
        return kind

    @property
    def are_many(self) -> bool:
        """Whether it is worth looking which of them are still in use."""
        return len(self._kinds) > self._many

    def keep(self, used: Container[Kind]) -> set[int]:
        """Forget all but these; returns the numbers of those that are left."""
        self._kinds = {key: kind for key, kind in self._kinds.items() if kind in used}
        self._siblings = {}
        for key, kind in self._kinds.items():
            self._siblings[key[:3]] = kind.siblings
        self._many = 2 * max(MAX_KINDS, len(self._kinds))
        return {kind.number for kind in self._kinds.values()}


def _rounded_up(time_limit_ms: int) -> int:
    """To its first bits."""
    shift = max(0, time_limit_ms.bit_length() - _LIMIT_BITS)
    return -(-time_limit_ms >> shift) << shift
