"""A worker whose server is gone: what it goes on with, what it gives up, what it says when a server is there again."""

from __future__ import annotations

import pytest
from core_builders import listed, numbers
from worker_builders import FUNCTION, INLINE, PROGRAM, UNKNOWN, Bench, S, accepted, at, ids, task

from loom.core import worker_keeping
from loom.core.worker_events import (
    CheckpointDone,
    Condition,
    Done,
    Drain,
    Drop,
    ExecutorLost,
    Failed,
    Fetch,
    Fetched,
    FetchFailed,
    FromServer,
    NotRun,
    ReadBackDone,
    Redirected,
    SaveObject,
    ServerLost,
    Spoilt,
    Stop,
    TasksDone,
    ToServer,
)
from loom.core.worker_tasks import ReadBack, StopProgram
from loom.messages import (
    CancelTasks,
    CheckpointWritten,
    DropObjects,
    FailedTask,
    GiveBack,
    Message,
    ObjectsHeld,
    PlanChunk,
    RecallTasks,
    RunTasks,
    TakeObjects,
    TaskRedirected,
    TasksFailed,
    TasksFinished,
    TasksGivenBack,
    WorkerCondition,
    WorkerInventory,
    WriteCheckpoint,
)

PATIENCE_S = 100
CHUNK = PlanChunk(0, 0, [], [], [], [], b"", b"", b"", b"", b"", b"", b"", b"", b"", b"", b"", b"", [], False)


@pytest.fixture
def bench() -> Bench:
    return Bench(patience_s=PATIENCE_S)


def lost(bench: Bench) -> Bench:
    """Whatever goes on then, nothing is said."""
    return silent(bench.step(ServerLost()))


def silent(bench: Bench) -> Bench:
    assert not bench.all(ToServer)
    return bench


def back(bench: Bench, keeps: bool = True) -> list[Message]:
    """All that the worker says when it is accepted again."""
    bench.say(accepted(2, keeps, PATIENCE_S))
    return [message for effect in bench.all(ToServer) for message in effect.messages]


def offered(bench: Bench) -> tuple[dict[int, tuple[int, int, int]], list[tuple[int, int]]]:
    """Objects (attempt, size, length) and tasks (id, attempt) of an inventory in one part."""
    (inventory,) = [message for message in back(bench) if isinstance(message, WorkerInventory)]
    assert inventory.last
    facts = zip(listed(inventory.object_attempts), listed(inventory.sizes), listed(inventory.lengths), strict=True)
    objects = dict(zip(listed(inventory.objects), facts, strict=True))
    return objects, list(zip(listed(inventory.tasks), listed(inventory.task_attempts), strict=True))


def first_runs(*task_numbers: int) -> list[tuple[int, int]]:
    return [(task_id, 1) for task_id in ids(*task_numbers)]


# -- What stays -------------------------------------------------------------------------------------------------------


def test_objects_and_tasks_that_need_nobody_else_stay(bench: Bench) -> None:
    bench.run(task(0, PROGRAM))
    bench.step(TasksDone([Done(S, 1, 10, 3, 5, None)]))
    bench.run(task(1, PROGRAM, 0), task(2, PROGRAM, 0), task(3, INLINE, 1, 2))
    assert not lost(bench).effects
    assert offered(bench) == ({S: (1, 10, 3)}, first_runs(1, 2, 3))
    assert bench.done(1).started() == ids(2)
    assert bench.done(2).started() == ids(3)
    assert bench.done(3).finished() == ids(1, 2, 3)


def test_what_is_queued_starts_while_nobody_is_there(bench: Bench) -> None:
    bench.run(task(0, PROGRAM), task(1, PROGRAM), task(2, INLINE, 0))
    lost(bench)
    assert silent(bench.done(0, size_bytes=4)).started() == ids(2, 1)
    silent(bench.done(2, size_bytes=5))
    assert offered(bench) == ({S: (1, 4, 0), S | 2: (1, 5, 0)}, first_runs(1))
    assert bench.done(1).finished() == ids(1)


def test_a_chain_at_an_executor_goes_on(bench: Bench) -> None:
    for number in range(100, 300):
        bench.run(task(number, FUNCTION))
        bench.done(number)
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0), task(2, FUNCTION, 1))
    assert bench.started() == ids(0, 1, 2)
    lost(bench)
    silent(bench.done(0, 1))
    objects, runs = offered(bench)
    assert {S, S | 1} <= objects.keys()
    assert runs == first_runs(2)


