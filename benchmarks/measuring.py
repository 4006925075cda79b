"""How a figure is taken: wall time, CPU of all processes, interleaved runs, medians."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

import psutil


class Meter:
    """Measures a `with` block: wall time, CPU time of this process and all below it, CPU that everybody else used.

    CPU times come in ticks of the kernel, usually 10 ms. Entered again it starts anew.
    """

    def __init__(self) -> None:
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self.others_cores = 0.0
        self.parts: dict[str, float] = {}

    def __enter__(self) -> Meter:
        gc.collect()  # what earlier runs have left is not this one's
        self.parts = {}
        self._machine_s = _machine_cpu_s()
        self._tree_s = _tree_cpu_s()
        self._began = self._last = time.perf_counter()
        return self

    def part(self, name: str) -> None:
        """What came since the last part, or the beginning, goes under this name, in seconds."""
        now = time.perf_counter()
        self.parts[name] = now - self._last
        self._last = now

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.wall_s = time.perf_counter() - self._began
        self.cpu_s = max(0.0, _tree_cpu_s() - self._tree_s)
        self.others_cores = max(0.0, _machine_cpu_s() - self._machine_s - self.cpu_s) / self.wall_s


def _tree_cpu_s() -> float:
    """Of this process and its descendants, those that have ended and were waited for included."""
    total = sum(os.times()[:4])
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it has just ended
        total += times.user + times.system + times.children_user + times.children_system
    return float(total)


def _machine_cpu_s() -> float:
    """Of the whole machine; what a hypervisor took away counts as used."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


@dataclass(frozen=True)
class Side:
    """One of the things compared. `run` prepares, then enters the meter for what counts."""

    name: str
    run: Callable[[Meter], None]
    figure: Callable[[Meter], float]
    n_tasks: int = 0  # 0: there are no tasks to spread the CPU time over


@dataclass
class Measured:
    """What the runs of one side gave, in order."""

    name: str
    n_tasks: int = 0
    figures: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    others_cores: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figure: float, meter: Meter) -> None:
        self.figures.append(figure)
        self.cpu_s.append(meter.cpu_s)
        self.others_cores.append(meter.others_cores)
        for name, seconds in meter.parts.items():
            self.parts.setdefault(name, []).append(seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def cpu_us_per_task(self) -> float | None:
        return statistics.median(self.cpu_s) / self.n_tasks * 1e6 if self.n_tasks else None


def interleaved(sides: Sequence[Side], repeat: int) -> list[Measured]:
    """Run each once to warm up, then all in turn, `repeat` times."""
    for side in sides:
        side.run(Meter())
    measured = [Measured(side.name, side.n_tasks) for side in sides]
    for _ in range(repeat):
        for side, taken in zip(sides, measured, strict=True):
            meter = Meter()
            side.run(meter)
            taken.add(side.figure(meter), meter)
    return measured


@dataclass(frozen=True)
class Target:
    """A bound on the ratio Loom / stand-in, or on Loom's own figure; `first` is the one to reach first."""

    bound: float
    sense: Literal["at least", "at most"]
    of: Literal["ratio", "figure"] = "ratio"
    first: float | None = None

    def verdict(self, value: float) -> str:
        if self._holds(value, self.bound):
            return "yes"
        if self.first is not None and self._holds(value, self.first):
            return "first"
        return "no"

    def _holds(self, value: float, bound: float) -> bool:
        return value >= bound if self.sense == "at least" else value <= bound


@dataclass
class Row:
    """One line of the table, or the error of a workload that failed."""

    workload: str
    what: str
    unit: str = ""
    loom: Measured | None = None
    references: list[Measured] = field(default_factory=list)
    target: Target | None = None
    notes: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """To the first reference."""
        return self.loom.median / self.references[0].median if self.loom and self.references else None

    @property
    def verdict(self) -> str:
        if self.target is None or self.loom is None:
            return ""
        value = self.ratio if self.target.of == "ratio" else self.loom.median
        return "" if value is None else self.target.verdict(value)
