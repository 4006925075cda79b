"""Pictures of results: time per task by number of tasks, METG curves, throughput by size of object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from benchmarks.measuring import Measured, Row
from benchmarks.metg import Curve, crossing, median_curve

_NAMES = {"loom": "Loom", "dask": "Dask", "ray": "Ray", "parsl": "Parsl", "hyperqueue": "HyperQueue"}
# Colours that people with any kind of colour vision tell apart (Okabe and Ito), and a mark each.
_STYLES = {
    "loom": ("#0072b2", "o"),
    "dask": ("#d55e00", "s"),
    "ray": ("#009e73", "^"),
    "parsl": ("#cc79a7", "D"),
    "hyperqueue": ("#777777", "v"),
}
_WAYS = {
    "Wsizeh": ("from worker to worker, same host", "#0072b2", "o"),
    "Wsizeg": ("to the client", "#d55e00", "s"),
    "Wsizep": ("from the client to a task", "#009e73", "^"),
}
_SIZE_INCHES = (6.4, 3.8)
_SETTINGS: Any = {
    "svg.hashsalt": "loom",  # the same picture from the same figures
    "svg.fonttype": "none",  # text stays text: smaller, and can be searched
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}

Points = dict[str, Curve]
"""By name of the engine."""


def plot(rows: Sequence[Row], directory: Path, kind: str = "svg") -> list[Path]:
    """Draw what there are rows for; returns the files written."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, points, draw in (
        ("scaling", scaling(rows), _draw_scaling),
        ("metg", metg_curves(rows), _draw_metg),
        ("object-sizes", object_sizes(rows), _draw_sizes),
    ):
        if points:
            with matplotlib.rc_context(_SETTINGS):
                figure, axes = plt.subplots(figsize=_SIZE_INCHES, layout="constrained")
                draw(axes, points)
                path = directory / f"{name}.{kind}"
                # without a date, which would make it another file each time
                figure.savefig(path, metadata={"Date": None} if kind == "svg" else None, dpi=110)
                plt.close(figure)
            written.append(path)
    return written


def scaling(rows: Sequence[Row]) -> Points:
    """Microseconds a task by number of tasks, of W1 (which has rates) and Wscale."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.workload not in ("W1", "Wscale"):
            continue
        for side in _sides(row):
            if side.figures:
                us = side.median if row.workload == "Wscale" else 1e6 / side.median
                n = side.n_tasks or row.x
                if row.workload == "Wscale" or n not in found.get(side.name, {}):
                    found.setdefault(side.name, {})[n] = us
    return {name: sorted(points.items()) for name, points in found.items()}


def metg_curves(rows: Sequence[Row]) -> Points:
    return {
        side.name: median_curve(side.curves)
        for row in rows
        if row.workload == "W5b"
        for side in _sides(row)
        if side.curves
    }


def object_sizes(rows: Sequence[Row]) -> Points:
    """GB/s by bytes, by workload."""
    found: Points = {}
    for row in rows:
        if row.workload in _WAYS and row.loom is not None:
            found.setdefault(row.workload, []).append((row.x, row.loom.median))
    return {name: sorted(points) for name, points in found.items()}


def _sides(row: Row) -> list[Measured]:
    return [side for side in (row.loom, *row.peers) if side is not None]


def _draw_scaling(axes: Axes, points: Points) -> None:
    _lines(axes, points)
    axes.set(xscale="log", yscale="log", xlabel="tasks in the bag", ylabel="time per task")
    axes.set_ylim(bottom=10 ** math.floor(math.log10(min(us for curve in points.values() for _, us in curve))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(_time))
    axes.set_title("Bag of Python tasks that do nothing, two workers", fontsize=11, loc="left")
    _finish(axes)


def _draw_metg(axes: Axes, points: Points) -> None:
    axes.axhline(0.5, color="#444444", linewidth=0.8, linestyle="--")
    _lines(axes, points)
    axes.set(xscale="log", ylim=(0, 1), xlabel="CPU time of one task", ylabel="efficiency on two workers")
    axes.xaxis.set_major_formatter(FuncFormatter(_seconds))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for name, curve in points.items():
        if curve[-1][1] >= 0.5:
            axes.plot([crossing(curve)], [0.5], "|", color=_STYLES[name][0], markersize=14, markeredgewidth=1.6)
    axes.set_title("Stencil, 16 wide: efficiency by size of task (at 50 %: METG)", fontsize=11, loc="left")
    _finish(axes)


def _draw_sizes(axes: Axes, points: Points) -> None:
    for name, curve in points.items():
        label, colour, mark = _WAYS[name]
        axes.plot([x for x, _ in curve], [y for _, y in curve], color=colour, marker=mark, label=label)
    axes.set(xscale="log", yscale="log", xlabel="size of the object", ylabel="throughput")
    axes.xaxis.set_major_locator(FixedLocator([1024 * 16**step for step in range(5)]))  # all would be too close
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_size))
    axes.yaxis.set_major_formatter(FuncFormatter(_rate))
    axes.set_title("One object at a time, until it is where it is wanted", fontsize=11, loc="left")
    _finish(axes, inside=True)  # throughput grows with size: the corner at the right is empty


def _lines(axes: Axes, points: Points) -> None:
    for name in _STYLES:
        if name in points:
            colour, mark = _STYLES[name]
            curve = points[name]
            axes.plot(
                [x for x, _ in curve], [y for _, y in curve], color=colour, marker=mark, label=_NAMES[name], zorder=3
            )


def _finish(axes: Axes, inside: bool = False) -> None:
    """A legend beside the curves, where it hides nothing, or in their lower right corner."""
    axes.grid(which="minor", visible=False)
    if inside:
        axes.legend(loc="lower right", frameon=False)
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _time(us: float, _: object = None) -> str:
    return f"{us / 1000:g} ms" if us >= 1000 else f"{us:g} µs"


def _seconds(seconds: float, _: object = None) -> str:
    return _time(round(seconds * 1e6, 3))


def _size(size_bytes: float, _: object = None) -> str:
    return f"{size_bytes / 2**20:g} MiB" if size_bytes >= 2**20 else f"{size_bytes / 2**10:g} KiB"


def _rate(gb_per_s: float, _: object = None) -> str:
    return f"{gb_per_s:g} GB/s" if gb_per_s >= 1 else f"{gb_per_s * 1e3:g} MB/s"
