"""Sessions on one server are kept apart, and workers from what is not theirs."""

from __future__ import annotations

import pytest
from core_builders import SERVER, Bench, JournalBench, Row, Said, chunk_of, finished, ids, inventory, listed, numbers
from msgspec.structs import replace

from loom.core import states
from loom.core.events import LinkUp, Received
from loom.ids import task_id
from loom.messages import (
    CancelResults,
    DropObjects,
    FailedTask,
    ListSessions,
    LocateResult,
    OpenSession,
    RelayedObject,
    RelayFetch,
    RelayObject,
    RelayPiece,
    Release,
    ResumeSession,
    RunTask,
    SessionOpened,
    SessionRefused,
    Sessions,
    SubmitChunk,
    TasksFailed,
    TasksGivenBack,
    WorkerAccepted,
)

MINE, THEIRS, NEW = 1, 2, 3
W1, W2 = 11, 12
RESULT = Row(result=True)


@pytest.fixture
def bench() -> Bench:
    """Three clients; the last one's result is at the first worker."""
    bench = Bench()
    for link in (MINE, 9, THEIRS):
        bench.client(link)
    bench.worker(W1)
    bench.finish(W1, *bench.submit(THEIRS, [RESULT]).tasks(W1))
    return bench


def their_object(bench: Bench) -> int:
    return bench.node(0, session=3).id


def test_a_number_that_would_make_the_id_of_anothers_object(bench: Bench) -> None:
    """While that is on its way to its own client."""
    assert bench.say(THEIRS, RelayFetch(bench.seq(THEIRS), 0)).one(W1, RelayObject).object == their_object(bench)
    number = their_object(bench) ^ task_id(1, 0)
    assert task_id(1, number) == their_object(bench)
    said = bench.say(MINE, RelayFetch(bench.seq(MINE), number))
    assert MINE in said.closed
    said = bench.say(W1, RelayPiece(their_object(bench), b"", b"secret", True, ""))
    assert said.one(THEIRS, RelayedObject).piece == b"secret"
    assert MINE not in said.to


def test_anothers_numbers_are_no_ones_own(bench: Bench) -> None:
    for link, message in (
        (MINE, Release(1, numbers(0), 0)),
        (NEW, CancelResults(1, numbers(0))),
    ):
        if link == NEW:
            bench.client(NEW)
        assert link in bench.say(link, message).closed
    assert bench.node(0, session=3).state == states.FINISHED
    bench.client(4)
    said = bench.say(4, LocateResult(1, 0), RelayFetch(2, 0))
    assert said.one(4, RelayedObject).error
    assert not said.closed
    assert 4 in bench.say(4, SubmitChunk(3, chunk_of([Row([task_id(3, 0)], result=True)]), [])).closed


@pytest.mark.parametrize("token", [b"", b"guess", b"toke", b"token\0"])
def test_a_guessed_token_takes_nothing_over(bench: Bench, token: bytes) -> None:
    said = bench.resume(NEW, session=3, token=token)
    assert said.one(NEW, SessionRefused)
    assert not said.closed
    assert bench.core.graph.sessions[3].link == THEIRS


@pytest.mark.parametrize("token", [b"", b"t" * 65])
def test_a_session_has_a_secret_of_some_length(bench: Bench, token: bytes) -> None:
    said = bench.step(LinkUp(NEW, "client"), Received(NEW, [OpenSession(token, 0, "", "", False)]))
    assert NEW in said.closed
    assert len(bench.core.graph.sessions) == 3


def test_a_session_without_a_name_is_ended_by_nobody_else(bench: Bench) -> None:
    said = bench.say(MINE, ListSessions(bench.seq(MINE), ""))
    assert said.one(MINE, Sessions).sessions == []
    assert set(bench.core.graph.sessions) == {1, 2, 3}


