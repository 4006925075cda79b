"""What clients and workers must not say costs them their links, and nothing was done or written down because of it.
And a few bytes of what they may say do not cost the server a GiB, or its life.
"""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from core_builders import Bench, JournalBench, Row, chunk_of, finished, numbers
from msgspec.structs import replace

from loom.core import states
from loom.core.events import LinkDrained, LinkFull, LinkUp, Received
from loom.core.kinds import Kinds
from loom.ids import LAST_SESSION, SERVER_MADE
from loom.limits import INLINE_RESULT_BYTES, MAX_CPUS, MAX_ERROR_CHARS, MAX_KINDS, RELAY_PIECE_BYTES, RELAYS_AT_ONCE
from loom.messages import (
    DGET,
    DSLICE,
    CancelResults,
    FailedTask,
    GiveBack,
    ListSessions,
    LocateResult,
    OpenSession,
    RegisterWorker,
    RelayedObject,
    RelayFetch,
    RelayObject,
    RelayPiece,
    Release,
    ResultsFailed,
    RunTasks,
    SessionRefused,
    Sessions,
    SetTrace,
    SubmitChunk,
    TaskRedirected,
    TasksFailed,
    TasksGivenBack,
)
from loom.resources import Request
from loom.wire.codec import encode

CLIENT, OTHER = 1, 2
W1, W2 = 11, 12
HUGE = 2**64 - 1
RESULT = Row(result=True)


@pytest.fixture
def bench() -> JournalBench:
    bench = JournalBench()
    bench.client(CLIENT)
    bench.worker(W1)
    return bench


def refused(bench: JournalBench, chunk: object) -> str:
    """Why a chunk is; nothing has come of it."""
    n_kinds = len(bench.journal)
    said = bench.say(CLIENT, SubmitChunk(bench.seq(CLIENT), chunk, []))  # type: ignore[arg-type]
    assert [type(fact).__name__ for fact in bench.journal[n_kinds:]] == ["SessionEnded"]
    assert not said.to.get(W1) or not said.tasks(W1)
    return said.closed[CLIENT]


class TestPlans:
    rows = (Row(), Row([0]), Row([0, 1], result=True))

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"consumers": array("I", [3, 1, 0]).tobytes()}, "fewer consumers"),
            ({"consumers": array("I", [1, 1, 0]).tobytes()}, "more consumers"),
            ({"consumers": array("I", [2, 1, 1]).tobytes()}, "fewer consumers"),
            ({"flags": b"\0\0\0"}, "is nobody's"),
            ({"plan_first": 1}, "a plan that begins at 1"),
            ({"first": 1}, "begins at 1"),
            ({"inputs": numbers(0, 0, 2)}, "not there"),
            ({"inputs": numbers(0, 0, HUGE)}, "not there"),
            ({"inputs": numbers(1, 0, 1)}, "not there"),
            ({"inputs": numbers(0, 0, 1, 1)}, "last offsets"),
            ({"input_ends": array("I", [0, 3, 1]).tobytes()}, "ascend"),
            ({"config_ends": array("I", [1, 2, 4]).tobytes()}, "last offsets"),
            ({"levels": b""}, "differ in length"),
            ({"rules_of": b"\0\0"}, "differ in length"),
            ({"rules_of": bytes(6)}, "one of its tables"),
            ({"symbol_of": b"\1\0" * 3}, "one of its tables"),
            ({"symbols": ["x"] * 3000}, "a table"),
            ({"requests": [Request(1, (("m" * 5000, 1),))]}, "a task asks for"),
            (
                {"checkpoint_rows": array("I", [2, 2]).tobytes(), "checkpoint_paths": [b"/a", b"/b"]},
                "order of its rows",
            ),
            ({"checkpoint_rows": array("I", [3]).tobytes(), "checkpoint_paths": [b"/a"]}, "do not match its rows"),
            ({"checkpoint_rows": array("I", [2]).tobytes(), "checkpoint_paths": [b"a"]}, "cannot be at"),
            ({"checkpoint_rows": array("I", [2]).tobytes(), "checkpoint_paths": [b"/a\0"]}, "cannot be at"),
            ({"flags": b"\1" * 3000}, "3000 tasks"),
        ],
    )
    def test_one_that_the_builders_do_not_make(self, bench: JournalBench, changes: dict[str, Any], why: str) -> None:
        assert why in refused(bench, replace(chunk_of(self.rows), **changes))

    def test_another_plan_in_the_middle_of_one(self, bench: JournalBench) -> None:
        bench.submit(CLIENT, [Row()], more={0: 1}, whole=False)
        assert "begins at 1, not at 0" in refused(bench, chunk_of([RESULT], 1))

    def test_consumers_in_chunks_that_follow_are_counted(self, bench: JournalBench) -> None:
        bench.submit(CLIENT, [Row()], more={0: 2}, whole=False)
        bench.submit(CLIENT, [Row([0], result=True)], 1, plan_first=0, whole=False)
        assert "fewer consumers" in refused(bench, chunk_of([RESULT], 2, 0))

    def test_a_server_that_starts_again_goes_on_counting(self, bench: JournalBench) -> None:
        bench.submit(CLIENT, [Row()], more={0: 1}, whole=False)
        again = bench.restart()
        again.resume(CLIENT, 1)
        again.submit(CLIENT, [Row([0], result=True)], 1, plan_first=0, whole=False)
        third = chunk_of([Row([0], result=True)], 2, 0)
        assert "more consumers" in again.say(CLIENT, SubmitChunk(again.seq(CLIENT), third, [])).closed[CLIENT]


