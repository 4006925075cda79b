"""The parts of a report's page that are the same with and without charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from loom import ids
from loom.lore import units
from loom.lore.drawing import Node, graph
from loom.lore.figures import GroupFigures, Route, Totals, offered_by_worker, there_us
from loom.lore.html import Html, element, escape, join, section, swatch, table, tiles
from loom.lore.model import UNKNOWN, Failure, PlanGraph, Report

_MAX_ROWS: Final = 1000
_MAX_FAILURES: Final = 200
_MAX_ERROR_CHARS: Final = 20_000
_MAX_LABELS: Final = 2000
_MAX_NODES: Final = 40
_OTHERS: Final = "#b4bcc6"


def header(title: str, report: Report, totals: Totals) -> Html:
    utilisation = "\N{EN DASH}" if totals.utilisation is None else units.percent(totals.utilisation)
    figures = [
        ("duration", units.duration(report.span_us)),
        (units.noun(len(report.workers), "worker"), units.count(len(report.workers))),
        (units.noun(totals.n_cores, "core"), units.count(totals.n_cores)),
        (units.noun(totals.n_tasks, "task"), units.count(totals.n_tasks)),
        ("failed", units.count(totals.n_failed)),
        ("of the cores' time used", utilisation),
    ]
    begun = f"Began {units.moment(report.begun_wall_us)}" if report.begun_wall_us else "Nothing has happened yet"
    return element("header", element("h1", title), element("div", begun, class_="faint"), tiles(figures))


def notes(texts: Sequence[str]) -> Html:
    return join(element("div", text, class_="note") for text in texts)


def group_table(report: Report, figures: Sequence[GroupFigures], colours: Sequence[str]) -> Html:
    if not figures:
        return section("By label", element("p", "No task has run."), id="labels")
    whole = sum(one.sum_us for one in figures) or 1
    columns = (
        "label (up to the first colon)",
        ">tasks run",
        ">median",
        ">95 % are below",
        ">sum of durations",
        ">share",
        ">results",
        ">failures",
    )
    shown = figures[:_MAX_ROWS]
    rows = [
        (
            join((swatch(colours[one.group]), report.groups[one.group])),
            one.n_runs,
            units.duration(one.median_us),
            units.duration(one.p95_us),
            units.duration(one.sum_us),
            units.percent(one.sum_us / whole),
            units.size(one.size_bytes),
            one.n_failures,
        )
        for one in shown
    ]
    keys = [
        (
            report.groups[one.group],
            one.n_runs,
            one.median_us,
            one.p95_us,
            one.sum_us,
            one.sum_us,
            one.size_bytes,
            one.n_failures,
        )
        for one in shown
    ]
    return section(
        "By label",
        table(columns, rows, keys),
        _left_out(len(figures) - len(shown), "label"),
        _label_list(report),
        id="labels",
    )


def _left_out(number: int, noun: str) -> Html:
    return element("p", f"and {units.count(number, noun)} more", class_="faint") if number > 0 else Html("")


def _label_list(report: Report) -> Html:
    labels = sorted(label for label in report.labels if label)
    if len(labels) <= 1:
        return Html("")
    items = join(element("li", label) for label in labels[:_MAX_LABELS])
    return element(
        "details",
        element("summary", f"All {units.count(len(labels), 'label')}"),
        element("ul", items, class_="labels"),
        _left_out(len(labels) - _MAX_LABELS, "label"),
    )


def transfers(report: Report, routes: Sequence[Route]) -> Html:
    if not routes:
        text = "No object was moved between workers: every task found its inputs on its own worker."
        return section("Transfers between workers", element("p", text), id="transfers")

    def name(worker: int) -> str:
        return "unknown" if worker == UNKNOWN else report.workers[worker].name

    shown = routes[:_MAX_ROWS]
    rows: list[tuple[str | int, ...]] = []
    keys: list[tuple[str | int, ...]] = []
    for route in shown:
        rate = route.size_bytes / route.duration_us * 1e6 if route.duration_us else 0.0
        rows.append(
            (
                name(route.source),
                name(route.target),
                route.n_objects,
                units.size(route.size_bytes),
                units.duration(route.duration_us),
                f"{units.size(rate)}/s" if rate else "\N{EN DASH}",
            )
        )
        keys.append(
            (name(route.source), name(route.target), route.n_objects, route.size_bytes, route.duration_us, int(rate))
        )
    n_objects = sum(route.n_objects for route in routes)
    whole = f"{units.count(n_objects, 'object')}, {units.size(sum(route.size_bytes for route in routes))} together"
    columns = ("from", "to", ">objects", ">size", ">time", ">rate")
    return section(
        "Transfers between workers",
        element("p", whole, class_="faint"),
        table(columns, rows, keys),
        _left_out(len(routes) - len(shown), "pair"),
        id="transfers",
    )


def plan(report: Report, colours: Sequence[str]) -> Html:
    if not report.plan.counts:
        return section("Plan", element("p", "The trace has no plan."), id="plan")
    text = (
        "One box for all tasks with the same label up to the first colon; "
        "on the arrows how many inputs are taken that way." + functions_left_out(report.plan.n_functions)
    )
    return section(
        "Plan", element("p", text, class_="faint"), folded_graph(report.plan, report.groups, colours), id="plan"
    )


def functions_left_out(number: int) -> str:
    """A sentence behind others, where there is something to say."""
    if not number:
        return ""
    return f" Functions that are called are not drawn ({units.count(number, 'task')} of the type loom/py/value)."


def folded_graph(plan: PlanGraph, groups: Sequence[str], colours: Sequence[str]) -> Html:
    """A box for each group; where there are many, those with fewest tasks share one."""
    ordered = sorted(plan.counts, key=lambda group: (-plan.counts[group], group))
    shown = sorted(ordered[:_MAX_NODES])
    place = {group: number for number, group in enumerate(shown)}
    others = ordered[_MAX_NODES:]
    nodes = [
        Node(groups[group], colours[group], units.count(plan.counts[group], "task"), _described(plan, groups, group))
        for group in shown
    ]
    if others:
        n_tasks = sum(plan.counts[group] for group in others)
        nodes.append(Node(f"{len(others):,} other labels", _OTHERS, units.count(n_tasks, "task")))
    edges: dict[tuple[int, int], int] = {}
    for (a, b), number in plan.edges.items():
        edge = place.get(a, len(shown)), place.get(b, len(shown))
        edges[edge] = edges.get(edge, 0) + number
    return graph(nodes, edges)


def _described(plan: PlanGraph, groups: Sequence[str], group: int) -> str:
    return f"{groups[group]}\n{units.count(plan.counts[group], 'task')}"


def _identity(report: Report, failure: Failure) -> str:
    """The type where the label does not say it, and the number that errors and futures have for the task."""
    number = ids.number_of(failure.id)
    own = "made by the server" if number >= ids.SERVER_MADE else f"id {number}"
    return f"{report.symbols[failure.symbol]}, {own}" if report.labels[failure.label] else own


def failures(report: Report) -> Html:
    if not report.failures:
        return section("Failures", element("p", "No task has failed."), id="failures")
    shown = report.failures[:_MAX_FAILURES]
    parts = []
    for failure in shown:
        where = f"on {failure.worker}" if failure.worker else "found by the server"
        parts.append(
            element(
                "div",
                element("b", report.name_of(failure.label, failure.symbol)),
                f" \N{MIDDLE DOT} {_identity(report, failure)}, {where}, at {units.duration(max(failure.at_us, 0))}",
                element("pre", failure.error[:_MAX_ERROR_CHARS] or "(no text)"),
                class_="failure",
            )
        )
    return section("Failures", *parts, _left_out(len(report.failures) - len(shown), "failure"), id="failures")


def checkpoints(report: Report) -> Html:
    """Nothing where there are none."""
    if not report.checkpoints:
        return Html("")
    saved = [one for one in report.checkpoints if not one.error]
    text = (
        f"{units.count(len(saved), 'checkpoint')} saved, {units.size(sum(one.size_bytes for one in saved))} "
        f"in {units.duration(sum(one.duration_us for one in saved))}."
    )
    errors = [element("pre", one.error[:_MAX_ERROR_CHARS]) for one in report.checkpoints if one.error]
    failed = element("p", f"{units.count(len(errors))} could not be saved:") if errors else Html("")
    return section("Checkpoints", element("p", text), failed, *errors[:_MAX_FAILURES], id="checkpoints")


def workers(report: Report, busy_us: Sequence[int]) -> Html:
    columns = ("worker", ">cores", ">there for", ">tasks run", ">cores' time used", ">most memory", "other resources")
    offered_us = offered_by_worker(report)
    tasks = report.tasks
    n_runs = [0] * len(report.workers)
    for position in tasks.workers:
        n_runs[position] += 1
    rows: list[tuple[str | int, ...]] = []
    keys: list[tuple[str | int, ...]] = []
    for number, worker in enumerate(report.workers):
        begin, end = there_us(report, worker)
        share = busy_us[number] / offered_us[number] if offered_us[number] else 0.0
        memory = max(report.samples[number].memory_bytes, default=0)
        extras = ", ".join(units.amounts(worker.extras))
        rows.append(
            (
                worker.name,
                worker.cpus,
                units.duration(end - begin),
                n_runs[number],
                units.percent(min(share, 1.0)),
                units.size(memory) if memory else "\N{EN DASH}",
                extras,
            )
        )
        keys.append((worker.name, worker.cpus, end - begin, n_runs[number], int(1e6 * share), memory, extras))
    if not rows:
        return section("Workers", element("p", "No worker was there."), id="workers")
    return section("Workers", table(columns, rows[:_MAX_ROWS], keys[:_MAX_ROWS]), id="workers")


def legend(entries: Sequence[tuple[str, str, str]]) -> Html:
    """Colour, text, and the name of the model that a click shows or hides (empty: no click)."""
    parts = []
    for colour, text, model in entries:
        inside = Html(f'{swatch(colour)}<span class="name">{escape(text)}</span>')
        if model:
            parts.append(
                element(
                    "button", inside, type="button", title=f"show or hide {text}", aria_pressed="true", data_model=model
                )
            )
        else:
            parts.append(element("span", inside, title=text))
    return element("div", *parts, class_="legend")
