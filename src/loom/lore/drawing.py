"""Graphs as SVG: boxes in layers from left to right, joined by curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from loom.lore.html import Html, escape
from loom.lore.layers import Edge, Point, lay_out
from loom.lore.units import count

_BOX_WIDTH: Final = 176
_COLUMN_GAP: Final = 76
_NARROW_GAP: Final = 46  # where there are many columns
_MANY_COLUMNS: Final = 6
_PAGE_WIDTH: Final = 1200  # of a drawing on a usual screen
_MIN_SCALE: Final = 0.5  # a drawing that fits with that is made to fit
_SCROLLED_SCALE: Final = 0.8  # of one that does not
_MARGIN: Final = 14
_LOOP_ROOM: Final = 16  # above a box that has an edge to itself
_CHAR_WIDTH: Final = 7.2  # of the font of names, on average
_LINE_HEIGHT: Final = 13
_MAX_LABELLED_EDGES: Final = 40
MARKS: Final = {"result": "#1d2733", "checkpoint": "#d9a300", "dynamic": "#8763b8"}


@dataclass(frozen=True, slots=True)
class Node:
    """`text` is the second line (none: the box is lower), `hover` what a tooltip says, `marks` of MARKS."""

    name: str
    colour: str
    text: str = ""
    hover: str = ""
    marks: Sequence[str] = ()


def graph(nodes: Sequence[Node], edges: Mapping[Edge, int]) -> Html:
    """A drawing in a frame that scrolls. Numbers stand on edges as long as these are few, in tooltips always."""
    layout = lay_out(len(nodes), edges)
    two_lines = any(node.text for node in nodes)
    box_height = 42 if two_lines else 26
    loops = any(a == b for a, b in edges)
    pitch = box_height + 14 + (_LOOP_ROOM if loops else 0)
    gap = _NARROW_GAP if layout.n_layers > _MANY_COLUMNS else _COLUMN_GAP
    width = 2 * _MARGIN + layout.n_layers * _BOX_WIDTH + max(layout.n_layers - 1, 0) * gap
    scale = _MIN_SCALE if _MIN_SCALE * width <= _PAGE_WIDTH else _SCROLLED_SCALE
    top = _MARGIN + (_LOOP_ROOM if loops else 0)
    height = top + _MARGIN + (layout.height - 1) * pitch + box_height if nodes else 2 * _MARGIN

    def at(point: Point) -> tuple[float, float]:
        """The left end of the middle line of what stands there."""
        layer, y = point
        return _MARGIN + layer * (_BOX_WIDTH + gap), top + y * pitch + box_height / 2

    labelled = len(edges) <= _MAX_LABELLED_EDGES and any(number > 1 for number in edges.values())
    strongest = max(edges.values(), default=1)
    curves: list[str] = []
    numbers: list[tuple[tuple[float, float], str]] = []
    for (a, b), number in edges.items():
        if a == b:
            x, y = at((layout.layers[a], layout.heights[a]))
            path = _loop(x, y - box_height / 2)
            middle = x + _BOX_WIDTH / 2, y - box_height / 2 - 13
        else:
            path, middle = _curve([at(point) for point in layout.ways[a, b]], gap)
        stroke = 1.2 + 2.3 * math.log1p(number) / math.log1p(strongest) if strongest > 1 else 1.4
        tip = escape(f"{nodes[a].name} \N{RIGHTWARDS ARROW} {nodes[b].name}: {count(number, 'input')}")
        curves.append(
            f'<path d="{path}" stroke-width="{stroke:.1f}" marker-end="url(#arrow)"><title>{tip}</title></path>'
        )
        if labelled:
            numbers.append((middle, f"{number:,}"))
    boxes = [
        _box(node, *at((layer, y)), box_height)
        for node, layer, y in zip(nodes, layout.layers, layout.heights, strict=True)
    ]
    return Html(
        f'<div class="picture"><svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="The plan as a graph" '
        f'style="width:100%;height:auto;max-width:{width:.0f}px;min-width:{scale * width:.0f}px">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" fill="#8592a1"/></marker></defs>'
        f'<g fill="none" stroke="#8592a1">{"".join(curves)}</g>{"".join(boxes)}'
        '<g font-size="12" text-anchor="middle" fill="#3c4856" stroke="#fff" stroke-width="4" paint-order="stroke">'
        f"{_numbers(numbers)}</g></svg></div>"
    )


def _numbers(numbers: Sequence[tuple[tuple[float, float], str]]) -> str:
    """Each at its place, or further down where another one stands."""
    placed: list[tuple[float, float, int]] = []
    parts = []
    for (x, y), text in sorted(numbers):
        while any(
            abs(x - other_x) < 4 * (len(text) + chars) and abs(y - other_y) < _LINE_HEIGHT
            for other_x, other_y, chars in placed
        ):
            y += _LINE_HEIGHT
        placed.append((x, y, len(text)))
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}">{text}</text>')
    return "".join(parts)


def _box(node: Node, x: float, y: float, height: float) -> str:
    """At the left end of its middle line."""
    hover = escape(node.hover or node.name)
    name_y = y - 4 if node.text else y + 4.5
    second = f'<text x="{x + 16:.0f}" y="{y + 13:.1f}" font-size="12" fill="#5d6b7a">{escape(node.text)}</text>'
    right, top = x + _BOX_WIDTH, y - height / 2
    marks = "".join(
        f'<circle cx="{right - 10 - 12 * number:.0f}" cy="{top + 9:.1f}" r="4" fill="{MARKS[mark]}"/>'
        for number, mark in enumerate(node.marks)
    )
    room = _BOX_WIDTH - 26 - 12 * len(node.marks)
    return (
        f'<g class="node"><title>{hover}</title>'
        f'<rect x="{x:.0f}" y="{top:.1f}" width="{_BOX_WIDTH}" height="{height}" rx="5" fill="#fff" '
        f'stroke="#c3ccd6"/><rect x="{x:.0f}" y="{top:.1f}" width="7" height="{height}" rx="3" '
        f'fill="{escape(node.colour)}"/>'
        f'<text x="{x + 16:.0f}" y="{name_y:.1f}" font-size="13">{escape(shortened(node.name, room))}</text>'
        f"{second if node.text else ''}{marks}</g>"
    )


def shortened(text: str, room: float) -> str:
    """As much of a name as there is room for, in pixels."""
    most = max(int(room / _CHAR_WIDTH), 1)
    text = " ".join(text.split()) or text
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _curve(points: Sequence[tuple[float, float]], gap: float) -> tuple[str, tuple[float, float]]:
    """A path through the points, and where a number stands on it: in the gap behind its first box."""
    rightwards = points[0][0] < points[-1][0]
    (x, y), rest = points[0], points[1:]
    if not rightwards:  # it closes a cycle: from the left end of a box to the right end of one further left
        return _back_curve(points)
    x += _BOX_WIDTH
    path = [f"M{x:.0f} {y:.1f}"]
    number = x + gap / 2, (y + rest[0][1]) / 2 + 4
    for position, (next_x, next_y) in enumerate(rest):
        bend = min(gap, next_x - x) / 2
        path.append(f"C{x + bend:.0f} {y:.1f} {next_x - bend:.0f} {next_y:.1f} {next_x:.0f} {next_y:.1f}")
        x, y = next_x, next_y
        if position < len(rest) - 1:  # a bend is as wide as the boxes above and below it
            x += _BOX_WIDTH
            path.append(f"H{x:.0f}")
    return "".join(path), number


def _back_curve(points: Sequence[tuple[float, float]]) -> tuple[str, tuple[float, float]]:
    """Below the straight line, so that it does not lie upon the edge in the other direction."""
    low = 16.0
    x, y = points[0]
    path = [f"M{x:.0f} {y + 8:.1f}"]
    first_end = points[1][0] + _BOX_WIDTH, points[1][1]
    number = (x + first_end[0]) / 2, (y + first_end[1]) / 2 + low + 8
    for position, ((from_x, from_y), (to_x, to_y)) in enumerate(pairwise(points)):
        last = position == len(points) - 2
        end_x, end_y = to_x + _BOX_WIDTH, to_y + 8
        bend = (from_x - end_x) / 2
        path.append(f"C{from_x - bend:.0f} {from_y + low + 4:.1f} {end_x + bend:.0f} {end_y + low - 4:.1f} ")
        path.append(f"{end_x:.0f} {end_y:.1f}")
        if not last:
            path.append(f"H{to_x:.0f}")
    return "".join(path), number


def _loop(x: float, top: float) -> str:
    """From the top of a box to its top."""
    left, right = x + _BOX_WIDTH / 2 - 26, x + _BOX_WIDTH / 2 + 26
    return f"M{right:.0f} {top:.1f}C{right + 14:.0f} {top - 20:.1f} {left - 14:.0f} {top - 20:.1f} {left:.0f} {top:.1f}"
