"""Checkpoints in the server: who writes them, and what waits for that."""

import pytest
from core_builders import Bench, Row, chunk_of, ids, listed

from loom.core import states
from loom.core.events import Received
from loom.core.node import WANTED, WRITING
from loom.ids import SERVER_MADE
from loom.messages import (
    CancelTasks,
    CheckpointWritten,
    CloseSession,
    DropObjects,
    ObjectsHeld,
    RelayPiece,
    ResultsFailed,
    ResultsReady,
    TaskRedirected,
    WriteCheckpoint,
)

CLIENT = 1
W1, W2 = 11, 12
SAVED = b"/saved/0"


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.client(CLIENT)
    bench.worker(W1)
    return bench


def test_a_result_is_told_when_its_checkpoint_is_in_place(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True, checkpoint=SAVED)]).tasks(W1)
    said = bench.finish(W1, task, packed=b"small")
    asked = said.one(W1, WriteCheckpoint)
    assert (asked.object, asked.path) == (ids(0)[0], SAVED)
    assert not said.all(CLIENT, ResultsReady)
    news = bench.say(W1, CheckpointWritten(ids(0)[0], "")).one(CLIENT, ResultsReady)
    assert [result.number for result in news.results] == [0]


def test_consumers_do_not_wait_and_the_object_is_kept_until_it_is_written(bench: Bench) -> None:
    first, second = bench.submit(CLIENT, [Row(cpus=0, checkpoint=SAVED), Row([0], cpus=0, result=True)]).tasks(W1)
    bench.finish(W1, first)
    said = bench.finish(W1, second)
    assert said.one(CLIENT, ResultsReady).results[0].number == 1
    assert not said.all(W1, DropObjects)
    said = bench.say(W1, CheckpointWritten(ids(0)[0], ""))
    assert listed(said.one(W1, DropObjects).objects) == ids(0)


def test_a_checkpoint_that_cannot_be_written_fails_the_task_and_what_is_not_finished_of_the_rest(bench: Bench) -> None:
    rows = [Row(cpus=0, checkpoint=SAVED, result=True), Row([0], cpus=0, result=True), Row([0], cpus=0, result=True)]
    first, second, third = bench.submit(CLIENT, rows).tasks(W1)
    bench.finish(W1, first, second)
    said = bench.say(W1, CheckpointWritten(ids(0)[0], "disk full"))
    failed = said.one(CLIENT, ResultsFailed).results
    assert [(f.number, f.task, f.error) for f in failed] == [(0, 0, "disk full"), (2, 0, "disk full")]
    assert listed(said.one(W1, CancelTasks).tasks) == [third.task]
    assert bench.node(1).state == states.FINISHED
    late = bench.submit(CLIENT, [Row([0], result=True)], first=3, plan_first=3)
    assert late.one(CLIENT, ResultsFailed).results[0].error == "disk full"


def test_a_redirection_that_comes_with_the_failure_of_its_input_fails(bench: Bench) -> None:
    first, second = bench.submit(CLIENT, [Row(cpus=0, checkpoint=SAVED), Row([0], cpus=0, result=True)]).tasks(W1)
    bench.finish(W1, first)
    chunk = chunk_of([Row([0], cpus=0)], first=SERVER_MADE)
    redirected = TaskRedirected(second.task, second.attempt, chunk)
    said = bench.say(W1, CheckpointWritten(ids(0)[0], "disk full"), redirected)
    (failed,) = said.one(CLIENT, ResultsFailed).results
    assert (failed.number, failed.error) == (1, "disk full")


def test_another_holder_writes_it_where_the_first_is_lost(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True, checkpoint=SAVED)]).tasks(W1)
    bench.finish(W1, task)
    bench.worker(W2)
    bench.say(W2, ObjectsHeld(ids(0)[0].to_bytes(8, "little")))
    said = bench.down(W1)
    assert said.one(W2, WriteCheckpoint).path == SAVED
    assert bench.node(0).flags & (WANTED | WRITING) == WANTED | WRITING
    assert bench.say(W2, CheckpointWritten(ids(0)[0], "")).all(CLIENT, ResultsReady)


def test_a_lost_object_is_made_and_written_again(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True, checkpoint=SAVED)]).tasks(W1)
    bench.finish(W1, task)
    said = bench.say(W1, RelayPiece(ids(0)[0], b"", b"", False, "the worker does not have the object"))
    (again,) = said.tasks(W1)
    assert bench.say(W1, CheckpointWritten(ids(0)[0], "")).to == {}  # of the first one: too late
    assert bench.finish(W1, again).one(W1, WriteCheckpoint).path == SAVED


def test_a_released_result_is_still_written(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True, checkpoint=SAVED)]).tasks(W1)
    bench.finish(W1, task)
    assert not bench.release(CLIENT, 0).all(W1, DropObjects)
    bench.say(W1, CheckpointWritten(ids(0)[0], ""))
    assert not bench.core.graph.sessions[1].n_nodes


def test_what_is_kept_for_its_checkpoint_only_is_forgotten_when_it_is_lost(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True, checkpoint=SAVED)]).tasks(W1)
    bench.finish(W1, task)
    bench.release(CLIENT, 0)
    bench.down(W1)
    assert not bench.core.graph.sessions[1].n_nodes


def test_one_fails_in_the_turn_in_which_its_session_ends(bench: Bench) -> None:
    first, _ = bench.submit(CLIENT, [Row(cpus=0, result=True, checkpoint=SAVED), Row([0], result=True)]).tasks(W1)
    bench.finish(W1, first)
    failed = Received(W1, [CheckpointWritten(ids(0)[0], "disk full")])
    bench.step(failed, Received(CLIENT, [CloseSession(bench.seq(CLIENT))]))
    assert not bench.core.graph.sessions
