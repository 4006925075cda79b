"""The worker's brain: what it starts, fetches, reports and gives back, step by step."""

from __future__ import annotations

import pytest
from core_builders import listed, numbers
from worker_builders import FUNCTION, INLINE, PROGRAM, SAME, UNKNOWN, WIDE, Bench, S, at, ids, task

from loom.core.worker_events import (
    Done,
    Drop,
    ExecutorLost,
    ExecutorReady,
    Failed,
    Fetch,
    Fetched,
    FetchFailed,
    FromServer,
    HangUp,
    NotSent,
    ReadBackDone,
    Redirected,
    Relay,
    RunInline,
    ServerLost,
    Spoilt,
    Stop,
    StopProgram,
    TasksDone,
    ToServer,
)
from loom.core.worker_tasks import KillExecutor, ReadBack, RunOnExecutor
from loom.limits import INLINE_TASK_BYTES
from loom.messages import (
    RESULT,
    CancelTasks,
    DropObjects,
    ForgetSession,
    GetStats,
    GiveBack,
    ObjectsHeld,
    PlanChunk,
    RecallTasks,
    RelayObject,
    RelayPiece,
    RunTask,
    RunTasks,
    StopWorker,
    TaskRedirected,
    TasksFailed,
    TasksFinished,
    TasksGivenBack,
)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# -- Running ----------------------------------------------------------------------------------------------------------


def test_a_builtin_runs_in_the_loop_and_a_function_in_an_executor(bench: Bench) -> None:
    assert bench.run(task(0, INLINE), task(1, FUNCTION)).started() == ids(0, 1)
    assert bench.one(RunInline)
    assert bench.one(RunOnExecutor).executor == 0


def test_a_builtin_with_large_inputs_runs_in_an_executor_unless_it_only_shares_them(bench: Bench) -> None:
    bench.run(task(0, FUNCTION))
    bench.done(0, size_bytes=INLINE_TASK_BYTES + 1)
    bench.run(task(1, INLINE, 0), task(2, SAME, 0))
    assert [t.id for t in bench.one(RunOnExecutor).tasks] == ids(1)
    assert [t.id for t in bench.one(RunInline).tasks] == ids(2)


def test_a_task_waits_for_what_is_made_here(bench: Bench) -> None:
    assert bench.run(task(0, INLINE), task(1, INLINE, 0, 0)).started() == ids(0)
    assert bench.done(0).started() == ids(1)


def test_finishes_that_concern_others_are_told_at_once(bench: Bench) -> None:
    bench.run(task(0, INLINE, consumers=2), task(1, INLINE, 0, flags=RESULT))
    assert bench.done(0).finished() == ids(0)
    assert bench.done(1).finished() == ids(1)


def test_finishes_that_concern_nobody_else_are_told_a_little_later(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, INLINE, 0))
    assert bench.done(0).finished() == []
    deadline = bench.core.next_deadline()
    assert deadline is not None
    assert bench.step(after_s=deadline - bench.now).finished() == ids(0)
    assert bench.core.next_deadline() is None


def test_a_failure_is_told_after_the_finishes_before_it(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, INLINE, 0))
    bench.done(0)
    bench.step(Failed(S | 1, 1, "broken"))
    kinds = [type(m) for m in bench.one(ToServer).messages]
    assert kinds == [TasksFinished, TasksFailed]


def test_an_unknown_type_fails_at_once(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, UNKNOWN, 0))
    (failed,) = bench.told(TasksFailed)
    assert "'unknown'" in failed.tasks[0].error


def test_a_wide_task_is_overtaken_for_a_while_only() -> None:
    bench = Bench(cpus=2)
    bench.run(task(0, PROGRAM), task(1, WIDE), task(2, PROGRAM), task(3, PROGRAM))
    assert bench.started() == ids(0, 2)
    bench.step(after_s=0.2)
    assert bench.done(0).started() == []  # the free core is kept for task 1
    assert bench.done(2).started() == ids(1)
    assert bench.done(1).started() == ids(3)


def test_executors_get_more_at_a_time_as_tasks_turn_out_short(bench: Bench) -> None:
    bench.run(*[task(n, FUNCTION) for n in range(20)])
    assert bench.started() == ids(0)
    assert bench.done(0).started() == ids(1, 2)
    assert len(bench.done(1, 2).started()) == 4


