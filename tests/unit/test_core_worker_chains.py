"""Tasks that follow what an executor is about to make: what is sent ahead, and what becomes of it when that fails."""

from __future__ import annotations

import pytest
from worker_builders import FUNCTION, INLINE, SMALL, Bench, S, at, ids, task

from loom.core.worker_events import ExecutorLost, Failed, Fetched, NotRun, NotSent, ReadBackDone, Redirected, Spoilt
from loom.core.worker_tasks import ReadBack, RunOnExecutor
from loom.messages import (
    CancelTasks,
    GiveBack,
    PlanChunk,
    RecallTasks,
    RunTasks,
    TaskKind,
    TasksFailed,
    TasksGivenBack,
)
from loom.resources import Request


@pytest.fixture
def bench() -> Bench:
    """With one core, and functions known to be short, so that many fit into an executor's queue."""
    return short_functions(Bench())


def short_functions(bench: Bench) -> Bench:
    for number in range(1000, 1200):
        bench.run(task(number, FUNCTION))
        bench.done(number)
    return bench


def sent(bench: Bench) -> list[int]:
    return [t.id for effect in bench.all(RunOnExecutor) for t in effect.tasks]


def test_a_chain_is_sent_at_once_and_in_order(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0), task(2, FUNCTION, 1))
    assert [t.id for t in bench.one(RunOnExecutor).tasks] == ids(0, 1, 2)
    bench.done(0, 1)
    assert bench.started() == []
    assert bench.done(2).finished() == ids(0, 1, 2)


def test_a_task_that_comes_later_follows_what_is_queued(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0))
    assert sent(bench.run(task(2, FUNCTION, 0, 1))) == ids(2)


def test_a_task_follows_only_when_one_executor_makes_all_it_misses(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, INLINE), task(2, FUNCTION, 0, 1))
    assert sent(bench) == ids(0)
    assert sent(bench.done(1)) == []  # it is looked at again only when something is queued
    assert sent(bench.done(0)) == ids(2)


def test_neither_built_ins_nor_what_asks_for_more_than_a_core_follow(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, INLINE, 0), task(2, SMALL, 0))
    assert sent(bench) == ids(0)


def test_with_several_cores_only_what_is_alone_in_waiting_follows() -> None:
    bench = short_functions(Bench(cpus=2))
    bench.run(task(0, FUNCTION, consumers=2), task(1, FUNCTION, 0), task(2, FUNCTION, 0))
    assert sent(bench) == ids(0)
    bench.done(0)
    bench.done(1, 2)
    assert sent(bench.run(task(3, FUNCTION), task(4, FUNCTION, 3))) == ids(3, 4)
    assert not bench.all(ReadBack), "an idle executor can do nothing with what follows another task"


def test_what_does_not_fit_follows_when_there_is_room(bench: Bench) -> None:
    chain = [task(0, FUNCTION), *(task(n, FUNCTION, n - 1) for n in range(1, 500))]
    n_sent = len(sent(bench.run(*chain)))
    assert 1 < n_sent < 500
    assert sent(bench.done(0)) == ids(n_sent)


def test_followers_of_a_failed_task_are_given_back(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0), task(2, FUNCTION, 1))
    bench.step(Failed(S, 1, "broken"), NotRun(0, [(S | 1, 1), (S | 2, 1)]))
    assert [f.task for m in bench.told(TasksFailed) for f in m.tasks] == ids(0)
    assert sorted(bench.given()) == ids(1, 2)
    assert not bench.core.queues.placed


def test_followers_of_a_task_that_became_a_plan_are_given_back(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0))
    chunk = PlanChunk(0, 0, [], [], [], [], b"", b"", b"", b"", b"", b"", b"", b"", b"", b"", b"", b"", [], False)
    bench.step(Redirected(S, 1, chunk))
    assert bench.given() == ids(1)
    bench.step(NotRun(0, [(S | 1, 1)]))
    assert not bench.core.queues.placed


