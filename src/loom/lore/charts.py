"""The charts of a report that answer to the mouse. The only module that needs Bokeh.

Columns travel as typed arrays, texts once in a table of their own; what a tooltip says is put together by report.js.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.models import (
    AdaptiveTicker,
    BoxZoomTool,
    ColumnDataSource,
    CustomJSHover,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    NumeralTickFormatter,
    PanTool,
    Range1d,
    ResetTool,
    WheelZoomTool,
)
from bokeh.models.annotations import Legend, Title
from bokeh.plotting import figure
from bokeh.resources import Resources

from loom.lore.colours import FAILURE
from loom.lore.curves import Curves
from loom.lore.html import Html, data, data_text
from loom.lore.model import FAILED, Report
from loom.lore.timeline import Timeline, timeline

MAX_RECTANGLES: Final = 100_000  # painted in some two seconds

_MAX_LEGEND: Final = 40  # groups with an entry of their own
_OTHERS: Final = "others"
_MAX_NAMED_ROWS: Final = 45  # above that only workers are named beside the timeline
_MAX_NAMED_WORKERS: Final = 45
_MAX_MEMORY_CURVES: Final = 8  # workers with a curve of their own
_INK: Final = "#1d2733"
_FAINT: Final = "#5d6b7a"
_LINE: Final = "#dfe4ea"
_USED: Final = "#3b75c4"
_FORMATS: Final = {
    "name": "name",
    "id": "id",
    "row": "worker",
    "core": "core",
    "left": "start",
    "duration": "duration",
    "size": "size",
    "count": "count",
}


@dataclass(frozen=True, slots=True)
class Charts:
    """`library` and `data` belong into the page's head and behind its body. `legend` as sections.legend takes it."""

    library: Html
    data: Html
    legend: list[tuple[str, str, str]]
    stretch_us: float


def charts(report: Report, curves: Curves, groups: Sequence[int], colours: Sequence[str], n_cores: int) -> Charts:
    """`groups`: in the order in which a legend names them."""
    found = timeline(report, MAX_RECTANGLES)
    seconds = max(report.span_us, 1) / 1e6
    x_range = Range1d(start=-0.01 * seconds, end=1.01 * seconds, name="time", bounds=(-0.2 * seconds, 1.2 * seconds))
    columns = _columns(report, found)
    used, columns["name"] = numpy.unique(columns["name"], return_inverse=True)  # the page has no other texts
    columns["name"] = columns["name"].astype("i4")
    tasks, legend = _timeline_chart(report, found, columns, x_range, groups, colours)
    figures = [tasks, _cores_chart(curves, x_range, n_cores)]
    if any(curves.memory):
        figures.append(_memory_chart(report, curves, x_range))
    item = json_item(column(*figures, sizing_mode="stretch_width"), ID("charts"))
    texts = [*report.labels, *report.symbols]
    names = {
        "names": [texts[number] for number in used],
        "workers": [worker.name for worker in report.workers],
        "rows": [[row.worker, row.core] for row in found.rows],
        "sessions": len({task >> 40 for task in report.tasks.ids}),
    }
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return Charts(
        library=Html(library + "\n"),
        data=Html(data("loom-names", names) + data_text("loom-charts", json.dumps(item, separators=(",", ":")))),
        legend=legend,
        stretch_us=found.stretch_us,
    )


# -- The timeline -----------------------------------------------------------------------------------------------------


def _timeline_chart(
    report: Report,
    found: Timeline,
    columns: dict[str, Any],
    x_range: Range1d,
    groups: Sequence[int],
    colours: Sequence[str],
) -> tuple[figure, list[tuple[str, str, str]]]:
    n_rows = len(found.rows)
    y_range = Range1d(start=max(n_rows, 1), end=0, name="rows", bounds=(0, max(n_rows, 1)))
    plot = _figure("Tasks by worker and core", min(max(22 * n_rows + 120, 200), 930), x_range, y_range)
    _name_rows(plot, report, found)
    legend = _add_tasks(plot, report, columns, groups, colours)
    tasks = [renderer for renderer in plot.renderers if (renderer.name or "").startswith("tasks")]
    hover = _hover(tasks, bool((columns["cpus"] > 1).any()), merged=bool(found.stretch_us))
    wheel = WheelZoomTool(dimensions="width", name="wheel")
    box = BoxZoomTool(dimensions="both" if n_rows > 8 else "width")
    pan = PanTool(dimensions="both" if n_rows > _MAX_NAMED_ROWS else "width")
    plot.add_tools(pan, wheel, box, ResetTool(), hover)
    plot.toolbar.active_drag, plot.toolbar.active_scroll = pan, wheel
    return plot, legend


