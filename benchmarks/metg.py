"""W5b: the smallest task at which a stencil is half efficient, METG(50 %)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Final

from benchmarks import bodies, graphs
from benchmarks.bench import Bench
from benchmarks.measuring import Side, Target
from benchmarks.meter import Meter
from benchmarks.peer_runs import Asked, adapter
from benchmarks.references import N_WORKERS
from loom.client import Client, Task, tasks

Curve = list[tuple[float, float]]
"""Seconds of CPU time a task, and the efficiency then; from small tasks to large ones."""

_WIDTH = 16
_GRID_S: Final[list[float]] = [10e-6 * 2**k for k in range(16)]  # 10 us to 0.33 s
_IDEAL_S = 1.5  # how long a point takes at full efficiency, where the number of steps allows
_STEPS = (30, 500)
_LITTLE, _ENOUGH = 0.4, 0.7  # a curve begins below this, and ends above that
_FIRST = {"loom": 150e-6, "dask": 2.5e-3, "ray": 1.3e-3, "parsl": 2.5e-3, "hyperqueue": 40e-3}  # where to look first
_SLOW_STEPS = {"hyperqueue": (8, 16)}  # 44 tasks a second

busy = tasks.py_task(n_direct_args=1)(bodies.busy)


def w5b(bench: Bench) -> None:
    with bench.loom() as cluster:
        bench.compare(
            f"METG(50 %): smallest task at which a stencil of width {_WIDTH} is half efficient",
            "ms",
            Side("loom", partial(_loom_curve, cluster.client, bench.options.scale), _metg_ms),
            target=Target(0.1, "at most", "figure"),
            asked=_Curves("stencil", dict.fromkeys(_FIRST, 1), lambda _: {}, lambda _, meter: _metg_ms(meter)),
        )


def _metg_ms(meter: Meter) -> float:
    return meter.parts["metg_s"] * 1e3


def _loom_curve(client: Client, scale: float, meter: Meter) -> None:
    def seconds(task_s: float, steps: int) -> float:
        point = Meter()
        graphs.submit(client, partial(busy_stencil, steps, task_s), point)
        return point.wall_s

    with meter:
        curve = efficiencies(seconds, _FIRST["loom"], scale)
    _take(curve, meter)


def busy_stencil(steps: int, task_s: float) -> list[Task]:
    return graphs.stencil(steps, lambda: busy(task_s), lambda inputs: busy(task_s, *inputs))


class _Curves(Asked):
    """A whole search is one run of a peer."""

    def _run(self, peer: str, size: int, meter: Meter) -> None:
        with adapter(peer) as running:
            running.start()
            running.run("bag", {"n": 200})

            def seconds(task_s: float, steps: int) -> float:
                return running.run("stencil", {"width": _WIDTH, "steps": steps, "seconds": task_s})

            with meter.of(running.processes):
                curve = efficiencies(seconds, _FIRST[peer], 1.0, _SLOW_STEPS.get(peer, _STEPS))
        _take(curve, meter)


def _take(curve: Curve, meter: Meter) -> None:
    meter.curve = curve
    meter.parts["metg_s"] = crossing(curve)


def efficiencies(
    seconds: Callable[[float, int], float], first_s: float, scale: float, steps: tuple[int, int] = _STEPS
) -> Curve:
    """Try sizes of a fixed grid from `first_s` down to where it is clearly less than half efficient, and up to where it
    is clearly more. `seconds` is how long a stencil of such tasks and so many steps takes.
    """
    found: dict[int, float] = {}

    def try_size(place: int) -> float:
        task_s = _GRID_S[place]
        n_steps = max(2, round(scale * min(steps[1], max(steps[0], _IDEAL_S * N_WORKERS / (_WIDTH * task_s)))))
        found[place] = task_s * n_steps * _WIDTH / N_WORKERS / seconds(task_s, n_steps)
        return found[place]

    start = min(range(len(_GRID_S)), key=lambda place: abs(math.log(_GRID_S[place] / first_s)))
    place = start
    while try_size(place) >= _LITTLE and place > 0:
        place -= 1
    place = start
    while max(found.values()) < _ENOUGH and place + 1 < len(_GRID_S):
        place += 1
        try_size(place)
    return [(_GRID_S[place], found[place]) for place in sorted(found)]


def crossing(curve: Curve) -> float:
    """The size at which the curve rises above a half: linear in the logarithm of the size between its neighbours.

    At an end of the curve where it does not cross; ValueError where it is below a half throughout.
    """
    if curve[-1][1] < 0.5:
        raise ValueError(f"less than half efficient even with tasks of {curve[-1][0] * 1e3:g} ms")
    above = len(curve) - 1
    while above and curve[above - 1][1] >= 0.5:
        above -= 1
    if not above:
        return curve[0][0]
    (low_s, low), (high_s, high) = curve[above - 1], curve[above]
    return low_s * math.exp(math.log(high_s / low_s) * (0.5 - low) / (high - low))


def median_curve(curves: list[Curve]) -> Curve:
    """Of the points that most runs have."""
    sizes = sorted({size for curve in curves for size, _ in curve})
    values = {size: [value for curve in curves for at, value in curve if at == size] for size in sizes}
    return [(size, median(found)) for size, found in values.items() if 2 * len(found) > len(curves)]