@pytest.mark.parametrize(
    "message",
    [Release(2, numbers(0, 0), 0), Release(2, numbers(0, 7), 0), CancelResults(2, numbers(0, 0)), SetTrace(2, b"/a\0")],
)
def test_a_command_is_done_as_a_whole_or_not_at_all(bench: JournalBench, message: Release) -> None:
    bench.submit(CLIENT, [RESULT])
    n_facts = len(bench.journal)
    assert CLIENT in bench.say(CLIENT, message).closed
    assert [type(fact).__name__ for fact in bench.journal[n_facts:]] == ["SessionEnded"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "n" * 1000},
        {"name": "two\nlines"},
        {"host": "h" * 1000},
        {"handover": "h" * 1000},
        {"port": 65_536},
        {"extras": [("mem", 1), ("mem", 1)]},
        {"extras": [("", 1)]},
        {"extras": [("x" * 1000, 1)]},
        {"extras": [("mem", HUGE)]},
        {"extras": [(f"x{i}", 1) for i in range(33)]},
        {"symbols": ["x"] * (MAX_KINDS + 1)},
        {"time_left_ms": HUGE},
    ],
)
def test_a_worker_that_cannot_be(changes: dict[str, Any]) -> None:
    bench = JournalBench()
    register = replace(RegisterWorker("w", 1, [("mem", 1)], "host", 1, "", ["x"], 0, (0, 0, 0)), **changes)
    n_facts = len(bench.journal)
    assert W1 in bench.step(LinkUp(W1, "worker"), Received(W1, [register])).closed
    assert len(bench.journal) == n_facts


def test_a_client_that_calls_itself_what_a_terminal_obeys() -> None:
    for who in ("\x1b[2J", "x" * 1000):
        bench = Bench()
        said = bench.step(LinkUp(CLIENT, "client"), Received(CLIENT, [OpenSession(b"token", 0, "", who, False)]))
        assert CLIENT in said.closed


def test_there_are_no_more_numbers_of_sessions() -> None:
    bench = Bench()
    bench.core.clients.next_session = LAST_SESSION
    assert "numbers" in bench.client(CLIENT).one(CLIENT, SessionRefused).reason


def test_a_result_that_is_too_large_to_come_with_the_news(bench: JournalBench) -> None:
    (task,) = bench.submit(CLIENT, [RESULT]).tasks(W1)
    assert W1 in bench.finish(W1, task, packed=bytes(INLINE_RESULT_BYTES + 1)).closed


def test_a_piece_that_is_too_large(bench: JournalBench) -> None:
    (task,) = bench.submit(CLIENT, [RESULT]).tasks(W1)
    bench.finish(W1, task)
    bench.say(CLIENT, RelayFetch(bench.seq(CLIENT), 0))
    assert W1 in bench.say(W1, RelayPiece(task.task, b"", bytes(RELAY_PIECE_BYTES + 1), False, "")).closed


