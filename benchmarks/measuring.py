"""How a figure is taken: interleaved runs of all sides, medians; and what comes of it, rows."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.meter import Meter, Processes

LESS_IS_BETTER = ("us", "ms", "s", "x ideal", "B")  # how such units begin; of any other more is better


@dataclass(frozen=True)
class Side:
    """One of the things compared. `run` prepares, then enters the meter for what counts."""

    name: str
    run: Callable[[Meter], None]
    figure: Callable[[Meter], float]
    n_tasks: int = 0  # 0: there are no tasks to spread the CPU time over
    processes: Processes | None = None  # whose memory is taken; None: of nobody, and the CPU time of all below this one
    is_peer: bool = False  # warms up by itself in each run; where it fails, the others go on
    size: str = ""  # what was run, where that is less than what Loom ran


@dataclass
class Measured:
    """What the runs of one side gave, in order."""

    name: str
    n_tasks: int = 0
    figures: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_rss_sum_bytes: list[int] = field(default_factory=list)
    others_cores: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    curves: list[list[tuple[float, float]]] = field(default_factory=list)
    size: str = ""
    error: str = ""

    def add(self, figure: float, meter: Meter) -> None:
        self.figures.append(figure)
        self.wall_s.append(meter.wall_s)
        self.cpu_s.append(meter.cpu_s)
        self.others_cores.append(meter.others_cores)
        if meter.peak_bytes:
            self.peak_rss_sum_bytes.append(meter.peak_bytes)
        for name, seconds in meter.parts.items():
            self.parts.setdefault(name, []).append(seconds)
        if meter.curve:
            self.curves.append(meter.curve)

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def cpu_us_per_task(self) -> float | None:
        return statistics.median(self.cpu_s) / self.n_tasks * 1e6 if self.n_tasks and self.cpu_s else None

    @staticmethod
    def from_json(values: dict[str, Any]) -> Measured:
        """Files of earlier versions have fewer fields."""
        return Measured(**{name: value for name, value in values.items() if name in Measured.__dataclass_fields__})


def interleaved(sides: Sequence[Side], repeat: int, what: str = "") -> list[Measured]:
    """Run each once to warm up, then all in turn, `repeat` times; says on stderr how far `what` is."""
    for side in sides:
        if not side.is_peer:
            side.run(Meter(side.processes))
    measured = [Measured(side.name, side.n_tasks, size=side.size) for side in sides]
    for number in range(1, repeat + 1):
        for side, taken in zip(sides, measured, strict=True):
            if taken.error:
                continue
            meter = Meter(side.processes)
            try:
                side.run(meter)
            except Exception as error:
                if not side.is_peer:
                    raise
                taken.error = f"{type(error).__name__}: {error}"
                progress(f"{what}, {side.name}: FAILED: {taken.error}")
                continue
            figure = side.figure(meter)
            taken.add(figure, meter)
            if what:
                progress(f"{what}, run {number} of {repeat}, {side.name}: {figure:,.4g}")
    return measured


def progress(text: str) -> None:
    """On stderr, so that stdout has the table only."""
    print(f"  {text}", file=sys.stderr, flush=True)


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
    """One line of the table, or the error of a workload that failed. `x`: where a plot has it (tasks, bytes)."""

    workload: str
    what: str
    unit: str = ""
    loom: Measured | None = None
    references: list[Measured] = field(default_factory=list)
    peers: list[Measured] = field(default_factory=list)
    target: Target | None = None
    notes: list[str] = field(default_factory=list)
    error: str = ""
    x: float = 0

    @property
    def ratio(self) -> float | None:
        """To the first reference."""
        return self.loom.median / self.references[0].median if self.loom and self.references else None

    @property
    def less_is_better(self) -> bool:
        return self.unit.startswith(LESS_IS_BETTER)

    @property
    def verdict(self) -> str:
        if self.target is None or self.loom is None:
            return ""
        value = self.ratio if self.target.of == "ratio" else self.loom.median
        return "" if value is None else self.target.verdict(value)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Row:
        return Row(
            values["workload"],
            values["what"],
            values["unit"],
            Measured.from_json(values["loom"]) if values["loom"] else None,
            [Measured.from_json(one) for one in values["references"]],
            [Measured.from_json(one) for one in values.get("peers", [])],
            Target(**values["target"]) if values["target"] else None,
            values["notes"],
            values["error"],
            values.get("x", 0),
        )