def test_what_waits_for_others_is_given_up_without_a_word(bench: Bench) -> None:
    bench.run(task(1, PROGRAM), task(2, FUNCTION, 5), task(3, INLINE, 2), task(4, INLINE, 1, 5), at=(at(5, 7),))
    lost(bench)
    assert list(bench.core.tasks) == ids(1)
    assert S | 5 not in bench.core.awaited
    assert bench.step(Fetched(S | 5, 10)).one(Drop).objects == ids(5)
    assert offered(bench) == ({}, first_runs(1))


def test_a_fetch_that_fails_is_not_tried_elsewhere(bench: Bench) -> None:
    bench.run(task(2, FUNCTION, 5), at=(at(5, 7, 8),))
    lost(bench)
    assert not bench.step(FetchFailed(S | 5, True)).effects


def test_what_one_task_waits_for_here_and_elsewhere(bench: Bench) -> None:
    """It waits for a fetch when the task that makes the object is sent here, too; its place is before its input's."""
    bench.run(task(5, INLINE, 1), at=(at(1, 7),))
    bench.run(task(1, PROGRAM, attempt=2))
    lost(bench)
    assert offered(bench) == ({}, [(S | 1, 2)])


def test_a_recalled_task_that_has_lost_its_input_is_stopped(bench: Bench) -> None:
    bench.run(task(0, PROGRAM))
    bench.done(0)
    bench.run(task(1, PROGRAM, 0), task(2, INLINE, 1))
    bench.say(RecallTasks(numbers(S | 1)), DropObjects(numbers(S)))
    assert lost(bench).one(StopProgram).task == S | 1
    assert not bench.core.tasks
    silent(bench.step(Failed(S | 1, 1, "cancelled")))
    assert offered(bench) == ({}, [])


def test_what_has_been_asked_for_is_owed_no_more(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION), task(2, FUNCTION))
    bench.done(0)
    assert bench.say(GiveBack(1)).one(ReadBack)
    lost(bench)
    assert silent(bench.step(ReadBackDone(0, [(S | 2, 1)]))).started() == ids(2)
    assert offered(bench) == ({S: (1, 10, 0)}, first_runs(1, 2))


def test_what_another_was_to_leave_here_is_not_taken(bench: Bench) -> None:
    bench.say(TakeObjects([], [at(5, 7)]))
    lost(bench)
    assert bench.step(Fetched(S | 5, 10)).one(Drop).objects == ids(5)
    assert offered(bench) == ({}, [])


def test_a_checkpoint_that_is_written_meanwhile_is_told_to_whoever_asks_again(bench: Bench) -> None:
    bench.run(task(0, INLINE))
    bench.done(0)
    assert bench.say(WriteCheckpoint(S, b"/path")).one(SaveObject)
    lost(bench)
    silent(bench.step(CheckpointDone(S, "")))
    back(bench)
    assert bench.say(WriteCheckpoint(S, b"/path")).one(SaveObject)
    assert bench.step(CheckpointDone(S, "")).told(CheckpointWritten)


# -- What is known of objects -----------------------------------------------------------------------------------------


def test_copies_have_the_attempt_that_made_them(bench: Bench) -> None:
    bench.run(task(5, PROGRAM, 1, 2), at=(at(1, 7, size_bytes=100, attempt=65537, length=9), at(2, 7, attempt=3)))
    bench.step(Fetched(S | 1, 100), Fetched(S | 2, 10))
    lost(bench)
    assert offered(bench) == ({S | 1: (65537, 100, 9), S | 2: (3, 10, 0)}, first_runs(5))


def test_a_copy_has_the_attempt_that_was_named_when_it_was_asked_for(bench: Bench) -> None:
    bench.run(task(5, PROGRAM, 1), at=(at(1, 7),))
    bench.run(task(6, PROGRAM, 1), at=(at(1, 8, attempt=2),))
    bench.step(Fetched(S | 1, 10))
    lost(bench)
    assert offered(bench)[0] == {S | 1: (1, 10, 0)}


def test_nothing_is_known_of_objects_that_are_gone(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, INLINE), task(2, INLINE))
    bench.step(TasksDone([Done(S | n, 1, 10, 4, 5, None) for n in range(3)]))
    bench.say(DropObjects(numbers(S)), CancelTasks(numbers(S | 1)))
    bench.say(RunTasks([], [], [], [task(2, PROGRAM, attempt=2)]))
    assert not bench.core.objects.attempts
    assert not bench.core.objects.lengths


def test_equal_attempts_take_no_memory_of_their_own(bench: Bench) -> None:
    bench.run(task(0, INLINE, attempt=70_000), task(1, INLINE, attempt=int("70000")))
    bench.step(TasksDone([Done(S | n, int("70000"), 10, 0, 5, None) for n in range(2)]))
    first, second = bench.core.objects.attempts.values()
    assert first is second