def test_what_a_client_acknowledges_is_no_harm_to_who_follows(bench: Bench) -> None:
    bench.down(MINE)
    assert NEW in bench.step(LinkUp(NEW, "client"), Received(NEW, [ResumeSession(1, b"token", 0, 2**64 - 1)])).closed
    assert bench.resume(4).one(4, SessionOpened).applied_seq == 0


@pytest.mark.parametrize("with_journal", [False, True])
def test_a_named_session_outlives_a_client_that_breaks_the_protocol(with_journal: bool) -> None:
    bench = JournalBench() if with_journal else Bench()
    bench.open(MINE, "nightly")
    bench.worker(W1)
    said = bench.say(MINE, SubmitChunk(bench.seq(MINE), chunk_of([RESULT, RESULT]), [(1, "kept")]))
    (first,) = said.tasks(W1)
    said = bench.finish(W1, first)
    assert MINE in bench.say(MINE, Release(bench.seq(MINE), numbers(0, 0), 0)).closed
    assert not bench.has(0)
    assert bench.has(1)
    assert bench.resume(NEW, token=b"token 1").one(NEW, SessionRefused)
    assert bench.open(4, "nightly").one(4, SessionOpened).names == [(1, "kept")]
    if isinstance(bench, JournalBench):
        again = bench.restart()
        assert again.resume(5, token=b"token 1").one(5, SessionRefused)
        assert again.resume(6, 1, token=b"token 4").one(6, SessionOpened).names == [(1, "kept")]


class TestWorkers:
    def given(self, bench: Bench) -> RunTask:
        """A task of the first worker; the second one is there, too."""
        (task,) = bench.submit(MINE, [RESULT]).tasks(W1)
        bench.worker(W2)
        return task

    def unchanged(self, bench: Bench, said: Said) -> None:
        assert not said.closed
        node = bench.node(0)
        assert node.state == states.ASSIGNED
        assert node.worker is not None
        assert node.worker.link == W1

    def test_anothers_task(self, bench: Bench) -> None:
        task = self.given(bench)
        self.unchanged(bench, bench.finish(W2, task))
        self.unchanged(bench, bench.say(W2, TasksFailed([FailedTask(task.task, task.attempt, "no")])))
        back = TasksGivenBack(numbers(task.task), numbers(task.attempt), False)
        self.unchanged(bench, bench.say(W2, back))

    @pytest.mark.parametrize("off_by", [-1, 1])
    def test_another_attempt(self, bench: Bench, off_by: int) -> None:
        task = self.given(bench)
        self.unchanged(bench, bench.finish(W1, replace(task, attempt=task.attempt + off_by)))

    def test_anothers_object(self, bench: Bench) -> None:
        bench.worker(W2)
        said = bench.say(W2, RelayPiece(their_object(bench), b"", b"", False, "it is not here"))
        assert not said.to
        assert bench.node(0, session=3).state == states.FINISHED

    def test_nobody_ends_anothers_link_by_saying_that_he_was_it(self, bench: Bench) -> None:
        said = bench.worker(W2, before=(0, 1, 1), name="another")
        assert said.one(W2, WorkerAccepted)
        assert not said.closed

    def test_anothers_pieces_of_an_object(self, bench: Bench) -> None:
        bench.worker(W2)
        bench.say(THEIRS, RelayFetch(bench.seq(THEIRS), 0))
        said = bench.say(W2, RelayPiece(their_object(bench), b"", b"forged", True, ""))
        assert not said.to


def test_attempts_of_an_inventory_are_off_by_one() -> None:
    bench = JournalBench()
    bench.client(MINE)
    bench.worker(W1)
    (task,) = bench.submit(MINE, [RESULT]).tasks(W1)
    bench.finish(W1, task)
    bench.down(W1)
    bench.worker(W2, before=(SERVER, 1, 1))
    forged = inventory([*finished(replace(task, attempt=task.attempt + 1)).tasks])
    said = bench.say(W2, forged)
    assert listed(said.one(W2, DropObjects).objects) == ids(0)