def test_a_dependent_of_a_failed_task_goes_back(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, INLINE, 0), task(2, INLINE, 1))
    assert bench.step(Failed(S, 1, "broken")).given() == ids(1, 2)


def test_a_redirection_is_told_and_its_dependents_go_back(bench: Bench) -> None:
    chunk = PlanChunk(0, 0, [], [], [], [], b"", b"", b"", b"", b"", b"", b"", b"", b"", b"", b"", b"", [], False)
    bench.run(task(0, FUNCTION), task(1, INLINE, 0))
    bench.step(Redirected(S, 1, chunk))
    assert [m.task for m in bench.told(TaskRedirected)] == ids(0)
    assert bench.given() == ids(1)


# -- Objects ----------------------------------------------------------------------------------------------------------


def test_missing_inputs_are_fetched_and_told(bench: Bench) -> None:
    bench.run(task(5, INLINE, 1, 2), at=(at(1, 7), at(2, 7)))
    assert (bench.one(Fetch).peer.worker, bench.one(Fetch).objects) == (7, ids(1, 2))
    bench.step(Fetched(S | 1, 10))
    assert bench.step(Fetched(S | 2, 10)).started() == ids(5)
    assert [listed(m.objects) for m in bench.told(ObjectsHeld)] == [ids(2)]


def test_another_holder_is_tried_before_the_task_goes_back(bench: Bench) -> None:
    bench.run(task(5, INLINE, 1), at=(at(1, 7, 8),))
    assert bench.step(FetchFailed(S | 1, False)).one(Fetch).peer.worker == 8
    assert bench.step(FetchFailed(S | 1, False)).given() == ids(5)
    assert not bench.core.awaited


def test_an_input_that_should_be_here_and_is_not(bench: Bench) -> None:
    bench.run(task(5, INLINE, 1))
    assert bench.given() == ids(5)
    assert bench.told(RelayPiece) == [RelayPiece(S | 1, b"", b"", False, "the worker does not have the object")]
    assert not bench.core.awaited


def test_a_dropped_object_is_gone_even_if_it_comes_later(bench: Bench) -> None:
    bench.run(task(5, INLINE, 1), at=(at(1, 7),))
    assert bench.say(DropObjects(numbers(S | 1))).given() == ids(5)
    assert bench.step(Fetched(S | 1, 10)).one(Drop).objects == ids(1)


def test_a_task_to_be_run_voids_the_copy_of_its_object(bench: Bench) -> None:
    bench.run(task(5, PROGRAM, 1), at=(at(1, 7),))
    bench.step(Fetched(S | 1, 10))
    bench.run(task(1, PROGRAM, attempt=2))
    assert S | 1 not in bench.core.held
    bench.say(CancelTasks(numbers(S | 1)))
    assert bench.one(Drop).objects == ids(1)


def test_a_copy_goes_when_its_task_is_given_back(bench: Bench) -> None:
    bench.run(task(1, PROGRAM), task(5, FUNCTION))
    bench.done(1)
    bench.run(task(2, PROGRAM))
    bench.run(task(1, PROGRAM, attempt=2))
    assert bench.say(RecallTasks(numbers(S | 1))).given() == ids(1)
    assert bench.one(Drop).objects == ids(1)


def test_a_copy_that_arrives_while_its_task_is_to_run_here_counts_for_nothing(bench: Bench) -> None:
    bench.run(task(5, INLINE, 1), at=(at(1, 7),))
    bench.run(task(1, FUNCTION, attempt=2))
    assert not bench.step(Fetched(S | 1, 10)).all(Drop)
    assert bench.core.copies == {S | 1}
    assert bench.done(1, attempt=2).started() == ids(5)
    assert not bench.core.copies


def test_a_late_object_does_not_take_the_new_one_with_it(bench: Bench) -> None:
    """The first attempt ended just before it was cancelled, the second in the same turn."""
    bench.run(task(0, FUNCTION))
    bench.say(CancelTasks(numbers(S)), RunTasks([], [], [], [task(0, INLINE, attempt=2)]))
    done = [Done(S, attempt, 10, 0, 5, None) for attempt in (1, 2)]
    bench.step(TasksDone(done))
    assert not bench.all(Drop)
    assert bench.core.held == {S: 10}