def test_without_a_journal_nothing_is_kept_and_nothing_known() -> None:
    bench = Bench()
    bench.run(task(0, INLINE), task(1, PROGRAM))
    bench.step(TasksDone([Done(S, 1, 10, 4, 5, None)]))
    assert not bench.core.objects.attempts
    lost(bench)
    assert bench.one(Drop).objects == ids(0)
    assert bench.one(StopProgram).task == S | 1
    assert bench.core.next_deadline() is None
    assert back(bench) == [WorkerInventory(b"", b"", b"", b"", b"", b"", True)]


# -- What happens meanwhile -------------------------------------------------------------------------------------------


def test_finishes_that_were_not_told_yet_are_seen_from_the_inventory(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, PROGRAM, 0), task(2, INLINE))
    bench.done(0)
    bench.step(TasksDone([Done(S | 2, 1, 10, 0, 5, b"packed")]), ServerLost())
    silent(bench.step(after_s=1))
    said = back(bench)
    assert [type(message) for message in said] == [WorkerInventory]
    assert bench.core.held.keys() == {S, S | 2}


def test_failures_and_redirections_are_told_after_an_inventory_that_names_them_first(bench: Bench) -> None:
    bench.run(*[task(n, PROGRAM) for n in range(4)], task(4, INLINE, 0), task(5, INLINE, 1))
    bench.step(Failed(S, 1, "broken"), ServerLost())
    silent(bench.step(Redirected(S | 1, 1, CHUNK)))
    assert list(bench.core.tasks) == ids(2, 3)
    assert not bench.core.awaited
    said = back(bench)
    assert [type(message) for message in said] == [WorkerInventory, TasksFailed, TaskRedirected]
    inventory, failed, redirected = said
    assert isinstance(inventory, WorkerInventory)
    assert listed(inventory.tasks) == ids(0, 1, 2, 3)
    assert listed(inventory.task_attempts) == [1, 1, 1, 1]
    assert failed == TasksFailed([FailedTask(S, 1, "broken")])
    assert redirected == TaskRedirected(S | 1, 1, CHUNK)
    bench.done(2)
    assert not lost(bench).core.reports.failures
    assert offered(bench)[1] == first_runs(3)


def test_a_process_that_dies_meanwhile(bench: Bench) -> None:
    bench.run(task(0, FUNCTION))
    lost(bench)
    silent(bench.step(ExecutorLost(0, (S, 1), "killed")))
    assert [f.error for message in back(bench) if isinstance(message, TasksFailed) for f in message.tasks] == ["killed"]


def test_a_failure_of_an_earlier_attempt_is_no_news(bench: Bench) -> None:
    again = FromServer([RunTasks([], [], [], [task(0, PROGRAM, attempt=2)])])
    bench.run(task(0, UNKNOWN))
    bench.say(RunTasks([], [], [], [task(1, UNKNOWN)]))
    bench.run(task(0, PROGRAM))
    bench.step(Failed(S, 1, "broken"), again, ServerLost())
    said = back(bench)
    assert [type(message) for message in said] == [WorkerInventory]
    assert list(bench.core.tasks) == ids(0)


def test_an_object_that_is_spoilt_meanwhile_is_not_offered(bench: Bench) -> None:
    bench.run(task(0, PROGRAM))
    bench.done(0)
    bench.run(task(1, PROGRAM, 0), task(2, PROGRAM, 0), task(3, PROGRAM))
    lost(bench)
    assert silent(bench.step(Spoilt(S))).one(Drop).objects == ids(0)
    assert list(bench.core.tasks) == ids(1, 3)
    assert offered(bench) == ({}, first_runs(3))
    assert bench.one(StopProgram).task == S | 1


def test_what_did_not_follow_waits_or_is_given_up(bench: Bench) -> None:
    for number in range(100, 300):
        bench.run(task(number, FUNCTION))
        bench.done(number)
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0))
    lost(bench)
    silent(bench.step(Failed(S, 1, "broken"), NotRun(0, [(S | 1, 1)])))
    assert not bench.core.tasks
    assert offered(bench)[1] == first_runs(0)


def test_the_condition_of_the_store_is_said_after_the_inventory(bench: Bench) -> None:
    lost(bench)
    silent(bench.step(Condition(True, False)))
    assert [type(message) for message in back(bench)] == [WorkerInventory, WorkerCondition]


