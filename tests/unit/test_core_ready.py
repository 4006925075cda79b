"""Queues of ready tasks, kinds and their durations, and the table of task states."""

import pytest
from core_builders import Row, chunk_of

from loom.core import states
from loom.core.kinds import WORKER_WINDOW_US, Durations, Kind, Kinds, label_prefix
from loom.core.node import Chunk, Node
from loom.core.ready import ReadyQueue
from loom.core.session import PAGE_TASKS, Session
from loom.errors import ProtocolError
from loom.limits import MAX_CPUS, MAX_KINDS
from loom.resources import Request


def nodes_of(session: Session, rows: list[Row]) -> list[Node]:
    chunk = Chunk(chunk_of(rows), None)
    kind = Kind(0, "t/work", "", Request(1), 0, [])
    nodes = [Node(session, number, chunk, kind, (), 0) for number in range(len(rows))]
    for node in nodes:
        node.move(states.READY)
    return nodes


@pytest.fixture
def session() -> Session:
    return Session(1, b"token", 0, 1, incarnation=1)


def test_the_highest_level_comes_first_and_equals_in_their_order(session: Session) -> None:
    a, b, c, d = nodes_of(session, [Row(), Row([0]), Row([1]), Row()])  # levels 2, 1, 0, 0
    queue = ReadyQueue()
    for node in (d, b, c, a):
        queue.push(node)
    assert [queue.pop() for _ in range(5)] == [a, b, d, c, None]
    assert not queue


def test_what_is_pushed_back_comes_first_again(session: Session) -> None:
    a, b = nodes_of(session, [Row(), Row()])
    queue = ReadyQueue()
    queue.push(a)
    queue.push(b)
    assert queue.pop() is a
    queue.push_back(a)
    assert [queue.pop(), queue.pop()] == [a, b]
    queue.push_back(b)
    assert queue.nodes() == [b]


def test_tasks_that_are_ready_no_more_are_passed_over(session: Session) -> None:
    a, b = nodes_of(session, [Row(), Row()])
    queue = ReadyQueue()
    queue.push(a)
    queue.push(b)
    a.move(states.DROPPED)
    assert queue.pop() is b
    assert queue.pop() is None


def test_a_session_finds_its_tasks_and_lets_go_of_empty_pages(session: Session) -> None:
    nodes = nodes_of(session, [Row()] * (PAGE_TASKS + 1))
    for node in nodes:
        session.put(node)
    assert session.find(PAGE_TASKS) is nodes[-1]
    assert session.find(PAGE_TASKS + 1) is None
    assert session.find(5 * PAGE_TASKS) is None
    assert list(session.nodes()) == nodes
    for node in nodes[:-1]:
        session.remove(node)
    assert session.find(0) is None
    assert session.n_nodes == 1
    assert session.take_page() is not None
    assert session.take_page() is None


def test_only_moves_of_the_table_are_made(session: Session) -> None:
    (node,) = nodes_of(session, [Row()])
    with pytest.raises(AssertionError, match=r"1:0 t/work READY.* must not become FINISHED"):
        node.move(states.FINISHED)
    assert len(states.ALLOWED) == len(states.NAMES)


def test_an_estimate_falls_no_faster_than_measurements_come() -> None:
    durations = Durations()
    estimates = []
    for _ in range(5):
        estimates.append(durations.estimate_us(WORKER_WINDOW_US, 10))
        durations.add(1)
    assert estimates == [20_000, 10_000, 6_666, 5_000, 4_000]
    for _ in range(100_000):
        durations.add(1)
    assert durations.estimate_us(WORKER_WINDOW_US, 10) == 10


def test_an_estimate_is_careful_about_uneven_durations() -> None:
    durations = Durations()
    for _ in range(200):
        for duration_us in (100, 100, 100, 100, 10_000):
            durations.add(duration_us)
    assert durations.estimate_us(1, 1) > durations.mean_us
    assert 1_500 < durations.mean_us < 3_000


def test_labels_are_of_one_kind_up_to_the_colon() -> None:
    assert [label_prefix(label) for label in ("a:1", "a", ":x", "")] == ["a", "a", "", ""]
    kinds = Kinds()
    one = kinds.find("t/work", "a:1", Request(1))
    assert kinds.find("t/work", "a:2", Request(1)) is one
    assert kinds.find("t/work", "b", Request(1)) is not one
    assert kinds.find("t/work", "a", Request(2)) is not one


def test_there_are_only_so_many_kinds() -> None:
    kinds = Kinds()
    for number in range(MAX_KINDS):
        kinds.find("t/work", str(number), Request(1))
    assert kinds.find("t/work", "new", Request(1)) is kinds.find("t/work", "newer", Request(1))


@pytest.mark.parametrize("cpus", [-1, MAX_CPUS + 1])
def test_requests_have_bounds(cpus: int) -> None:
    with pytest.raises(ProtocolError, match="cpus"):
        Kinds().find("t/work", "", Request(cpus))