def test_a_spoilt_object_is_missed(bench: Bench) -> None:
    bench.run(task(0, PROGRAM), task(1, PROGRAM), task(2, PROGRAM, 0))
    bench.done(0)
    bench.step(Spoilt(S))
    assert bench.one(Drop).objects == ids(0)
    assert bench.given() == ids(2)
    assert bench.told(RelayPiece)[0].object == S
    assert not bench.step(Spoilt(S)).effects


def test_a_relay_is_the_shells(bench: Bench) -> None:
    assert bench.say(RelayObject(S, 8, False)).one(Relay) == Relay(S, 8, False)
    assert bench.say(RelayObject(S, 8, True)).one(Relay) == Relay(S, 8, True)


# -- Cancelling and giving back ---------------------------------------------------------------------------------------


def test_a_cancelled_program_is_stopped_and_its_core_freed_when_it_has_ended(bench: Bench) -> None:
    bench.run(task(0, PROGRAM), task(1, PROGRAM))
    bench.say(CancelTasks(numbers(S)))
    assert bench.one(StopProgram).task == S
    assert bench.started() == []
    assert bench.step(Failed(S, 1, "cancelled")).started() == ids(1)
    assert bench.told(TasksFailed) == []


def test_a_cancelled_function_that_goes_on_loses_its_process(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION))
    bench.say(CancelTasks(numbers(S)))
    deadline = bench.core.next_deadline()
    assert deadline is not None
    assert bench.step(after_s=deadline - bench.now).one(KillExecutor).run == (S, 1)
    bench.step(ExecutorLost(0, (S, 1), "killed"))
    assert not bench.told(TasksFailed)
    assert bench.step(ExecutorReady(0)).started() == ids(1)


def test_a_task_that_had_finished_leaves_nothing_when_it_is_cancelled(bench: Bench) -> None:
    bench.run(task(0, INLINE))
    bench.done(0)
    assert bench.say(CancelTasks(numbers(S))).one(Drop).objects == ids(0)
    assert not bench.core.held


def test_a_builtin_cancelled_in_the_turn_it_came_in_does_not_run(bench: Bench) -> None:
    bench.say(RunTasks([], [], [], [task(0, INLINE)]), CancelTasks(numbers(S)))
    assert bench.started() == []


def test_a_builtin_recalled_in_the_turn_it_became_ready_goes_back(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, INLINE, 0))
    done = TasksDone([Done(S, 1, 10, 0, 5, None)])
    bench.step(done, FromServer([RecallTasks(numbers(S | 1)), DropObjects(numbers(S))]))
    assert bench.started() == []
    assert bench.given() == ids(1)


def test_what_would_start_last_is_given_back_first(bench: Bench) -> None:
    bench.run(*[task(n, PROGRAM) for n in range(4)])
    bench.say(GiveBack(2))
    assert bench.given() == ids(3, 2)
    assert bench.told(TasksGivenBack)[0].answer


def test_what_can_start_is_not_given_back(bench: Bench) -> None:
    bench.say(RunTasks([], [], [], [task(0, FUNCTION), task(1, INLINE, 0)]), GiveBack(1))
    assert bench.started() == ids(0)
    assert bench.given() == []
    assert bench.told(TasksGivenBack)[0].answer


def test_an_executors_queue_is_read_back_for_the_server(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION), task(2, FUNCTION))
    bench.done(0)
    bench.say(GiveBack(1))
    assert not bench.told(TasksGivenBack)
    assert bench.one(ReadBack).count == 1
    bench.step(ReadBackDone(0, [(S | 2, 1)]))
    assert bench.given() == ids(2)
    assert bench.told(TasksGivenBack)[0].answer


def test_a_running_task_is_not_recalled(bench: Bench) -> None:
    bench.run(task(0, FUNCTION))
    assert bench.say(RecallTasks(numbers(S))).given() == []


def test_a_recalled_task_that_comes_back_without_its_input_goes_back(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, FUNCTION))
    bench.done(0)
    bench.done(1)
    bench.run(task(2, FUNCTION), task(3, FUNCTION, 0))
    bench.say(RecallTasks(numbers(S | 3)), DropObjects(numbers(S)))
    assert bench.step(NotSent(0, [(S | 3, 1)])).given() == ids(3)


