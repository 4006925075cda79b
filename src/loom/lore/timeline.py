"""The timeline as rectangles: a row for each core of each worker, and one for what runs in a worker's loop.

So many tasks that a page would be slow are merged: of those narrower than a stretch of time, all of one row, stretch
and group become one rectangle as wide as they were long together. With very many groups, those of a stretch too.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from loom.lore.model import Report
from loom.trace.records import LOOP_LANE

_SIDE_BY_SIDE: Final = 6  # tasks of a loop that are drawn beside each other, in parts of its row
_GAP: Final = 0.08  # above and below a rectangle, in rows
_MIN_STRETCHES: Final = 100
_MAX_STRETCHES: Final = 4000
_MAX_GROUPS: Final = 2  # of one row and stretch, on average; beyond, only the one with most time is drawn


@dataclass(frozen=True, slots=True)
class Row:
    """`core` is None for what ran in the worker's loop or without a core of its own."""

    worker: int
    core: int | None


@dataclass(slots=True)
class Rectangles:
    """Columns; `tasks` are rows of the report's tasks, of merged ones the first. Times in us, heights in rows."""

    left_us: array[float] = field(default_factory=lambda: array("d"))
    right_us: array[float] = field(default_factory=lambda: array("d"))
    top: array[float] = field(default_factory=lambda: array("f"))
    bottom: array[float] = field(default_factory=lambda: array("f"))
    rows: array[int] = field(default_factory=lambda: array("I"))
    tasks: array[int] = field(default_factory=lambda: array("i"))
    counts: array[int] = field(default_factory=lambda: array("i"))

    def __len__(self) -> int:
        return len(self.tasks)

    def add(self, left: float, right: float, top: float, bottom: float, row: int, task: int, count: int) -> None:
        self.left_us.append(left)
        self.right_us.append(right)
        self.top.append(top)
        self.bottom.append(bottom)
        self.rows.append(row)
        self.tasks.append(task)
        self.counts.append(count)


@dataclass(slots=True)
class Timeline:
    """`stretch_us`: tasks shorter than that were merged; 0 where every task has a rectangle of its own."""

    rows: list[Row]
    rectangles: Rectangles
    stretch_us: float


def rows_of(report: Report) -> list[Row]:
    """From the top: workers by name, each with its cores and, where it was used, its loop."""
    tasks = report.tasks
    used: dict[int, set[int]] = {}
    for worker, lane in set(zip(tasks.workers, tasks.lanes, strict=True)):
        used.setdefault(worker, set()).add(lane)
    rows = []
    for worker in sorted(range(len(report.workers)), key=lambda i: _natural(report.workers[i].name)):
        lanes = used.get(worker, set())
        beyond = sorted(lane for lane in lanes if report.workers[worker].cpus <= lane < LOOP_LANE)
        rows += [Row(worker, core) for core in (*range(report.workers[worker].cpus), *beyond)]
        if LOOP_LANE in lanes:
            rows.append(Row(worker, None))
    return rows


