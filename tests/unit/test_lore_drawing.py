"""Where things stand: layers of graphs, rectangles of timelines."""

import itertools
import random
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest
from lore_traces import bag, kind, ran, report_of, worker, write

from loom.lore import units
from loom.lore.drawing import Node, graph
from loom.lore.layers import Layout, lay_out
from loom.lore.picture import ticks
from loom.lore.timeline import pack, rows_of, timeline
from loom.trace.records import LOOP_LANE


def assert_sound(layout: Layout, edges: Mapping[tuple[int, int], int]) -> None:
    by_layer: dict[int, list[float]] = {}
    for layer, height in zip(layout.layers, layout.heights, strict=True):
        assert 0 <= layer < layout.n_layers
        assert -1e-9 <= height <= layout.height - 1 + 1e-9
        by_layer.setdefault(layer, []).append(height)
    for heights in by_layer.values():
        heights.sort()
        assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(heights))
    for edge, way in layout.ways.items():
        assert edge in edges
        assert (way[0][0], way[-1][0]) == (layout.layers[edge[0]], layout.layers[edge[1]])


def test_a_chain_goes_right() -> None:
    edges = {(i, i + 1): 1 for i in range(5)}
    assert lay_out(6, edges).layers == [0, 1, 2, 3, 4, 5]


def test_what_has_no_inputs_stands_before_its_first_consumer() -> None:
    assert lay_out(4, {(0, 1): 1, (1, 2): 1, (3, 2): 1}).layers == [0, 1, 2, 1]


def test_cycles_are_cut_where_least_is_lost() -> None:
    layout = lay_out(3, {(0, 1): 100, (1, 2): 100, (2, 1): 3, (1, 1): 5})
    assert layout.layers == [0, 1, 2]
    assert (2, 1) in layout.ways
    assert (1, 1) not in layout.ways


@pytest.mark.parametrize("seed", range(5))
def test_any_graph(seed: int) -> None:
    chance = random.Random(seed)
    n = chance.randrange(1, 60)
    edges = {(chance.randrange(n), chance.randrange(n)): chance.randrange(1, 9) for _ in range(chance.randrange(3 * n))}
    layout = lay_out(n, edges)
    assert_sound(layout, edges)
    assert set(layout.ways) == {edge for edge in edges if edge[0] != edge[1]}


def test_no_graph() -> None:
    assert lay_out(0, {}).n_layers == 0
    assert "<svg" in graph([], {})


def test_a_graph_escapes_what_it_shows() -> None:
    class Texts(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: set[str] = set()

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.tags.add(tag)

    hostile = '</title><script>alert("1")</script>'
    parser = Texts()
    parser.feed(graph([Node(hostile, "#000000", hostile, hostile), Node("b", "#000000")], {(0, 1): 2, (0, 0): 1}))
    assert parser.tags <= {"div", "svg", "defs", "marker", "path", "g", "title", "rect", "text", "circle"}


def test_stretches_that_overlap_have_places_of_their_own() -> None:
    assert pack([(0, 10), (5, 20), (10, 12), (11, 13), (30, 31)]) == [0, 1, 0, 2, 0]


def test_rows_are_cores_by_worker_and_loops_last(tmp_path: Path) -> None:
    for number in (10, 9):
        write(
            tmp_path,
            f"n{number}",
            worker(number, cpus=1),
            kind(),
            ran((number, 0, LOOP_LANE if number == 9 else 0, 0, 5, 1)),
        )
    report = report_of(tmp_path)
    assert [(report.workers[row.worker].name, row.core) for row in rows_of(report)] == [
        ("node9", 0),
        ("node9", None),
        ("node10", 0),
    ]


def test_a_task_of_several_cores_covers_their_rows(tmp_path: Path) -> None:
    write(tmp_path, "node1", worker(cpus=4), kind(cpus=3), ran((0, 0, 1, 0, 10, 1)))
    rectangles = timeline(report_of(tmp_path), 10).rectangles
    assert (rectangles.top[0], rectangles.bottom[0]) == pytest.approx((1.08, 3.92))


def test_merged_timelines_are_bounded_with_many_labels_too(tmp_path: Path) -> None:
    found = timeline(bag(tmp_path, [str(i) for i in range(20_000)]), 1000)
    assert len(found.rectangles) <= 1000
    assert sum(found.rectangles.counts) == 20_000


def test_small_timelines_have_every_task(tmp_path: Path) -> None:
    found = timeline(bag(tmp_path, ["x"] * 500), 500)
    assert found.stretch_us == 0
    assert sorted(found.rectangles.tasks) == list(range(500))


def test_large_timelines_are_merged(tmp_path: Path) -> None:
    report = bag(tmp_path, [f"{'ab'[i % 3 == 0]}: {i}" for i in range(20_000)])
    found = timeline(report, 1000)
    assert len(found.rectangles) <= 1000 * 2  # two groups
    assert sum(found.rectangles.counts) == 20_000
    width = sum(map(float.__sub__, found.rectangles.right_us, found.rectangles.left_us))
    assert width == pytest.approx(20_000 * 100, rel=0.02)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0 µs"),
        (4, "4 µs"),
        (999.96, "1.00 ms"),
        (3210, "3.21 ms"),
        (14130000, "14.1 s"),
        (200000000, "3 min 20 s"),
        (18720000000, "5 h 12 min"),
        (3599600000, "1 h 0 min"),
    ],
)
def test_durations(us: float, text: str) -> None:
    assert units.duration(us) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (1 << 30, "1 GiB"), (123 << 20, "123 MiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert units.size(size) == text


@pytest.mark.parametrize("span", [0, 1, 7, 999, 12_345_678, 3_600_000_000, 10**13, 10**17])
def test_ticks_are_few(span: int) -> None:
    found = ticks(span)
    assert found[0] == 0
    assert 1 <= len(found) <= 40
    assert found[-1] <= span
