"""The page of a trace: with charts where Bokeh is installed, else with a static picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from loom.lore import figures, sections, units
from loom.lore.colours import colours
from loom.lore.curves import curves
from loom.lore.html import Html, element, join, page, section
from loom.lore.model import Report
from loom.lore.picture import curve_picture, timeline_picture

NO_CHARTS: Final = "For charts that zoom and tell about each task: pip install 'hyperloom[report]'"

_N_TIMES: Final = 600


def has_charts() -> bool:
    """Whether the library is there that draws them."""
    return importlib.util.find_spec("bokeh") is not None


def report_page(report: Report, title: str, with_charts: bool) -> str:
    by_group = figures.by_group(report)
    totals = figures.totals(report)
    shades = colours((one.group for one in by_group), len(report.groups))
    order = [one.group for one in by_group]
    if with_charts:
        shown, head, tail = _charts(report, order, shades, totals)
    else:
        shown, head, tail = _pictures(report, order, shades, totals), "", ""
    body = join(
        (
            sections.header(title, report, totals),
            sections.notes(report.notes),
            shown,
            sections.group_table(report, by_group, shades),
            sections.failures(report),
            sections.plan(report, shades),
            sections.transfers(report, figures.by_route(report)),
            sections.workers(report, figures.busy_by_worker(report)),
            sections.checkpoints(report),
        )
    )
    return page(title, body, head, tail)


def _charts(
    report: Report, groups: Sequence[int], shades: Sequence[str], totals: figures.Totals
) -> tuple[Html, str, str]:
    from loom.lore.charts import charts  # it imports Bokeh, which takes half a second

    if not len(report.tasks):
        return _nothing(), "", ""
    found = charts(report, curves(report, _N_TIMES), groups, shades, totals.n_cores)
    hint = "Wheel: zoom. Drag: move. A click on a name below shows or hides its tasks."
    merged = (
        f" There are {units.count(len(report.tasks), 'task')}: those shorter than {units.duration(found.stretch_us)} "
        "are merged, if they have the same core and label, into one box as wide as they were long together."
    )
    shown = section(
        "Timeline",
        element("p", hint + (merged if found.stretch_us else ""), class_="faint"),
        sections.legend(found.legend),
        element("noscript", "The charts need JavaScript; everything else does not."),
        element("div", id="charts"),
        id="timeline",
    )
    return shown, found.library, found.data


def _pictures(report: Report, groups: Sequence[int], shades: Sequence[str], totals: figures.Totals) -> Html:
    hint = Html("") if has_charts() else element("p", NO_CHARTS, class_="faint")
    if not len(report.tasks):
        return join((_nothing(), hint))
    over_time = curves(report, _N_TIMES)
    legend = sections.legend([(shades[group], report.groups[group], "") for group in groups[:40]])
    middles = [(a + b) / 2 for a, b in pairwise(over_time.bins_us)]
    there = [max(pair) for pair in pairwise(over_time.cores_there)]
    cores = curve_picture(
        middles,
        [("#3b75c4", over_time.cores), ("#5d6b7a", there)],
        report.span_us,
        max(totals.n_cores, 1),
        units.count(totals.n_cores, "core"),
    )
    parts = [
        hint,
        legend,
        timeline_picture(report, shades),
        element("h3", "Cores in use (blue) of those there (grey)"),
        cores,
    ]
    top = max((*over_time.memory, *over_time.store), default=0.0)
    if top:
        memory = [("#3b75c4", over_time.memory), ("#3d9e62", over_time.store)]
        parts += [
            element("h3", "Memory: of all workers (blue), held as results (green)"),
            curve_picture(over_time.times_us, memory, report.span_us, top, units.size(top)),
        ]
    return section("Timeline", *parts, id="timeline")


def _nothing() -> Html:
    text = "No task has run while this trace was written. Call client.set_trace before submit."
    return section("Timeline", element("p", text), id="timeline")
