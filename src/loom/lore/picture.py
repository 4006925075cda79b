"""The timeline and curves over time as SVG, for a page without charts."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Final

from loom.lore import units
from loom.lore.colours import FAILURE
from loom.lore.html import Html, escape
from loom.lore.model import FAILED, Report
from loom.lore.timeline import Row, timeline

MAX_RECTANGLES: Final = 6000  # some 200 bytes each

_WIDTH: Final = 1240
_LEFT: Final = 150
_RIGHT: Final = 20
_AXIS: Final = 26
_CURVE_HEIGHT: Final = 130
_FAINT: Final = "#5d6b7a"
_MIN_LABEL_GAP: Final = 13  # between the middles of two row names


def timeline_picture(report: Report, colours: Sequence[str]) -> Html:
    """Every row with its tasks, in tooltips what each is."""
    found = timeline(report, MAX_RECTANGLES)
    n_rows = len(found.rows)
    row_height = min(max(700 / max(n_rows, 1), 2.0), 20.0)
    height = n_rows * row_height
    scale = (_WIDTH - _LEFT - _RIGHT) / (report.span_us or 1)
    tasks, rectangles = report.tasks, found.rectangles
    shapes = []
    for i in range(len(rectangles)):
        task, count = rectangles.tasks[i], rectangles.counts[i]
        x = _LEFT + rectangles.left_us[i] * scale
        width = max((rectangles.right_us[i] - rectangles.left_us[i]) * scale, 0.4)
        y, tall = rectangles.top[i] * row_height, (rectangles.bottom[i] - rectangles.top[i]) * row_height
        failed = f' stroke="{FAILURE}" stroke-width="1.5"' if tasks.outcomes[task] == FAILED else ""
        shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{tall:.1f}" '
            f'fill="{colours[tasks.groups[task]]}"{failed}><title>{escape(_tip(report, task, count))}</title></rect>'
        )
    return _frame(
        height, [*_row_names(report, found.rows, row_height), *shapes], report.span_us, "Timeline of the tasks"
    )


def _tip(report: Report, task: int, count: int) -> str:
    tasks = report.tasks
    if count > 1:
        return f"{count:,} tasks, {report.groups[tasks.groups[task]]}"
    name = report.name_of(tasks.labels[task], tasks.symbols[task])
    return f"{name}: {units.duration(tasks.durations_us[task])}"


def _row_names(report: Report, rows: Sequence[Row], row_height: float) -> list[str]:
    """The worker's name in the middle of its rows, the cores' where there is room, lines between workers."""
    parts = []
    first = 0
    last_name = -math.inf
    while first < len(rows):
        worker = rows[first].worker
        end = next((i for i in range(first, len(rows)) if rows[i].worker != worker), len(rows))
        middle = (first + end) / 2 * row_height + 4
        if middle - last_name >= _MIN_LABEL_GAP:
            name = report.workers[worker].name
            parts.append(
                f'<text x="0" y="{middle:.1f}"><title>{escape(name)}</title>{escape(_end_of(name, 13))}</text>'
            )
            last_name = middle
        if first:
            y = first * row_height
            parts.append(f'<line x1="0" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#c3ccd6"/>')
        if row_height >= _MIN_LABEL_GAP:
            for number in range(first, end):
                core = rows[number].core
                text = "loop" if core is None else f"core {core}"
                y = (number + 0.5) * row_height + 4
                parts.append(f'<text x="{_LEFT - 8}" y="{y:.1f}" text-anchor="end" fill="{_FAINT}">{text}</text>')
        first = end
    return parts


def _end_of(name: str, chars: int) -> str:
    return name if len(name) <= chars else "\N{HORIZONTAL ELLIPSIS}" + name[1 - chars :]


def curve_picture(
    times_us: Sequence[float], curves: Sequence[tuple[str, Sequence[float]]], span_us: int, top: float, top_text: str
) -> Html:
    """Curves (colour, values) from 0 to `top`; the first one is filled."""
    scale_x = (_WIDTH - _LEFT - _RIGHT) / (span_us or 1)
    scale_y = (_CURVE_HEIGHT - 8) / (top or 1)
    parts = [
        f'<text x="{_LEFT - 8}" y="14" text-anchor="end" fill="{_FAINT}">{escape(top_text)}</text>',
        f'<text x="{_LEFT - 8}" y="{_CURVE_HEIGHT}" text-anchor="end" fill="{_FAINT}">0</text>',
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="8" y2="8" stroke="{_FAINT}" stroke-dasharray="4 4"/>',
    ]
    for number, (colour, values) in enumerate(curves):
        points = " ".join(
            f"{_LEFT + time * scale_x:.1f},{_CURVE_HEIGHT - value * scale_y:.1f}"
            for time, value in zip(times_us, values, strict=True)
        )
        if points and not number:
            end = _LEFT + times_us[-1] * scale_x
            closed = f"{_LEFT + times_us[0] * scale_x:.1f},{_CURVE_HEIGHT} {points} {end:.1f},{_CURVE_HEIGHT}"
            parts.append(f'<polygon points="{closed}" fill="{colour}" fill-opacity="0.25"/>')
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return _frame(_CURVE_HEIGHT, parts, span_us, "Curves over time")


def _frame(height: float, parts: Sequence[str], span_us: int, label: str) -> Html:
    """The parts above an axis of time."""
    scale = (_WIDTH - _LEFT - _RIGHT) / (span_us or 1)
    axis = [f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="{_FAINT}"/>']
    for tick in ticks(span_us):
        x = _LEFT + tick * scale
        axis.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height + 4:.1f}" stroke="#dfe4ea"/>'
            f'<text x="{x:.1f}" y="{height + 18:.1f}" text-anchor="middle" fill="{_FAINT}">'
            f"{units.duration(tick) if tick else '0'}</text>"
        )
    return Html(
        f'<div class="picture"><svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height + _AXIS:.0f}" '
        f'viewBox="0 0 {_WIDTH} {height + _AXIS:.0f}" font-size="12" fill="#1d2733" role="img" '
        f'style="width:100%;height:auto;max-width:{_WIDTH}px;min-width:800px" '
        f'aria-label="{escape(label)}">{"".join(axis)}{"".join(parts)}</svg></div>'
    )


def ticks(span_us: int) -> array[int]:
    """Round times from 0 to the span, some eight of them."""
    if span_us <= 0:
        return array("q", [0])
    rough = max(span_us / 8, 1.0)
    steps: Sequence[float]
    if rough > 60e6:
        steps = [minutes * 60e6 for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440)]
        steps = [*steps, *(1440 * 60e6 * 10**i for i in range(1, 6))]
    else:
        power = 10 ** math.floor(math.log10(rough))
        steps = [power, 2 * power, 5 * power, 10 * power]
    step = int(next((one for one in steps if one >= rough), steps[-1]))
    return array("q", range(0, span_us + 1, step))
