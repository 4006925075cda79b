"""Sessions with names: one client after the other uses them, and servers that start again know them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from core_builders import Bench, JournalBench, Row, Said, chunk_of, made, numbers

from loom.core import states
from loom.core.events import LinkUp, Received
from loom.facts import SessionEnded
from loom.limits import PATIENCE_S, SESSION_GRACE_S
from loom.messages import (
    Acked,
    CancelResults,
    CloseSession,
    FailedTask,
    ForgetSession,
    GetStats,
    LeaveSession,
    ListSessions,
    OpenSession,
    RelayFetch,
    ResultsFailed,
    ResultsReady,
    SessionOpened,
    SessionRefused,
    Sessions,
    SetTrace,
    SubmitChunk,
    TasksFailed,
    Terminate,
    WriteTrace,
)

A, B, C, W1 = 1, 2, 3, 11
RESULT = Row(result=True)


@pytest.fixture(params=[Bench, JournalBench], ids=["without", "with journal"])
def bench(request: pytest.FixtureRequest) -> Bench:
    make: Callable[[], Bench] = request.param
    bench = make()
    bench.worker(W1, cpus=8)
    return bench


@pytest.fixture
def journaled() -> JournalBench:
    bench = JournalBench()
    bench.worker(W1, cpus=8)
    return bench


def submit(bench: Bench, link: int, rows: list[Row], first: int = 0, names: str = "", **kwargs: object) -> Said:
    """`names`: a letter for each result, a dot for one without a name."""
    given = [(first + row, name) for row, name in enumerate(names) if name != "."]
    chunk = chunk_of(rows, first, **kwargs)  # type: ignore[arg-type]
    return bench.say(link, SubmitChunk(bench.seq(link), chunk, given))


def leave(bench: Bench, link: int) -> Said:
    return bench.say(link, LeaveSession(bench.seq(link)))


def listing(bench: Bench, link: int, end: str = "") -> Sessions:
    return bench.say(link, ListSessions(bench.seq(link), end)).one(link, Sessions)


# -- One after the other ----------------------------------------------------------------------------------------------


def test_a_named_session_is_new_at_first(bench: Bench) -> None:
    opened = bench.open(A, "nightly").one(A, SessionOpened)
    assert (opened.session, opened.applied_seq, opened.next_number, opened.names) == (1, 0, 0, [])
    assert opened.patience_s == (PATIENCE_S if isinstance(bench, JournalBench) else SESSION_GRACE_S)


def test_names_of_sessions_are_told_apart(bench: Bench) -> None:
    assert bench.open(A, "one").one(A, SessionOpened).session == 1
    assert bench.open(B, "other").one(B, SessionOpened).session == 2


def test_whoever_takes_it_up_has_what_has_a_name(bench: Bench) -> None:
    bench.open(A, "nightly")
    tasks = submit(bench, A, [RESULT, RESULT, RESULT, RESULT], names="xy.z").tasks(W1)
    bench.finish(W1, tasks[0], tasks[2])
    bench.say(W1, TasksFailed([FailedTask(tasks[1].task, tasks[1].attempt, "no")]))
    leave(bench, A)
    assert not bench.has(2), "nobody can ever ask for it"
    said = bench.open(B, "nightly")
    opened = said.one(B, SessionOpened)
    assert (opened.session, opened.applied_seq, opened.next_number) == (1, 2, 4)
    assert opened.names == [(0, "x"), (1, "y"), (3, "z")]
    assert [one.number for one in said.one(B, ResultsReady).results] == [0]
    assert [one.error for one in said.one(B, ResultsFailed).results] == ["no"]
    said = bench.finish(W1, tasks[3])
    assert [one.number for one in said.one(B, ResultsReady).results] == [3]
    submit(bench, B, [Row([0, 3], result=True)], 4)
    assert bench.node(4).state == states.ASSIGNED


def test_leaving_is_acknowledged_and_the_link_closed(bench: Bench) -> None:
    bench.open(A, "nightly")
    submit(bench, A, [RESULT], names="x")
    said = leave(bench, A)
    assert said.one(A, Acked).seq == 2
    assert A in said.closed
    assert A not in bench.core.peers


def test_leaving_twice_in_one_breath(bench: Bench) -> None:
    bench.open(A, "nightly")
    said = bench.say(A, LeaveSession(bench.seq(A)), LeaveSession(bench.seq(A)), GetStats(bench.seq(A)))
    assert said.all(A, Acked) == [Acked(1)]


def test_leaving_again_when_the_acknowledgement_was_lost(bench: Bench) -> None:
    bench.open(A, "nightly")
    submit(bench, A, [RESULT], names="x")
    leave(bench, A)
    bench.resume(4, 1, token=b"token 1")
    said = bench.say(4, LeaveSession(2))
    assert said.one(4, Acked).seq == 2
    assert 4 in said.closed
    assert bench.has(0)


def test_leaving_a_session_without_a_name_ends_it(bench: Bench) -> None:
    bench.client(A)
    bench.submit(A, [RESULT])
    assert A in leave(bench, A).closed
    assert not bench.core.graph.sessions


def test_closing_ends_it(bench: Bench) -> None:
    bench.open(A, "nightly")
    submit(bench, A, [RESULT], names="x")
    said = bench.say(A, CloseSession(bench.seq(A)))
    assert said.one(W1, ForgetSession).session == 1
    assert bench.open(B, "nightly").one(B, SessionOpened).session == 2


def test_it_outlives_its_client(bench: Bench) -> None:
    bench.open(A, "nightly")
    submit(bench, A, [RESULT], names="x")
    bench.down(A)
    bench.step(after_s=100_000.0)
    assert bench.open(B, "nightly").one(B, SessionOpened).names == [(0, "x")]


# -- Taken over -------------------------------------------------------------------------------------------------------


def test_one_that_is_in_use_is_refused(bench: Bench) -> None:
    bench.open(A, "nightly")
    refused = bench.open(B, "nightly").one(B, SessionRefused)
    assert "is used by client 1; with take_over=True" in refused.reason
    submit(bench, A, [RESULT])
    assert bench.has(0), "the first client has not noticed"
    bench.down(B)


def test_one_that_is_in_use_is_taken_over(bench: Bench) -> None:
    bench.open(A, "nightly")
    submit(bench, A, [RESULT, RESULT], names="x")
    said = bench.open(B, "nightly", take_over=True)
    assert said.one(A, SessionRefused).reason == "client 2 has taken the session over"
    assert said.closed == {A: "its session was taken over"}
    assert said.one(B, SessionOpened).names == [(0, "x")]
    assert not bench.has(1)
    assert "taken it up" in bench.resume(4, 1, token=b"token 1").one(4, SessionRefused).reason
    submit(bench, B, [RESULT], 2)


def test_what_the_former_client_says_in_the_same_turn(bench: Bench) -> None:
    bench.open(A, "nightly")
    opening = OpenSession(b"token 2", 0, "nightly", "client 2", True)
    late = [SubmitChunk(bench.seq(A), chunk_of([RESULT]), []), CloseSession(bench.seq(A))]
    bench.step(LinkUp(B, "client"), Received(B, [opening]), Received(A, [*late]))
    assert not bench.core.graph.sessions[1].n_nodes


def test_a_plan_that_is_half_there_is_given_up(bench: Bench) -> None:
    """What was to have consumers is let go; the numbers after it are free."""
    bench.open(A, "nightly")
    submit(bench, A, [Row(), Row(), RESULT, Row([0], result=True)], names="..x.", more={0: 1, 1: 3}, whole=False)
    opened = bench.open(B, "nightly", take_over=True).one(B, SessionOpened)
    assert (opened.next_number, opened.names) == (4, [(2, "x")])
    assert [bench.has(i) for i in range(4)] == [False, False, True, False]
    submit(bench, B, [Row(), Row([2, 4], result=True)], 4)
    assert bench.node(5).state in states.UNFINISHED


def test_a_cancelled_result_with_a_name_is_told(bench: Bench) -> None:
    bench.open(A, "nightly")
    submit(bench, A, [RESULT, RESULT], names="x.")
    bench.say(A, CancelResults(bench.seq(A), numbers(0, 1)))
    leave(bench, A)
    assert not bench.has(1)
    said = bench.open(B, "nightly")
    assert [(one.number, one.error) for one in said.one(B, ResultsFailed).results] == [(0, "cancelled")]
    bench.release(B, 0)
    assert not bench.core.graph.sessions[1].n_nodes


def test_a_name_is_free_again_when_its_result_was_released(bench: Bench) -> None:
    bench.open(A, "nightly")
    submit(bench, A, [RESULT], names="x")
    bench.release(A, 0)
    submit(bench, A, [RESULT], 1, names="x")
    leave(bench, A)
    assert bench.open(B, "nightly").one(B, SessionOpened).names == [(1, "x")]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([RESULT], [(1, "x")]),
        ([Row()], [(0, "x")]),
        ([RESULT] * 2, [(0, "x"), (1, "x")]),
        ([RESULT], [(0, "x"), (0, "y")]),
    ],
)
def test_names_that_make_no_sense(bench: Bench, rows: list[Row], names: list[tuple[int, str]]) -> None:
    bench.open(A, "nightly")
    assert A in bench.say(A, SubmitChunk(bench.seq(A), chunk_of(rows), names)).closed
    assert not bench.core.graph.sessions[1].names
    assert not bench.core.graph.sessions[1].n_nodes


def test_streams_under_way_to_the_former_client_are_not_the_next_ones(bench: Bench) -> None:
    bench.open(A, "nightly")
    (task,) = submit(bench, A, [RESULT], names="x").tasks(W1)
    bench.finish(W1, task)
    bench.say(A, RelayFetch(bench.seq(A), 0))
    bench.open(B, "nightly", take_over=True)
    assert len(bench.core.relays) == 1, "it is swallowed to its end"
    assert not bench.down(W1).to.get(A)
    assert len(bench.core.relays) == 0


@pytest.mark.parametrize("how", ["leave", "over", "away"])
def test_a_trace_ends_with_the_client_that_wanted_it(bench: Bench, how: str) -> None:
    bench.open(A, "nightly")
    assert bench.say(A, SetTrace(bench.seq(A), b"/trace")).one(W1, WriteTrace).path == b"/trace"
    if how == "leave":
        said = leave(bench, A)
    else:
        if how == "away":
            bench.down(A)
        said = bench.open(B, "nightly", take_over=True)
    assert said.one(W1, WriteTrace).path == b""
    assert bench.core.graph.facts is None


# -- Lists ------------------------------------------------------------------------------------------------------------


def test_sessions_with_names_are_listed(bench: Bench) -> None:
    bench.open(A, "one")
    submit(bench, A, [Row(), Row([0], result=True)], names=".x")
    bench.open(B, "other")
    bench.down(B)
    bench.client(C)
    infos = [(i.session, i.name, i.who, i.n_tasks, i.n_unfinished, i.names) for i in listing(bench, C).sessions]
    assert infos == [(1, "one", "client 1", 2, 2, ["x"]), (2, "other", "", 0, 0, [])]


def test_ending_the_session_of_another_client(bench: Bench) -> None:
    bench.open(A, "one")
    submit(bench, A, [RESULT])
    bench.client(C)
    said = bench.say(C, ListSessions(bench.seq(C), "one"))
    assert said.one(C, Sessions).ended
    assert said.one(C, Sessions).sessions == []
    assert said.one(A, SessionRefused).reason == "the session was ended from outside"
    assert A in said.closed
    assert said.one(W1, ForgetSession).session == 1
    assert not listing(bench, C, end="one").ended
    assert bench.resume(4, 1, token=b"token 1").all(4, SessionRefused)


def test_ending_a_session_again_when_the_answer_was_lost(bench: Bench) -> None:
    """Another one that has the name now is not ended."""
    bench.open(A, "one")
    bench.down(A)
    bench.client(C)
    bench.say(C, ListSessions(bench.seq(C), "one"))
    bench.open(A, "one")
    bench.resume(4, 0, session=2)
    said = bench.say(4, ListSessions(1, "one"))
    assert said.one(4, Sessions).ended
    assert [info.name for info in said.one(4, Sessions).sessions] == ["one"]


def test_ones_own_session_cannot_be_ended_so(bench: Bench) -> None:
    bench.open(A, "one")
    assert A in bench.say(A, ListSessions(bench.seq(A), "one")).closed


# -- Servers that start again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compact", [False, True])
def test_a_named_session_is_there_after_a_restart(journaled: JournalBench, compact: bool) -> None:
    journaled.open(A, "nightly")
    (task,) = submit(journaled, A, [RESULT], names="x").tasks(W1)
    journaled.finish(W1, task)
    again = journaled.restart(compact=compact)
    again.step(after_s=100_000.0)
    assert again.core.graph.sessions[1].who == "client 1"
    said = again.open(B, "nightly")
    assert said.one(B, SessionOpened).names == [(0, "x")]
    assert again.open(C, "nightly").one(C, SessionRefused)


def test_its_client_comes_back_after_a_restart(journaled: JournalBench) -> None:
    """Commands that leave nothing in the journal are counted by the client."""
    journaled.open(A, "nightly")
    (task,) = submit(journaled, A, [RESULT], names="x").tasks(W1)
    journaled.say(A, GetStats(journaled.seq(A)), ListSessions(journaled.seq(A), ""))
    again = journaled.restart()
    assert again.core.graph.sessions[1].applied_seq == 1
    said = again.resume(A, 3, token=b"token 1")
    assert said.one(A, SessionOpened).applied_seq == 3
    again.come_back(W1, 1, [made(task)])
    assert [info.who for info in listing(again, A).sessions] == ["client 1"]
    submit(again, A, [RESULT], 1)


def test_who_takes_it_up_when_those_before_left_nothing_in_the_journal(journaled: JournalBench) -> None:
    journaled.open(A, "nightly")
    journaled.say(A, GetStats(journaled.seq(A)), GetStats(journaled.seq(A)))
    leave(journaled, A)
    assert journaled.open(B, "nightly").one(B, SessionOpened).applied_seq == 3
    again = journaled.restart()
    assert again.resume(B, 3, token=b"token 2").one(B, SessionOpened).applied_seq == 3
    submit(again, B, [RESULT])
    assert again.has(0)


def test_a_token_from_before_it_was_taken_up_is_void_after_a_restart(journaled: JournalBench) -> None:
    journaled.open(A, "nightly")
    journaled.open(B, "nightly", take_over=True)
    again = journaled.restart()
    assert again.resume(A, 0, token=b"token 1").one(A, SessionRefused)
    assert again.resume(B, 0, token=b"token 2").one(B, SessionOpened)


def test_a_take_over_that_was_not_written_down(journaled: JournalBench) -> None:
    """Nobody has been told of it: the former client goes on, with what it had."""
    journaled.open(A, "nightly")
    (task,) = submit(journaled, A, [RESULT]).tasks(W1)
    n_facts = len(journaled.open(B, "nightly", take_over=True).facts)
    again = journaled.restart(without=n_facts)
    again.resume(A, 1, token=b"token 1")
    said = again.come_back(W1, 1, [made(task)])
    assert [one.number for one in said.one(A, ResultsReady).results] == [0]


@pytest.mark.parametrize("how", [CloseSession, LeaveSession, Terminate])
def test_what_ends_a_session_without_a_name_is_written_down(journaled: JournalBench, how: type) -> None:
    journaled.client(A)
    assert SessionEnded(1) in journaled.say(A, how(journaled.seq(A))).facts
    assert not journaled.restart().core.graph.sessions


def test_what_ends_a_server_leaves_named_sessions(journaled: JournalBench) -> None:
    journaled.open(A, "nightly")
    submit(journaled, A, [RESULT], names="x")
    said = journaled.say(A, Terminate(journaled.seq(A)))
    assert said.shutdown
    assert journaled.restart().core.graph.sessions[1].names == {"x": 0}


def test_a_client_without_a_name_has_longer_after_a_restart(journaled: JournalBench) -> None:
    journaled.client(A)
    again = journaled.restart()
    again.step(after_s=29.0)
    assert again.resume(A).all(A, SessionOpened)
    again.down(A)
    again.step(after_s=SESSION_GRACE_S - 1)
    assert again.core.graph.sessions
    again.step(after_s=1.0)
    assert not again.core.graph.sessions