def test_a_redirection_that_is_no_plan_fails_its_task_alone(bench: JournalBench) -> None:
    """Whatever its columns say, it takes no time and no numbers."""
    plan = chunk_of([Row()], SERVER_MADE)
    ends = array("I", [2, 0] * 1_000_000).tobytes()
    for changes in (
        {"flags": bytes(3000)},
        {"flags": bytes(2_000_000), "input_ends": ends, "inputs": bytes(16)},
        {"consumers": array("I", [1]).tobytes()},
        {"inputs": numbers(HUGE), "input_ends": array("I", [1]).tobytes()},
        {"first": 0},
    ):
        first = bench.core.graph.sessions[1].next_number
        (task,) = bench.submit(CLIENT, [RESULT], first).tasks(W1)
        taken = bench.core.graph.sessions[1].next_server_made
        said = bench.say(W1, TaskRedirected(task.task, task.attempt, replace(plan, **changes)))
        assert not said.closed
        assert "invalid" in said.one(CLIENT, ResultsFailed).results[0].error
        assert bench.core.graph.sessions[1].next_server_made - taken <= 1


def test_answers_that_nobody_has_asked_for(bench: JournalBench) -> None:
    for _ in range(2000):
        assert not bench.say(W1, TasksGivenBack(b"", b"", True)).closed
    bench.worker(W2)
    worker = bench.core.workers[1]
    for _ in range(2000):  # nor is it the end when one never has anything to give
        worker.asked = True
        bench.say(W1, TasksGivenBack(b"", b"", True))
    assert worker.ask_after < bench.now + 1
    assert not bench.say(W2).all(W1, GiveBack)


# -- Some bytes that would cost GiB ------------------------------------------------------------------------------------


def test_a_failure_that_many_results_share_is_told_bit_by_bit(bench: JournalBench) -> None:
    """Here it is as much as 2 GiB."""
    (task,) = bench.submit(CLIENT, [Row(), *[Row([0], result=True)] * 1000]).tasks(W1)
    said = bench.say(W1, TasksFailed([FailedTask(task.task, task.attempt, "é" * MAX_ERROR_CHARS)]))
    told = []
    while said.all(CLIENT, ResultsFailed):
        (message,) = said.all(CLIENT, ResultsFailed)
        told += [failed.number for failed in message.results]
        assert len(message.results) < 40
        if len(told) == 1000:
            break
        assert bench.core.next_deadline() == bench.now
        said = bench.step()
    assert sorted(told) == list(range(1, 1001))
    said = bench.say(CLIENT, *[LocateResult(bench.seq(CLIENT), 1) for _ in range(1000)])
    assert len(said.one(CLIENT, ResultsFailed).results) == 1


def test_sessions_are_told_to_who_reads(bench: JournalBench) -> None:
    bench.open(OTHER, "nightly")
    questions = [ListSessions(bench.seq(CLIENT), "") for _ in range(100)]
    said = bench.step(LinkFull(CLIENT), Received(CLIENT, questions))  # type: ignore[arg-type]
    assert not said.all(CLIENT, Sessions)
    seqs = [answer.seq for answer in bench.step(LinkDrained(CLIENT)).all(CLIENT, Sessions)]
    assert len(seqs) < 10
    while bench.core.next_deadline() == bench.now:
        seqs += [answer.seq for answer in bench.step().all(CLIENT, Sessions)]
    assert seqs == [question.seq for question in questions]
    many = [ListSessions(bench.seq(CLIENT), "") for _ in range(1000)]
    assert "wait for an answer" in bench.step(LinkFull(CLIENT), Received(CLIENT, many)).closed[CLIENT]  # type: ignore[arg-type]


def test_names_of_results_fit_one_answer(bench: JournalBench) -> None:
    bench.open(OTHER, "nightly")
    first = 0
    for _ in range(8):
        names = [(first + i, f"{first + i}".ljust(200, "x")) for i in range(2000)]
        bench.say(OTHER, SubmitChunk(bench.seq(OTHER), chunk_of([RESULT] * 2000, first), names))
        first += 2000
    said = bench.say(CLIENT, ListSessions(bench.seq(CLIENT), ""))
    assert len(encode([said.one(CLIENT, Sessions)])) < 2_000_000


