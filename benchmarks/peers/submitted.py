"""Graphs for peers that take tasks one by one, each given the futures of its inputs. No peer is imported here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import peer_tasks

Submit = Callable[..., Any]


class Submitted(ABC):
    """The jobs that are graphs; a peer gives `wait` and, by name of `peer_tasks`, functions that submit."""

    @abstractmethod
    def submitter(self, name: str) -> Submit:
        """What submits one task."""

    @abstractmethod
    def wait(self, futures: Sequence[Any]) -> None:
        """Until all are finished."""

    def bag(self, n: int) -> float:
        return self._each("noop", range(n))

    def uneven(self, durations: Sequence[float]) -> float:
        return self._each("busy", durations)

    def external(self, n: int) -> float:
        return self._each("external", range(n))

    def _each(self, name: str, arguments: Sequence[float]) -> float:
        submit = self.submitter(name)
        began = perf_counter()
        self.wait([submit(argument) for argument in arguments])
        return perf_counter() - began

    def chain(self, n: int) -> float:
        submit = self.submitter("noop")
        began = perf_counter()
        last = submit(0)
        for _ in range(1, n):
            last = submit(last)
        self.wait([last])
        return perf_counter() - began

    def tree(self, n_leaves: int) -> float:
        submit = self.submitter("noop")
        began = perf_counter()
        level = [submit(i) for i in range(n_leaves)]
        while len(level) > 1:
            level = [submit(level[i], level[i + 1]) for i in range(0, len(level), 2)]
        self.wait(level)
        return perf_counter() - began

    def stencil(self, width: int, steps: int, seconds: float) -> float:
        submit = self.submitter("busy")
        began = perf_counter()
        row = [submit(seconds) for _ in range(width)]
        for _ in range(steps - 1):
            row = [submit(seconds, *[row[place] for place in peer_tasks.neighbours(i, width)]) for i in range(width)]
        self.wait(row)
        return perf_counter() - began