def _natural(text: str) -> list[tuple[int, int, str]]:
    """A key that puts node9 before node10."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for char in text + "\0":
        if char in "0123456789":
            digits += char
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, char))
    return parts


def timeline(report: Report, max_rectangles: int) -> Timeline:
    """Every task's rectangle, or where these are more than wanted, merged ones. O(n log n)."""
    rows = rows_of(report)
    tasks = report.tasks
    if len(tasks) <= max_rectangles:
        heights = _Heights(report, rows, side_by_side=True)
        rectangles = Rectangles()
        for task, (begun, duration) in enumerate(zip(tasks.begun_us, tasks.durations_us, strict=True)):
            row, top, bottom = heights.of(task)
            rectangles.add(begun, begun + max(duration, 1), top, bottom, row, task, 1)
        return Timeline(rows, rectangles, 0)
    n_stretches = min(max(max_rectangles // max(len(rows), 1), _MIN_STRETCHES), _MAX_STRETCHES)
    stretch_us = max(report.span_us / n_stretches, 1.0)
    return Timeline(
        rows, _merged(report, _Heights(report, rows, side_by_side=False), stretch_us, max_rectangles), stretch_us
    )


class _Heights:
    """Where in its row each task stands. `side_by_side`: what overlaps in a loop gets parts of the row."""

    def __init__(self, report: Report, rows: Sequence[Row], side_by_side: bool) -> None:
        self._report = report
        self._row_at = {
            (row.worker, LOOP_LANE if row.core is None else row.core): number for number, row in enumerate(rows)
        }
        self._places: dict[int, int] = {}  # of tasks in loops
        self._packers: dict[int, Packer] = {}
        if side_by_side:
            tasks = report.tasks
            for task, (worker, lane) in enumerate(zip(tasks.workers, tasks.lanes, strict=True)):
                if lane == LOOP_LANE:
                    begun = tasks.begun_us[task]
                    packer = self._packers.setdefault(worker, Packer())
                    self._places[task] = packer.place(begun, begun + tasks.durations_us[task])

    def row(self, task: int) -> int:
        tasks = self._report.tasks
        return self._row_at[tasks.workers[task], tasks.lanes[task]]

    def of(self, task: int) -> tuple[int, float, float]:
        """Row, top, bottom. A task of several cores covers as many rows, from its first core on."""
        tasks = self._report.tasks
        row = self.row(task)
        worker, lane = tasks.workers[task], tasks.lanes[task]
        if lane != LOOP_LANE:
            below = self._report.workers[worker].cpus - lane  # as many rows as its worker has from here
            return row, row + _GAP, row + max(min(tasks.cpus[task], below), 1) - _GAP
        n_parts = min(self._packers[worker].n_places, _SIDE_BY_SIDE)
        part = self._places[task] % n_parts
        height = (1 - 2 * _GAP) / n_parts
        return row, row + _GAP + part * height, row + _GAP + (part + 1) * height


class Packer:
    """Puts stretches of time, given by rising beginnings, into as few places as there are overlaps."""

    def __init__(self) -> None:
        self.n_places = 0
        self._busy: list[tuple[float, int]] = []  # a heap: end, place
        self._free: list[int] = []  # a heap of places

    def place(self, begun: float, end: float) -> int:
        while self._busy and self._busy[0][0] <= begun:
            heappush(self._free, heappop(self._busy)[1])
        if self._free:
            place = heappop(self._free)
        else:
            place = self.n_places
            self.n_places += 1
        heappush(self._busy, (end, place))
        return place


def pack(spans: Iterable[tuple[int, int]]) -> list[int]:
    """A place for each stretch of time, so that those of one place do not overlap."""
    packer = Packer()
    return [packer.place(begun, end) for begun, end in spans]


def _merged(report: Report, heights: _Heights, stretch_us: float, max_rectangles: int) -> Rectangles:
    tasks = report.tasks
    rectangles = Rectangles()
    narrow: dict[tuple[int, int], dict[int, list[int]]] = {}  # row, stretch -> group -> [task, count, time]
    for task, (begun, duration) in enumerate(zip(tasks.begun_us, tasks.durations_us, strict=True)):
        if duration >= stretch_us and tasks.lanes[task] != LOOP_LANE:
            row, top, bottom = heights.of(task)
            rectangles.add(begun, begun + max(duration, 1), top, bottom, row, task, 1)
            continue
        groups = narrow.setdefault((heights.row(task), int(begun / stretch_us)), {})
        known = groups.get(tasks.groups[task])
        if known is None:
            groups[tasks.groups[task]] = [task, 1, duration]
        else:
            known[1] += 1
            known[2] += duration
    only_largest = sum(map(len, narrow.values())) > _MAX_GROUPS * max_rectangles
    for (row, stretch), groups in narrow.items():
        left = max(stretch * stretch_us, tasks.begun_us[min(first for first, _, _ in groups.values())])
        if only_largest:
            largest = max(groups, key=lambda group: groups[group][2])
            whole = [groups[largest][0], sum(one[1] for one in groups.values()), sum(one[2] for one in groups.values())]
            groups = {largest: whole}
        # in a loop several may overlap: together they are not drawn wider than the stretch
        together = sum(time for _, _, time in groups.values())
        scale = min(1.0, stretch_us / together) if together else 1.0
        for first, count, time in groups.values():
            duration = tasks.durations_us[first]
            right = left + max(duration if count == 1 and len(groups) == 1 else time * scale, 1)
            rectangles.add(left, right, row + _GAP, row + 1 - _GAP, row, first, count)
            left = right
    return rectangles
