"""The simulator's own parts: order and loss on links, virtual time, plans cut into chunks, what tasks come to."""

from random import Random

import pytest

from loom.messages import GetStats, Message, Stats
from loom.resources import Request
from loom.sim.clock import Clock
from loom.sim.network import End, Link, Speeds
from loom.sim.plans import Reckoning, cut_chunk
from loom.sim.tasks import CRASH, FAIL, OK, REDIRECT, Spec, SubTask, encode_spec, expect
from loom.tasktypes.plan import Task

SPEEDS = Speeds(latency_s=0.01, jitter_s=0.05, bytes_per_s=1e4, high_water_bytes=200, notice_s=1.0)


class Listener:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.heard: list[int] = []
        self.broken_at: float | None = None
        self.told: list[str] = []

    def on_messages(self, end: End, messages: list[Message]) -> None:
        assert self.broken_at is None
        self.heard += [m.seq for m in messages if isinstance(m, (GetStats, Stats))]

    def on_broken(self, end: End) -> None:
        assert self.broken_at is None
        self.broken_at = self._clock.now

    def on_full(self, end: End) -> None:
        self.told.append("full")

    def on_drained(self, end: End) -> None:
        self.told.append("drained")


class Pair:
    def __init__(self, seed: int = 1) -> None:
        self.clock = Clock()
        self.near, self.far = Listener(self.clock), Listener(self.clock)
        self.link = Link(self.clock, Random(seed), SPEEDS, "link", "client", self.near, self.far)

    def run(self) -> None:
        while self.clock.fire_next():
            pass


def test_time_goes_in_order_and_ties_in_the_order_they_were_set() -> None:
    clock = Clock()
    fired: list[str] = []
    clock.after(2.0, lambda: fired.append("later"))
    clock.after(1.0, lambda: fired.append("first"))
    clock.after(1.0, lambda: fired.append("second"))
    clock.after(1.5, lambda: fired.append("never")).cancel()
    while clock.fire_next():
        pass
    assert fired == ["first", "second", "later"]
    assert clock.now == 1002.0


def test_a_link_keeps_the_order_and_says_when_it_is_full() -> None:
    pair = Pair()
    for seq in range(100):
        pair.link.near.send([GetStats(seq)])
    pair.run()
    assert pair.far.heard == list(range(100))
    assert pair.near.told == ["full", "drained"]


def test_a_stalled_link_delivers_late_and_in_order() -> None:
    pair = Pair()
    pair.link.stall(5.0, both=False)
    pair.link.near.send([GetStats(1)])
    pair.link.near.send([GetStats(2)])
    pair.run()
    assert pair.far.heard == [1, 2]
    assert pair.clock.now == 1005.0


@pytest.mark.parametrize("seed", range(20))
def test_a_broken_link_has_delivered_a_prefix_and_both_ends_learn_of_it(seed: int) -> None:
    pair = Pair(seed)
    for seq in range(10):
        pair.link.near.send([GetStats(seq)])
        pair.link.far.send([Stats(seq, {})])
    pair.link.break_off()
    pair.link.near.send([GetStats(99)])
    pair.run()
    for listener in (pair.near, pair.far):
        assert listener.heard == list(range(len(listener.heard)))
        assert listener.broken_at is not None
    assert 99 not in pair.far.heard


def test_what_was_said_before_closing_arrives() -> None:
    pair = Pair()
    pair.link.far.send([Stats(1, {})])
    pair.link.far.close()
    pair.run()
    assert pair.near.heard == [1]
    assert pair.near.broken_at is not None
    assert pair.far.broken_at == 1000.0


def test_cutting_a_chunk_keeps_every_row() -> None:
    spec = encode_spec(Spec(1, OK, 1, 0))
    first = Task("sim/inline", (), spec)
    second = Task("sim/executor", (first, first), spec + b"", Request(1))
    third = Task("sim/executor", (second, first), spec, Request(2), "label")
    (whole,) = Reckoning().encode([third])
    parts = list(cut_chunk(whole, 2))
    assert [len(part.flags) for part in parts] == [2, 1]
    for column in ("levels", "consumers", "inputs", "configs", "flags"):
        assert b"".join(getattr(part, column) for part in parts) == getattr(whole, column)
    assert parts[1].first == whole.first + 2
    assert parts[1].input_ends == (2).to_bytes(4, "little")


def spec(outcome: str, salt: int = 1, plan: list[SubTask] | None = None) -> bytes:
    return encode_spec(Spec(salt, outcome, 1, 5, plan or []))


def test_what_tasks_come_to() -> None:
    one = expect("sim/inline", spec(OK), [])
    assert one.value is not None
    two = expect("sim/inline", spec(OK), [one, one])
    assert two.value not in (None, one.value)
    assert expect("sim/inline", spec(OK, 2), [one]).value != expect("sim/inline", spec(OK, 3), [one]).value
    failed = expect("sim/inline", spec(FAIL, 4), [one])
    assert failed.errors == {"task 4 fails"}
    assert expect("sim/inline", spec(CRASH, 5), [one, failed]).errors == {"task 4 fails"}
    inner = SubTask("sim/inline", 0, [-1], spec(OK, 6))
    redirected = expect("sim/executor", spec(REDIRECT, 7, [inner]), [one])
    assert redirected == expect("sim/inline", spec(OK, 6), [one])