def _name_rows(plot: figure, report: Report, found: Timeline) -> None:
    """The cores beside their rows, each worker's name in the middle of its own, lines between workers."""
    blocks = []
    first = 0
    for worker, rows in groupby(row.worker for row in found.rows):
        end = first + len(list(rows))
        blocks.append((worker, first, end))
        first = end
    names: dict[float | str, Any] = {}
    several = len(blocks) > 1
    if len(found.rows) <= _MAX_NAMED_ROWS:
        for number, row in enumerate(found.rows):
            core = "loop" if row.core is None else f"core {row.core}"
            name = _shortened(report.workers[row.worker].name)
            names[number + 0.5] = f"{name} \N{MIDDLE DOT} {core}" if several else core
    else:
        every = -(-len(blocks) // _MAX_NAMED_WORKERS)
        for worker, first, end in blocks[::every]:
            names[(first + end) / 2] = _shortened(report.workers[worker].name)
    plot.yaxis.ticker = FixedTicker(ticks=[float(place) for place in names])
    plot.yaxis.major_label_overrides = names
    plot.yaxis.major_tick_line_color = None
    plot.ygrid.grid_line_color = None
    lines = [first for _, first, _ in blocks[1:]]
    if lines:
        plot.hspan(y=lines, line_color="#aab4bf", line_width=1)


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:10]}\N{HORIZONTAL ELLIPSIS}{name[-13:]}"


def _add_tasks(
    plot: figure, report: Report, columns: dict[str, Any], groups: Sequence[int], colours: Sequence[str]
) -> list[tuple[str, str, str]]:
    """A renderer for each group, so that the legend can hide it; beyond so many groups one for all others."""
    group_of = numpy.frombuffer(report.tasks.groups, "u4")[columns["task"]] if columns["task"].size else columns["task"]
    own = groups[:_MAX_LEGEND]
    legend = []
    for group in own:
        chosen = group_of == group
        if chosen.any():
            name = f"tasks-{group}"
            _add_quads(plot, {key: values[chosen] for key, values in columns.items()}, colours[group], name)
            legend.append((colours[group], report.groups[group], name))
    others = ~numpy.isin(group_of, own)
    if others.any():
        chosen_columns: dict[str, Any] = {key: values[others] for key, values in columns.items()}
        shades = numpy.array([_rgba(one) for one in colours], "u4")
        chosen_columns["colour"] = shades[group_of[others]]
        _add_quads(plot, chosen_columns, "colour", f"tasks-{_OTHERS}")
        legend.append(("#b4bcc6", f"{len(groups) - len(own):,} other labels", f"tasks-{_OTHERS}"))
    failed = (columns["outcome"] == FAILED) & (columns["count"] == 1)
    if failed.any():
        edges = {key: columns[key][failed] for key in ("left", "right", "top", "bottom")}
        source = ColumnDataSource(edges)
        frame = plot.quad("left", "right", "top", "bottom", source=source, name="failed")
        frame.glyph.update(fill_alpha=0, line_color=FAILURE, line_width=2)
        legend.append((FAILURE, "failed (red frame)", "failed"))
    return legend


def _columns(report: Report, found: Timeline) -> dict[str, Any]:
    """A row for each rectangle; times in seconds. `name`: the number of its label; symbols are numbered behind them."""
    tasks, rectangles = report.tasks, found.rectangles
    rows = numpy.frombuffer(rectangles.tasks, "i4") if rectangles.tasks else numpy.zeros(0, "i4")
    labels = _view(tasks.labels, "u4")[rows]
    symbols = _view(tasks.symbols, "u4")[rows]
    counts, durations = _view(rectangles.counts, "i4"), _view(tasks.durations_us, "u8")[rows] / 1e6
    left, right = _view(rectangles.left_us, "f8") / 1e6, _view(rectangles.right_us, "f8") / 1e6
    return {
        "left": left,
        "right": right,
        "top": _view(rectangles.top, "f4"),
        "bottom": _view(rectangles.bottom, "f4"),
        "row": _view(rectangles.rows, "u4"),
        "duration": numpy.where(counts == 1, durations, right - left).astype("f4"),
        "name": numpy.where(labels > 0, labels, symbols + len(report.labels)).astype("i4"),
        "id": _view(tasks.ids, "u8")[rows].astype("f8"),
        "size": _view(tasks.sizes_bytes, "u8")[rows].astype("f4"),
        "outcome": _view(tasks.outcomes, "u1")[rows],
        "count": counts,
        "cpus": _view(tasks.cpus, "u4")[rows],
        "task": rows,
    }


def _view(column: array[Any], kind: str) -> Any:
    return numpy.frombuffer(column, kind) if column else numpy.zeros(0, kind)


def _add_quads(plot: figure, columns: dict[str, Any], fill: str, name: str) -> None:
    sent = {key: values for key, values in columns.items() if key not in ("task", "outcome")}
    if (columns["count"] == 1).all():
        del sent["count"]
    source = ColumnDataSource(sent)
    edges = ("left", "right", "top", "bottom")
    plot.quad(*edges, source=source, fill_color=fill, line_color=None, hover_line_color=_INK, name=name)


def _rgba(colour: str) -> int:
    """`#rrggbb` as Bokeh takes it in arrays."""
    return int(colour[1:], 16) << 8 | 0xFF


