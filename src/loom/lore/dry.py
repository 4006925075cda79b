"""The page of a plan that was never submitted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from loom.errors import LoomError
from loom.files import write_shown
from loom.lore import sections, units
from loom.lore.colours import colours
from loom.lore.drawing import MARKS, Node, graph
from loom.lore.dryplan import DYNAMIC, DryPlan, dry_plan
from loom.lore.html import Html, element, escape, join, page, section, swatch, table, tiles
from loom.resources import Request
from loom.tasktypes.task import Task

MAX_DRAWN: Final = 300  # a larger plan is folded by label

_MAX_ROWS: Final = 1000
_MAX_BARS: Final = 240
_BARS_WIDTH: Final = 1000
_BARS_HEIGHT: Final = 120


def dry_report(tasks: Task | Iterable[Task], report_filename: str | os.PathLike[str]) -> None:
    """As loom.lore.make_dry_report."""
    plan = dry_plan(tasks)
    path = Path(report_filename)
    if not path.parent.is_dir():
        raise LoomError(f"{path} cannot be written: there is no folder {path.parent}. Make it first")
    content = _page(plan, path.stem).encode("utf-8", "backslashreplace")
    try:
        write_shown(path, content)
    except OSError as error:
        raise LoomError(f"{path} cannot be written: {error.strerror}. Name another file") from None


def _page(plan: DryPlan, name: str) -> str:
    order = [group for group, _ in Counter(plan.groups).most_common()]
    shades = colours(order, len(plan.group_names))
    body = join((_header(plan), _drawing(plan, shades), _labels(plan, order, shades), _requests(plan), _widths(plan)))
    return page(f"Plan: {name}", Html(body + _checkpoints(plan)))


def _header(plan: DryPlan) -> Html:
    widths = plan.widths()
    figures = [
        (units.noun(len(plan), "task"), units.count(len(plan))),
        (f"{units.noun(len(plan.results), 'result')} asked for", units.count(len(plan.results))),
        ("in a row at most", units.count(len(widths))),
        ("side by side at most", units.count(max(widths, default=0))),
        (units.noun(len(plan.inputs), "input"), units.count(len(plan.inputs))),
    ]
    optional = [
        ("future", plan.n_futures),
        ("checkpoint", len(plan.checkpoints)),
        ("dynamic task", len(plan.dynamic())),
    ]
    figures += [(units.noun(number, name), units.count(number)) for name, number in optional if number]
    text = "Nothing of this plan has run."
    if plan.dynamic():
        text += " What consumes a dynamic task (dslice, dget) becomes several tasks when it runs; here it counts once."
    return element(
        "header", element("h1", "Dry report of a plan"), element("div", text, class_="faint"), tiles(figures)
    )


def _drawing(plan: DryPlan, shades: Sequence[str]) -> Html:
    drawn = [row for row in range(len(plan)) if row not in plan.functions]
    if len(drawn) > MAX_DRAWN:
        text = (
            f"A plan of more than {MAX_DRAWN} tasks is drawn with one box for all tasks with the same label up to the "
            "first colon; on the arrows how many inputs are taken that way."
        ) + sections.functions_left_out(len(plan.functions))
        folded = sections.folded_graph(plan.folded(), plan.group_names, shades)
        return section("Plan", element("p", text, class_="faint"), folded, id="plan")
    edges: Counter[tuple[int, int]] = Counter()
    place = {row: number for number, row in enumerate(drawn)}
    for row in drawn:
        edges.update((place[source], place[row]) for source in plan.steps_before(row))
    nodes = [_node(plan, row, shades) for row in drawn]
    marks = {mark for node in nodes for mark in node.marks}
    names = {"result": "result asked for", "checkpoint": "has a checkpoint", "dynamic": "dynamic: becomes several"}
    legend = sections.legend([(MARKS[mark], text, "") for mark, text in names.items() if mark in marks])
    text = sections.functions_left_out(len(plan.functions)).strip()
    above = element("p", text, class_="faint") if text else Html("")
    return section("Plan", above, legend, graph(nodes, edges), id="plan")


def _node(plan: DryPlan, row: int, shades: Sequence[str]) -> Node:
    label, symbol = plan.labels[row], plan.symbols[row]
    inputs = plan.inputs_of(row)
    n_futures = sum(source < 0 for source in inputs)
    lines = [
        label or symbol,
        f"type: {symbol}",
        f"asks for: {_request(plan.requests[row])}",
        f"inputs: {len(inputs):,}" + (f", of which {units.count(n_futures, 'future')}" if n_futures else ""),
        f"configuration: {units.size(plan.config_bytes[row])}",
    ]
    marks = []
    if row in plan.results:
        marks.append("result")
    if row in plan.checkpoints:
        marks.append("checkpoint")
        lines.append(f"checkpoint: {plan.checkpoints[row]}")
    if symbol in DYNAMIC:
        marks.append("dynamic")
    return Node(label or symbol, shades[plan.groups[row]], symbol if label else "", "\n".join(lines), marks)


def _labels(plan: DryPlan, order: Sequence[int], shades: Sequence[str]) -> Html:
    """Tasks by group, and what they are."""
    counts = Counter(plan.groups)
    symbols: dict[int, dict[str, None]] = {}
    config_bytes: Counter[int] = Counter()
    for group, symbol, size in zip(plan.groups, plan.symbols, plan.config_bytes, strict=True):
        symbols.setdefault(group, {})[symbol] = None
        config_bytes[group] += size
    shown = order[:_MAX_ROWS]
    rows = [
        (
            join((swatch(shades[group]), plan.group_names[group])),
            ", ".join(list(symbols[group])[:4]) + (", ..." if len(symbols[group]) > 4 else ""),
            counts[group],
            units.size(config_bytes[group]),
        )
        for group in shown
    ]
    keys = [
        (plan.group_names[group], next(iter(symbols[group])), counts[group], config_bytes[group]) for group in shown
    ]
    columns = ("label (up to the first colon)", "type", ">tasks", ">configuration")
    rest = element("p", f"and {units.count(len(order) - _MAX_ROWS, 'label')} more") if len(order) > _MAX_ROWS else ""
    return section("By label", table(columns, rows, keys), rest, id="labels") if rows else Html("")


def _requests(plan: DryPlan) -> Html:
    counts = Counter(plan.requests)
    rows = [(_request(request), number) for request, number in counts.most_common(_MAX_ROWS)]
    return section("What tasks ask for", table(("request", ">tasks"), rows), id="requests") if rows else Html("")


def _request(request: Request) -> str:
    """4 cores, 2 GiB of memory, half a gpu."""
    if not request.cpus:
        return "nothing: light"
    return ", ".join([units.count(request.cpus, "core"), *units.amounts(request.extras)])


def _widths(plan: DryPlan) -> Html:
    """Bars: how many tasks could run at a time, step by step, if there were cores for all."""
    widths = plan.widths()
    if len(widths) < 2:
        return Html("")
    each = -(-len(widths) // _MAX_BARS)
    bars = [max(widths[start : start + each]) for start in range(0, len(widths), each)]
    highest = max(bars)
    width = min(_BARS_WIDTH / len(bars), 40.0)
    gap = 1.0 if width > 6 else 0.0
    parts = []
    for number, value in enumerate(bars):
        tall = max(value / highest * _BARS_HEIGHT, 1.0)
        first, last = number * each + 1, min((number + 1) * each, len(widths))
        steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}, at most"
        tip = escape(f"{steps}: {units.count(value, 'task')}")
        parts.append(
            f'<rect x="{60 + number * width:.1f}" y="{10 + _BARS_HEIGHT - tall:.1f}" width="{width - gap:.1f}" '
            f'height="{tall:.1f}" fill="#3b75c4"><title>{tip}</title></rect>'
        )
    total = 60 + len(bars) * width
    drawing = Html(
        f'<div class="picture"><svg xmlns="http://www.w3.org/2000/svg" width="{total + 20:.0f}" '
        f'height="{_BARS_HEIGHT + 36}" font-size="12" fill="#5d6b7a" role="img" aria-label="Tasks of each step">'
        f'<text x="52" y="18" text-anchor="end">{highest:,}</text><text x="60" y="{_BARS_HEIGHT + 28}">step 1</text>'
        f"{_last_step(len(widths), total)}{''.join(parts)}</svg></div>"
    )
    text = "A step has the tasks whose longest way from the beginning is equally long: that many can run side by side."
    return section("Width", element("p", text, class_="faint"), drawing, id="width")


def _last_step(n_steps: int, right: float) -> str:
    text = f"{n_steps:,}"
    return f'<text x="{right:.0f}" y="{_BARS_HEIGHT + 28}" text-anchor="end">{text}</text>' if right > 150 else ""


def _checkpoints(plan: DryPlan) -> Html:
    if not plan.checkpoints:
        return Html("")
    rows = [(plan.labels[row] or plan.symbols[row], path) for row, path in list(plan.checkpoints.items())[:_MAX_ROWS]]
    return section("Checkpoints", table(("task", "file"), rows), id="checkpoints")