# -- The inventory ----------------------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_a_long_inventory_comes_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_keeping, "INVENTORY_ITEMS", 2)
    bench.run(*[task(n, INLINE) for n in range(5)])
    bench.done(*range(5))
    bench.run(task(5, PROGRAM), task(6, PROGRAM), task(7, PROGRAM))
    lost(bench)
    parts = [message for message in back(bench) if isinstance(message, WorkerInventory)]
    assert [listed(part.objects) for part in parts] == [ids(0, 1), ids(2, 3), ids(4)]
    assert [listed(part.tasks) for part in parts] == [ids(5, 6), ids(7), []]
    assert [part.last for part in parts] == [False, False, True]


def test_a_worker_with_nothing_says_so(bench: Bench) -> None:
    lost(bench)
    assert back(bench) == [WorkerInventory(b"", b"", b"", b"", b"", b"", True)]


def test_what_the_server_does_not_want_is_dropped_as_ever(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, PROGRAM), task(2, PROGRAM))
    bench.done(0)
    lost(bench)
    back(bench)
    bench.done(1)
    bench.say(DropObjects(numbers(S)), CancelTasks(numbers(S | 1, S | 2)))
    assert bench.one(Drop).objects == ids(0, 1)
    assert bench.one(StopProgram).task == S | 2
    assert not bench.core.held
    assert not bench.core.objects.attempts


def test_kinds_and_holders_are_named_anew(bench: Bench) -> None:
    lost(bench)
    back(bench)
    fetching = bench.say(RunTasks([], [], [at(1, 7)], []))
    assert not fetching.all(Fetch)


# -- Without a server that keeps --------------------------------------------------------------------------------------


def test_a_server_that_keeps_nothing_voids_everything(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, PROGRAM), task(2, PROGRAM))
    bench.done(0)
    lost(bench)
    silent(bench.step(Failed(S | 1, 1, "broken")))
    assert back(bench, keeps=False) == []
    assert bench.one(Drop).objects == ids(0)
    assert bench.one(StopProgram).task == S | 2
    assert not bench.core.tasks
    assert not bench.step(Failed(S | 2, 1, "cancelled")).told(TasksFailed)


def test_patience_ends(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, PROGRAM), task(2, PROGRAM))
    bench.done(0)
    lost(bench)
    silent(bench.step(Failed(S | 1, 1, "broken")))
    assert bench.core.next_deadline() == bench.now + PATIENCE_S
    assert not bench.step(after_s=PATIENCE_S - 1).effects
    silent(bench.step(after_s=1))
    assert bench.one(Drop).objects == ids(0)
    assert bench.one(StopProgram).task == S | 2
    silent(bench.step(Failed(S | 2, 1, "cancelled")))
    assert bench.core.next_deadline() is None
    assert offered(bench) == ({}, [])


def test_a_second_loss_before_the_server_has_accepted_us_changes_nothing(bench: Bench) -> None:
    bench.run(task(0, PROGRAM))
    lost(bench)
    until = bench.now + PATIENCE_S
    bench.step(after_s=PATIENCE_S / 2)
    assert not lost(bench).effects
    assert bench.core.next_deadline() == until
    assert offered(bench) == ({}, first_runs(0))


def test_a_second_loss_after_that_does(bench: Bench) -> None:
    bench.run(task(0, PROGRAM))
    lost(bench)
    bench.step(after_s=PATIENCE_S / 2)
    back(bench)
    assert bench.core.next_deadline() is None
    lost(bench)
    assert bench.core.next_deadline() == bench.now + PATIENCE_S
    assert offered(bench) == ({}, first_runs(0))


def test_a_worker_that_is_leaving_does_not_wait(bench: Bench) -> None:
    bench.run(task(0, PROGRAM))
    bench.step(Drain(bench.now + 10))
    silent(bench.step(ServerLost()))
    assert bench.one(StopProgram).task == S
    assert bench.one(Stop)
    assert not bench.core.tasks


def test_nor_does_one_that_is_told_to_leave_then(bench: Bench) -> None:
    bench.run(task(0, PROGRAM))
    lost(bench)
    assert silent(bench.step(Drain(bench.now + 10))).one(Stop)
    assert bench.one(StopProgram).task == S
    assert bench.core.next_deadline() is None


def test_life_goes_on_as_before(bench: Bench) -> None:
    bench.run(task(0, PROGRAM), task(1, PROGRAM, 0))
    lost(bench)
    back(bench)
    assert bench.done(0).told(TasksFinished) == []  # it can wait: only this worker goes on with it
    bench.say(RecallTasks(numbers(S | 1)))
    assert bench.told(TasksGivenBack) == []
    assert bench.step(Failed(S | 1, 1, "broken")).told(TasksFailed)
    assert bench.told(ObjectsHeld) == []