def test_a_task_that_did_not_run_is_sent_again_when_its_inputs_are_there(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0))
    bench.done(0)
    assert sent(bench.step(NotRun(0, [(S | 1, 1)]))) == ids(1)


def test_what_was_not_sent_waits_for_what_it_follows(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0))
    assert sent(bench.step(NotSent(0, [(S | 1, 1)]))) == []
    assert sent(bench.done(0)) == ids(1)


def test_what_is_read_back_is_sent_after_it_again(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0))
    assert sent(bench.step(ReadBackDone(0, [(S | 1, 1)]))) == ids(1)


def test_others_are_not_given_what_waits_for_a_task_here(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0))
    bench.say(GiveBack(5))
    assert not bench.all(ReadBack)
    assert [m.answer for m in bench.told(TasksGivenBack)] == [True]
    assert bench.given() == []


def test_when_an_executor_dies_followers_share_the_fate_of_what_they_wait_for(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0), task(2, FUNCTION), task(3, FUNCTION, 2))
    bench.step(ExecutorLost(0, (S, 1), "the process died"))
    assert [f.task for m in bench.told(TasksFailed) for f in m.tasks] == ids(0)
    assert bench.given() == ids(1)
    assert set(bench.core.tasks) == set(ids(2, 3))


def test_followers_of_a_cancelled_task_are_given_back(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0))
    bench.say(CancelTasks(S.to_bytes(8, "little")))
    assert bench.given() == ids(1)


def test_followers_that_are_recalled_are_given_back(bench: Bench) -> None:
    bench.run(task(0, FUNCTION, 5), at=(at(5, 7),))
    bench.step(Fetched(S | 5, 10))
    bench.done(0)
    bench.run(task(1, FUNCTION), task(2, FUNCTION, 1, 5))
    again = RunTasks([], [], [], [task(5, FUNCTION, attempt=2)])  # nobody knew that it is here
    assert bench.say(RecallTasks((S | 2).to_bytes(8, "little")), again).given() == ids(2)
    bench.done(1)
    bench.step(NotRun(0, [(S | 2, 1)]))
    assert set(bench.core.tasks) == set(ids(5))


def test_followers_that_take_what_is_spoilt_are_given_back(bench: Bench) -> None:
    bench.run(task(0, FUNCTION))
    bench.done(0)
    bench.run(task(1, FUNCTION), task(2, FUNCTION, 1, 0))
    assert bench.step(Spoilt(S)).given() == ids(2)


def test_what_has_found_another_place_holds_up_nobody_that_follows() -> None:
    bench = short_functions(Bench(cpus=2))
    long = 9
    bench.say(RunTasks([TaskKind(long, "function", "long", Request(1))], [], [], [task(0, long)]))
    bench.done(0, duration_us=10_000_000)
    bench.run(task(1, FUNCTION), task(2, FUNCTION), task(3, FUNCTION), task(4, long, 1))
    bench.done(1)
    bench.done(2)  # the long one goes to its executor; the first one's always has something to do
    assert [task.id for task in bench.core.queues.executors[0].queue] == ids(3)
    assert sent(bench.run(task(5, FUNCTION), task(6, FUNCTION, 5))) == ids(5, 6)


def test_nothing_follows_a_task_of_which_a_copy_is_in_the_store(bench: Bench) -> None:
    bench.run(task(0, FUNCTION))
    bench.done(0)
    assert sent(bench.run(task(0, FUNCTION, attempt=2), task(1, FUNCTION, 0))) == ids(0)
    assert sent(bench.done(0, attempt=2)) == ids(1)


def test_there_is_room_again_as_soon_as_nothing_cancelled_is_left(bench: Bench) -> None:
    bench.run(task(0, FUNCTION), task(1, FUNCTION, 0), task(2, FUNCTION))
    bench.say(RecallTasks((S | 1).to_bytes(8, "little")))
    assert sent(bench.run(task(3, FUNCTION))) == []
    bench.done(0)
    assert sent(bench.step(NotRun(0, [(S | 1, 1)]))) == ids(3)
