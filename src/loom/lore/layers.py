"""A place for every node of a graph: layers from left to right, so that edges go right as far as there are no cycles.

The steps are those of Sugiyama, Tagawa and Toda (1981): cycles cut, layers by the longest way, crossings made fewer by
barycentres. Cycles are cut by the order of Eades, Lin and Smyth (1993). Made for some hundred nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_SWEEPS: Final = 8
_MAX_BENDS: Final = 4000  # points of edges between the layers that they join; with more, edges go straight
_NODE: Final = 1.0  # height that a node takes
_BEND: Final = 0.4

Edge = tuple[int, int]
Point = tuple[int, float]
_Room = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Layout:
    """Layers count from 0 at the left; heights are in nodes, from 0 down. `ways`: the points that an edge passes, both
    ends included. Edges from a node to itself have none.
    """

    layers: list[int]
    heights: list[float]
    ways: dict[Edge, list[Point]]
    n_layers: int
    height: float


def lay_out(n_nodes: int, edges: Mapping[Edge, int]) -> Layout:
    """`edges`: from, to, and how strong: the stronger ones rather go right."""
    forward = _acyclic(n_nodes, {edge: weight for edge, weight in edges.items() if edge[0] != edge[1]})
    layers = _longest_way(n_nodes, forward)
    n_bends = sum(layers[b] - layers[a] - 1 for a, b in forward)
    columns, chains = _with_bends(layers, forward, straight=n_bends > _MAX_BENDS)
    node_layers = {node: layer for layer, column in enumerate(columns) for node in column}
    before: dict[int, list[int]] = {node: [] for node in node_layers}
    after: dict[int, list[int]] = {node: [] for node in node_layers}
    for chain in chains.values():
        for a, b in pairwise(chain):
            after[a].append(b)
            before[b].append(a)
    heights = _heights(columns, before, after, n_nodes)
    lowest = min(heights.values(), default=0.0)
    for node in heights:
        heights[node] -= lowest
    ways = {}
    for edge in edges:
        a, b = edge
        if a != b:
            chain = chains[edge] if edge in chains else chains[b, a][::-1]
            ways[edge] = [(node_layers[node], heights[node]) for node in chain]
    return Layout(
        layers=layers,
        heights=[heights[node] for node in range(n_nodes)],
        ways=ways,
        n_layers=len(columns),
        height=max(heights.values(), default=0.0) + _NODE,
    )


def _acyclic(n_nodes: int, edges: Mapping[Edge, int]) -> list[Edge]:
    """The edges, those turned round that go against an order which goes against few."""
    place = {node: number for number, node in enumerate(_order(n_nodes, edges))}
    return list(dict.fromkeys((a, b) if place[a] < place[b] else (b, a) for a, b in edges))


def _order(n_nodes: int, edges: Mapping[Edge, int]) -> list[int]:
    after: list[dict[int, int]] = [{} for _ in range(n_nodes)]
    before: list[dict[int, int]] = [{} for _ in range(n_nodes)]
    for (a, b), weight in edges.items():
        after[a][b] = before[b][a] = weight
    left, right = [], []
    rest = dict.fromkeys(range(n_nodes))
    while rest:
        node = next((node for node in rest if not after[node]), None)
        if node is not None:
            right.append(node)
        else:
            node = next((node for node in rest if not before[node]), None)
            if node is None:
                node = max(rest, key=lambda one: sum(after[one].values()) - sum(before[one].values()))
            left.append(node)
        del rest[node]
        for other in after[node]:
            del before[other][node]
        for other in before[node]:
            del after[other][node]
    return left + right[::-1]


def _longest_way(n_nodes: int, edges: Sequence[Edge]) -> list[int]:
    """The layer of each node; those that nothing leads to stand just before the first that they lead to."""
    after: list[list[int]] = [[] for _ in range(n_nodes)]
    n_before = [0] * n_nodes
    for a, b in edges:
        after[a].append(b)
        n_before[b] += 1
    sources = [node for node in range(n_nodes) if not n_before[node]]
    layers = [0] * n_nodes
    ahead = list(sources)
    while ahead:
        node = ahead.pop()
        for other in after[node]:
            layers[other] = max(layers[other], layers[node] + 1)
            n_before[other] -= 1
            if not n_before[other]:
                ahead.append(other)
    for node in sources:
        if after[node]:
            layers[node] = min(layers[other] for other in after[node]) - 1
    return layers


def _with_bends(
    layers: Sequence[int], edges: Iterable[Edge], straight: bool
) -> tuple[list[list[int]], dict[Edge, list[int]]]:
    """The nodes of each layer, and those that each edge passes. Bends are nodes too, numbered behind the others."""
    columns: list[list[int]] = [[] for _ in range(max(layers, default=-1) + 1)]
    for node, layer in enumerate(layers):
        columns[layer].append(node)
    chains: dict[Edge, list[int]] = {}
    n_nodes = len(layers)
    for a, b in edges:
        chain = [a]
        for layer in () if straight else range(layers[a] + 1, layers[b]):
            columns[layer].append(n_nodes)
            chain.append(n_nodes)
            n_nodes += 1
        chains[a, b] = [*chain, b]
    return columns, chains


def _heights(
    columns: Sequence[list[int]], before: Mapping[int, list[int]], after: Mapping[int, list[int]], n_nodes: int
) -> dict[int, float]:
    """Nodes are ordered by the mean height of their neighbours, to the left and to the right by turns."""

    def room(node: int) -> float:
        return _NODE if node < n_nodes else _BEND

    heights: dict[int, float] = {}
    for column in columns:
        _stack(column, [0.0] * len(column), room, heights)
    for sweep in range(_SWEEPS):
        rightwards = sweep % 2 == 0
        neighbours = before if rightwards else after
        for column in columns if rightwards else reversed(columns):
            wanted = {node: _mean([heights[other] for other in neighbours[node]], heights[node]) for node in column}
            column.sort(key=wanted.__getitem__)
            _stack(column, [wanted[node] for node in column], room, heights)
    return heights


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _stack(column: Sequence[int], wanted: Sequence[float], room: _Room, heights: dict[int, float]) -> None:
    """Heights as wanted, but in this order and not closer than there is room: blocks that touch move as one."""
    blocks: list[tuple[float, int]] = []  # where the first of a block stands, how many it has
    offsets = [0.0]
    for a, b in pairwise(column):
        offsets.append(offsets[-1] + (room(a) + room(b)) / 2)
    shifted = [want - offset for want, offset in zip(wanted, offsets, strict=True)]
    for shift in shifted:
        mean, count = shift, 1
        while blocks and blocks[-1][0] > mean:
            other, n_other = blocks.pop()
            mean = (mean * count + other * n_other) / (count + n_other)
            count += n_other
        blocks.append((mean, count))
    position = 0
    for mean, count in blocks:
        for node in column[position : position + count]:
            heights[node] = mean + offsets[position]
            position += 1