# -- Executors --------------------------------------------------------------------------------------------------------


def test_tasks_behind_a_long_one_are_taken_to_an_idle_executor() -> None:
    bench = Bench(cpus=2)
    bench.run(task(0, FUNCTION))
    bench.done(0, duration_us=1000)
    bench.run(*[task(n, FUNCTION) for n in (1, 2, 3, 4)])
    queues = bench.core.queues.executors
    first, second, _light = (list(executor.queue) for executor in queues)
    assert (len(first), len(second)) == (2, 2) or (len(first), len(second)) == (3, 1)
    bench.done(*[t.id & 0xFF for t in second])
    back = bench.all(ReadBack) or bench.step(after_s=0.01).all(ReadBack)
    assert back[0].executor == 0
    taken = first[1]
    bench.step(ReadBackDone(0, [(taken.id, 1)]))
    assert bench.started() == [taken.id]
    assert bench.one(RunOnExecutor).executor == 1


def test_looking_for_work_behind_a_long_task_does_not_go_round_in_circles() -> None:
    bench = Bench(cpus=2)
    bench.run(task(0, FUNCTION))
    bench.done(0, duration_us=1000)
    bench.run(*[task(n, FUNCTION) for n in (1, 2, 3, 4)])
    second = list(bench.core.queues.executors[1].queue)
    bench.done(*[t.id & 0xFF for t in second])
    n_looks = len(bench.all(ReadBack))
    for _ in range(10):
        n_looks += len(bench.step(ReadBackDone(0, [])).all(ReadBack))
    assert n_looks <= 1


def test_only_the_task_an_executor_died_in_fails(bench: Bench) -> None:
    bench.run(task(0, FUNCTION))
    bench.done(0)
    bench.run(task(1, FUNCTION), task(2, FUNCTION))
    bench.step(ExecutorLost(0, (S | 1, 1), "killed by signal 11"))
    (failed,) = bench.told(TasksFailed)
    assert [(f.task, f.error) for f in failed.tasks] == [(S | 1, "killed by signal 11")]
    assert bench.started() == []
    assert bench.step(ExecutorReady(0)).started() == ids(2)


def test_what_an_executor_had_no_room_for_waits(bench: Bench) -> None:
    bench.run(task(0, FUNCTION))
    bench.done(0)
    bench.run(task(1, FUNCTION), task(2, FUNCTION))
    assert bench.step(NotSent(0, [(S | 2, 1)])).started() == []
    assert bench.done(1).started() == ids(2)


# -- The server -------------------------------------------------------------------------------------------------------


def test_without_its_server_everything_is_void(bench: Bench) -> None:
    bench.run(task(0, INLINE), task(1, PROGRAM), task(2, INLINE, 1), task(3, INLINE, 9), at=(at(9, 7, size_bytes=1),))
    bench.done(0)
    bench.step(ServerLost())
    assert bench.one(Drop).objects == ids(0)
    assert bench.one(StopProgram).task == S | 1
    assert not bench.all(ToServer)
    assert not bench.core.tasks
    assert bench.core.next_deadline() is None
    assert bench.step(Fetched(S | 9, 1)).one(Drop).objects == ids(9)
    bench.step(Failed(S | 1, 1, "cancelled"))
    assert bench.core.queues.free_cpus == 1


def test_a_closed_session_leaves_nothing(bench: Bench) -> None:
    other = 2 << 40
    bench.run(task(0, INLINE), task(1, PROGRAM), task(2, INLINE, 1))
    bench.done(0)
    bench.run(RunTask(other, 1, INLINE, 0, 0, 0, b"", []))
    bench.say(ForgetSession(1))
    assert bench.one(Drop).objects == ids(0)
    assert bench.one(StopProgram).task == S | 1
    assert list(bench.core.tasks) == [other]
    assert not bench.core.awaited


def test_a_worker_stops_when_told(bench: Bench) -> None:
    assert bench.say(StopWorker()).one(Stop)


def test_a_server_that_breaks_the_protocol(bench: Bench) -> None:
    assert "kind 99" in bench.run(task(0, 99)).one(HangUp).reason
    assert "GetStats" in Bench().say(GetStats(1)).one(HangUp).reason