def test_who_asks_for_many_objects_gets_a_few_at_a_time(bench: JournalBench) -> None:
    count = 3 * RELAYS_AT_ONCE
    tasks = bench.submit(CLIENT, [RESULT] * count).tasks(W1)
    while tasks:
        tasks = bench.finish(W1, *tasks).tasks(W1)
    assert all(bench.node(number).state == states.FINISHED for number in range(count))
    said = bench.say(CLIENT, *[RelayFetch(bench.seq(CLIENT), number) for number in range(count)])
    coming = [message.object for message in said.all(W1, RelayObject)]
    assert len(coming) == RELAYS_AT_ONCE
    for _ in range(count):
        said = bench.say(W1, RelayPiece(coming[0], b"", b"all of it", True, ""))
        assert said.one(CLIENT, RelayedObject).piece
        coming = coming[1:] + [message.object for message in said.all(W1, RelayObject)]
        assert len(coming) <= RELAYS_AT_ONCE
    assert not bench.core.relays


def test_copies_of_copies_are_not_made_without_end() -> None:
    bench = Bench()
    bench.client(CLIENT)
    bench.worker(W1, symbols=("t/work", "t/two"))
    copied = Row([1], symbol="t/two")
    rows = [Row(), Row([0], symbol=DGET, cpus=0), copied, Row([2] * 5000, result=True)]
    (task,) = bench.submit(CLIENT, rows).tasks(W1)
    said = bench.finish(W1, task, length=1000)
    assert "more than" in said.one(CLIENT, ResultsFailed).results[0].error
    assert bench.core.graph.sessions[1].n_nodes < 3000


def test_pieces_for_all_cores_that_there_are_said_to_be() -> None:
    bench = Bench()
    bench.client(CLIENT)
    bench.worker(W1)
    for link in range(20, 60):
        bench.worker(link, cpus=MAX_CPUS, symbols=())
    rows = [Row(), Row([0], symbol=DSLICE, cpus=0), Row([1], result=True)]
    (task,) = bench.submit(CLIENT, rows).tasks(W1)
    bench.core.graph.sessions[1].n_made = 3_700_000  # others that there are already
    try:
        said = bench.core.step([Received(W1, [finished(task, length=HUGE)])], bench.now)
    finally:
        bench.core.graph.sessions[1].n_made -= 3_700_000
    assert said
    assert bench.core.graph.sessions[1].n_nodes < 10


def test_kinds_that_no_task_has_are_forgotten() -> None:
    bench = Bench()
    bench.client(CLIENT)
    first = 0
    for _ in range(12):
        rows = [Row(result=True, symbol=f"t/{first + i}") for i in range(1000)]
        bench.submit(CLIENT, rows, first)
        bench.release(CLIENT, *range(first, first + 1000))
        first += 1000
    assert not bench.core.graph.sessions[1].n_nodes
    bench.step()
    kinds = bench.core._kinds
    assert isinstance(kinds, Kinds)
    assert len(kinds._kinds) <= 2 * MAX_KINDS


def test_where_many_inputs_are_is_said_in_messages_that_fit() -> None:
    bench = Bench()
    bench.client(CLIENT)
    bench.worker(W1, cpus=1, symbols=("t/one",))
    count = 20_000
    tasks = []
    for first in range(0, count, 2000):
        tasks += bench.submit(
            CLIENT,
            [Row(symbol="t/one", cpus=0)] * 2000,
            first,
            plan_first=0,
            whole=False,
            more=dict.fromkeys(range(first, first + 2000), 1),
        ).tasks(W1)
    while len(tasks) < count:
        tasks += bench.finish(W1, *tasks[-4096:]).tasks(W1)
    bench.finish(W1, *tasks[-4096:])
    bench.worker(W2, symbols=("t/two",))
    said = bench.submit(CLIENT, [Row(range(count), symbol="t/two", result=True)], count, plan_first=0)
    batches = said.all(W2, RunTasks)
    assert max(len(batch.objects) for batch in batches) < count
    assert sorted(at.object & 0xFFFF_FFFF for batch in batches for at in batch.objects) == list(range(count))
    assert [len(batch.tasks) for batch in batches][-1] == 1
