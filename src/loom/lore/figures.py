"""Figures that a report states: by group, by pair of workers, over time."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from loom.lore.model import FAILED, Report, Worker

_95_PERCENT = 0.95


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """Of the runs of one group's tasks. Durations in microseconds; median and p95 are 0 where none ran."""

    group: int
    n_runs: int
    median_us: int
    p95_us: int
    sum_us: int
    core_us: int
    size_bytes: int
    n_failures: int


def by_group(report: Report) -> list[GroupFigures]:
    """Groups that ran or failed, those with the longest sum of durations first. O(n log n)."""
    tasks = report.tasks
    durations: dict[int, array[int]] = {}
    core_us: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for group, duration, cpus, size in zip(
        tasks.groups, tasks.durations_us, tasks.cpus, tasks.sizes_bytes, strict=True
    ):
        if group not in durations:
            durations[group] = array("Q")
            core_us[group] = sizes[group] = 0
        durations[group].append(duration)
        core_us[group] += duration * cpus
        sizes[group] += size
    failures: dict[int, int] = {}
    for failure in report.failures:
        failures[failure.group] = failures.get(failure.group, 0) + 1
    figures = []
    for group in {**durations, **failures}:
        ran = sorted(durations.get(group, ()))
        figures.append(
            GroupFigures(
                group=group,
                n_runs=len(ran),
                median_us=ran[len(ran) // 2] if ran else 0,
                p95_us=ran[min(int(len(ran) * _95_PERCENT), len(ran) - 1)] if ran else 0,
                sum_us=sum(ran),
                core_us=core_us.get(group, 0),
                size_bytes=sizes.get(group, 0),
                n_failures=failures.get(group, 0),
            )
        )
    return sorted(figures, key=lambda one: (-one.sum_us, -one.n_runs, one.group))


@dataclass(slots=True)
class Route:
    """What one worker (`source`, or model.UNKNOWN) sent to another."""

    source: int
    target: int
    n_objects: int = 0
    size_bytes: int = 0
    duration_us: int = 0


def by_route(report: Report) -> list[Route]:
    """Pairs of workers between which objects moved, those with most bytes first."""
    routes: dict[tuple[int, int], Route] = {}
    for moved in report.transfers:
        pair = moved.source, moved.target
        route = routes.setdefault(pair, Route(*pair))
        route.n_objects += 1
        route.size_bytes += moved.size_bytes
        route.duration_us += moved.duration_us
    return sorted(routes.values(), key=lambda route: (-route.size_bytes, -route.n_objects))


def busy_by_worker(report: Report) -> list[int]:
    """Time of cores that tasks had, in microseconds."""
    busy_us = [0] * len(report.workers)
    tasks = report.tasks
    for worker, duration, cpus in zip(tasks.workers, tasks.durations_us, tasks.cpus, strict=True):
        busy_us[worker] += duration * cpus
    return busy_us


def there_us(report: Report, worker: Worker) -> tuple[int, int]:
    """From when to when a worker was there within the span; all of it where nothing is known."""
    begin = 0 if worker.joined_us is None else min(max(worker.joined_us, 0), report.span_us)
    end = report.span_us if worker.left_us is None else min(worker.left_us, report.span_us)
    return begin, max(begin, end)


def offered_by_worker(report: Report) -> list[int]:
    """Time of cores that tasks could have had, in microseconds: while the worker was there."""
    spans = [there_us(report, worker) for worker in report.workers]
    return [worker.cpus * (end - begin) for worker, (begin, end) in zip(report.workers, spans, strict=True)]


def cores_there(report: Report, times_us: Sequence[float]) -> list[int]:
    """The cores of the workers that were there at these times, which rise."""
    spans = [(worker.cpus, *there_us(report, worker)) for worker in report.workers]
    steps = [0] * (len(times_us) + 1)
    for cpus, begin, end in spans:
        steps[bisect_left(times_us, begin)] += cpus
        steps[max(bisect_right(times_us, end), bisect_left(times_us, begin))] -= cpus
    return list(accumulate(steps[: len(times_us)]))


def most_cores(report: Report) -> int:
    """The most cores that were there at the same time."""
    spans = [there_us(report, worker) for worker in report.workers]
    return max(cores_there(report, sorted({begin for begin, _ in spans})), default=0)


@dataclass(frozen=True, slots=True)
class Totals:
    """`busy_us`: time of cores that tasks had. `utilisation`: of the cores while they were there; None where none were.

    `n_tasks` counts tasks, not runs: one that ran twice is one. `n_cores`: the most at the same time.
    """

    n_tasks: int
    n_runs: int
    n_cores: int
    n_failed: int
    busy_us: int
    utilisation: float | None


def totals(report: Report) -> Totals:
    tasks = report.tasks
    busy_us = sum(busy_by_worker(report))
    offered_us = sum(offered_by_worker(report))
    return Totals(
        n_tasks=len(set(tasks.ids)),
        n_runs=len(tasks),
        n_cores=most_cores(report),
        n_failed=max(len(report.failures), tasks.outcomes.count(FAILED)),
        busy_us=busy_us,
        utilisation=min(busy_us / offered_us, 1.0) if offered_us else None,
    )


def cores_in_use(report: Report, n_bins: int) -> list[float]:
    """Cores that tasks had, the mean over each of so many equal stretches of the span. O(tasks + n_bins).

    A run adds its parts of the first and the last stretch that it touches, and to those between through differences.
    """
    width = report.span_us / n_bins if n_bins else 0
    if not width:
        return [0.0] * n_bins
    parts = [0.0] * (n_bins + 1)
    steps = [0.0] * (n_bins + 1)
    tasks = report.tasks
    for begun, duration, cpus in zip(tasks.begun_us, tasks.durations_us, tasks.cpus, strict=True):
        if not cpus or not duration:
            continue
        end = begun + duration
        first, last = min(int(begun / width), n_bins - 1), min(int(end / width), n_bins - 1)
        if first == last:
            parts[first] += cpus * duration / width
        else:
            parts[first] += cpus * (first + 1 - begun / width)
            parts[last] += cpus * (end / width - last)
            steps[first + 1] += cpus
            steps[last] -= cpus
    return [part + whole for part, whole in zip(parts[:n_bins], accumulate(steps[:n_bins]), strict=True)]


def processors_in_use(at_us: Sequence[int], cpu_us: Sequence[int]) -> list[float]:
    """Processors that a worker really used, between each sample and the one before; 0 at the first."""
    used = [0.0]
    for i in range(1, len(at_us)):
        passed = at_us[i] - at_us[i - 1]
        used.append(max(cpu_us[i] - cpu_us[i - 1], 0) / passed if passed > 0 else used[-1])
    return used[: len(at_us)]


def total_over_time(
    series: Iterable[tuple[Sequence[int], Sequence[float], float]], times_us: Sequence[float]
) -> list[float]:
    """The sum of several series (times, values, end) at these times, which rise; a value holds until the next one, the
    last one until the end.
    """
    totals = [0.0] * len(times_us)
    for at_us, values, end in series:
        for position, time in enumerate(times_us):
            if time > end:
                break
            known = bisect_right(at_us, time)
            if known:
                totals[position] += values[known - 1]
    return totals