def _hover(renderers: Sequence[Any], several_cores: bool, merged: bool) -> HoverTool:
    lines = [
        ("task", "@name{custom}"),
        ("id", "@id{custom}"),
        ("worker", "@row{custom}"),
        ("first core" if several_cores else "core", "@row{core}"),
        ("began at", "@left{custom}"),
        ("took", "@duration{custom}"),
        ("result", "@size{custom}"),
    ]
    if several_cores:
        lines.insert(4, ("cores", "@cpus"))
    if merged:
        lines.append(("tasks here", "@count{custom}"))
    formatters: dict[str, Any] = {
        f"@{key}": CustomJSHover(code=f"return loom.formats.{name}(value)")
        for key, name in _FORMATS.items()
        if key != "core"
    }
    formatters["@row"] = CustomJSHover(
        code="return format === 'core' ? loom.formats.core(value) : loom.formats.worker(value)"
    )
    return HoverTool(
        renderers=list(renderers),
        tooltips=lines,
        formatters=formatters,
        point_policy="follow_mouse",
        name="hover",
        visible=False,
    )


# -- Curves -----------------------------------------------------------------------------------------------------------


def _cores_chart(curves: Curves, x_range: Range1d, n_cores: int) -> figure:
    plot = _figure("Cores in use", 220, x_range, Range1d(start=0, end=max(n_cores, 1) * 1.08))
    entries: list[tuple[str, list[Any]]] = []
    if curves.cores:
        edges = numpy.array(curves.bins_us) / 1e6
        x = numpy.repeat(edges, 2)[1:-1]
        y = numpy.repeat(numpy.array(curves.cores), 2)
        source = ColumnDataSource({"x": x, "y": y.astype("f4"), "zero": numpy.zeros(x.size, "f4")})
        area = plot.varea("x", "zero", "y", source=source, fill_color=_USED, fill_alpha=0.35)
        line = plot.line("x", "y", source=source, line_color=_USED)
        entries.append(("cores that tasks had", [area, line]))
    if any(curves.processors):
        x, y = numpy.array(curves.times_us) / 1e6, numpy.array(curves.processors, "f4")
        measured = plot.line(x, y, line_color="#c9463d", line_width=1.5)
        entries.append(("processors really used, all processes of the workers", [measured]))
    if n_cores:
        times, there = numpy.array(curves.times_us) / 1e6, numpy.array(curves.cores_there, "i4")
        steps = plot.step(times, there, mode="after", line_color=_FAINT, line_dash="dashed")
        entries.append(("cores there", [steps]))
    _finish_curves(plot, entries)
    return plot


def _memory_chart(report: Report, curves: Curves, x_range: Range1d) -> figure:
    most = max((*curves.memory, *curves.store), default=1.0)
    plot = _figure("Memory", 220, x_range, Range1d(start=0, end=1.08 * most or 1.0))
    plot.yaxis.ticker = AdaptiveTicker(base=1024, mantissas=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    plot.yaxis.formatter = NumeralTickFormatter(format="0.[0] ib")
    x = numpy.array(curves.times_us) / 1e6
    entries: list[tuple[str, list[Any]]] = []
    whole = plot.line(x, numpy.array(curves.memory), line_color=_USED, line_width=1.5)
    entries.append(("all workers" if len(report.workers) > 1 else "worker and its processes", [whole]))
    if 1 < len(curves.memory_of) <= _MAX_MEMORY_CURVES:
        lines = [plot.line(x, numpy.array(one), line_color="#9fb9dc") for one in curves.memory_of.values()]
        entries.append(("each worker", lines))
    held = plot.line(x, numpy.array(curves.store), line_color="#3d9e62", line_width=1.5, line_dash="dashed")
    entries.append(("held as results", [held]))
    _finish_curves(plot, entries)
    return plot


def _finish_curves(plot: figure, entries: Sequence[tuple[str, list[Any]]]) -> None:
    legend = Legend(items=list(entries), orientation="horizontal", border_line_color=None, margin=4, spacing=18)
    legend.label_text_font_size = "12px"
    plot.add_layout(legend, "above")
    wheel, box = WheelZoomTool(dimensions="width"), BoxZoomTool(dimensions="width")
    plot.add_tools(PanTool(dimensions="width"), wheel, box, ResetTool())


def _figure(title: str, height: int, x_range: Range1d, y_range: Range1d) -> figure:
    plot = figure(
        title=Title(text=title, text_font_size="14px", text_color=_INK),
        height=height,
        x_range=x_range,
        y_range=y_range,
        sizing_mode="stretch_width",
        tools="",
        output_backend="canvas",
        lod_threshold=None,
        toolbar_location="above",  # beside a low chart it is cut
        toolbar_sticky=False,
        outline_line_color=_LINE,
        min_border_left=150,
        min_border_right=20,
    )
    plot.toolbar.logo = None
    plot.xaxis.formatter = CustomJSTickFormatter(code="return loom.formats.tick(tick, ticks)")
    for axis in (plot.xaxis, plot.yaxis):
        axis.major_label_text_font_size = "12px"
        axis.major_label_text_color = _FAINT
        axis.minor_tick_line_color = None
        axis.axis_line_color = _LINE
    plot.grid.grid_line_color = _LINE
    return plot
