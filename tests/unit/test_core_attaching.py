"""Workers that come back: what of theirs is taken, what they are to drop, and when what nobody brought is lost."""

from __future__ import annotations

import pytest
from core_builders import SERVER, JournalBench, Row, chunk_of, finished, inventory, listed, made, numbers

from loom.core import states
from loom.core.events import LinkDown, LinkDrained, LinkFull
from loom.core.node import ALIAS
from loom.facts import TasksFinished, WorkerAttached, WorkerDetached
from loom.ids import SERVER_MADE, task_id
from loom.messages import (
    DGET,
    CancelTasks,
    CloseSession,
    DropObjects,
    FailedTask,
    ForgetSession,
    LocateResult,
    Message,
    RelayedObject,
    RelayFetch,
    ResultsFailed,
    ResultsReady,
    RunTask,
    TaskRedirected,
    TasksFailed,
    WorkerAccepted,
    WorkerInventory,
    WorkerLeaves,
)

CLIENT, W1, W2 = 1, 11, 12
RESULT = Row(result=True)
CHAIN = [Row(), Row([0]), Row([1], result=True)]


@pytest.fixture
def bench() -> JournalBench:
    """Workers 1 and 2 of the first server; the first one has room for all."""
    bench = JournalBench()
    bench.client(CLIENT)
    bench.worker(W1, cpus=8)
    return bench


def by_number(tasks: list[RunTask]) -> list[RunTask]:
    return sorted(tasks, key=lambda task: task.task)


def submitted(bench: JournalBench, rows: list[Row], first: int = 0) -> list[RunTask]:
    """By number."""
    return by_number(bench.submit(CLIENT, rows, first).tasks(W1))


def refused(said: list[Message]) -> tuple[list[int], list[int]]:
    """Numbers of tasks to stop and of objects to drop."""
    tasks = [i for m in said if isinstance(m, CancelTasks) for i in listed(m.tasks)]
    objects = [i for m in said if isinstance(m, DropObjects) for i in listed(m.objects)]
    return [i & 0xFFFF_FFFF for i in tasks], [i & 0xFFFF_FFFF for i in objects]


# -- After a restart --------------------------------------------------------------------------------------------------


def test_objects_of_finished_tasks_are_where_they_were(bench: JournalBench) -> None:
    tasks = submitted(bench, [RESULT, RESULT])
    bench.finish(W1, *tasks)
    again = bench.restart()
    again.resume(CLIENT, 1)
    said = again.come_back(W1, 1, [made(task) for task in tasks])
    assert refused(said.to.get(W1, [])) == ([], [])
    assert [one.number for one in said.one(CLIENT, ResultsReady).results] == [0, 1]
    assert [settled.n_objects for settled in said.settled] == [0]
    assert said.facts == [WorkerDetached(1)]


def test_what_was_finished_and_not_reported_is_taken(bench: JournalBench) -> None:
    tasks = submitted(bench, CHAIN)
    again = bench.restart()
    again.resume(CLIENT, 1)
    said = again.come_back(W1, 1, [made(task, size_bytes=5, length=3) for task in tasks])
    (fact,) = [fact for fact in said.facts if isinstance(fact, TasksFinished)]
    assert listed(fact.tasks) == [task.task for task in tasks]
    assert listed(fact.attempts) == [task.attempt for task in tasks]
    assert fact.lengths == [(0, 3), (1, 3), (2, 3)]
    assert [one.number for one in said.one(CLIENT, ResultsReady).results] == [2]
    assert refused(said.to[W1]) == ([], [0, 1]), "nobody needs these any more"


def test_what_runs_and_what_was_sent_ahead_of_it_goes_on(bench: JournalBench) -> None:
    tasks = submitted(bench, CHAIN)
    again = bench.restart()
    again.resume(CLIENT, 1)
    said = again.come_back(W1, 1, tasks=tasks)
    assert W1 not in said.to
    assert [again.node(i).state for i in range(3)] == [states.ASSIGNED] * 3
    assert [again.node(i).attempt for i in range(3)] == [task.attempt for task in tasks]
    said = again.finish(W1, *tasks)
    assert [one.number for one in said.one(CLIENT, ResultsReady).results] == [2]


def test_what_failed_meanwhile_has_failed(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    again = bench.restart()
    again.resume(CLIENT, 1)
    again.worker(W1, before=(SERVER, 1, 1))
    said = again.say(W1, inventory(tasks=[task]), TasksFailed([FailedTask(task.task, task.attempt, "no")]))
    assert said.one(CLIENT, ResultsFailed).results[0].error == "no"


def test_what_was_redirected_meanwhile_is_redirected(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    again = bench.restart()
    again.worker(W1, before=(SERVER, 1, 1))
    redirected = TaskRedirected(task.task, task.attempt, chunk_of([Row()], SERVER_MADE))
    inner, _alias = again.say(W1, inventory(tasks=[task]), redirected).tasks(W1)
    assert inner.task & (1 << 40) - 1 >= SERVER_MADE
    assert again.node(0).flags & ALIAS


def test_a_task_that_was_taken_and_is_lost_gets_an_attempt_of_this_server(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    again = bench.restart()
    again.come_back(W1, 1, tasks=[task])
    again.down(W1)
    (anew,) = again.worker(W2).tasks(W2)
    assert anew.attempt > task.attempt
    assert again.core.incarnation == anew.attempt >> 16


def test_nothing_is_sent_to_a_worker_that_has_not_said_what_it_has(bench: JournalBench) -> None:
    submitted(bench, [RESULT])
    again = bench.restart()
    again.worker(W1, before=(SERVER, 1, 1))
    assert not again.settle().tasks(W1)
    assert again.say(W1, inventory(last=False)).tasks(W1) == []
    assert len(again.say(W1, inventory()).tasks(W1)) == 1


def test_an_inventory_in_several_messages(bench: JournalBench) -> None:
    """Tasks are looked at when all objects are known."""
    tasks = submitted(bench, CHAIN)
    bench.finish(W1, tasks[0])
    again = bench.restart()
    again.worker(W1, before=(SERVER, 1, 1))
    again.say(W1, inventory(tasks=tasks[1:], last=False))
    assert again.node(1).state == states.WAITING or again.node(1).state == states.READY
    again.say(W1, inventory([made(tasks[0])]))
    assert [again.node(i).state for i in range(3)] == [states.FINISHED, states.ASSIGNED, states.ASSIGNED]


# -- What is not taken ------------------------------------------------------------------------------------------------


def test_another_attempt_than_the_accepted_one_is_dropped(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    bench.finish(W1, task)
    task.attempt += 1
    again = bench.restart()
    said = again.come_back(W1, 1, [made(task)], [task])
    assert refused(said.to[W1]) == ([0], [0])


def test_what_the_journal_does_not_know_is_dropped(bench: JournalBench) -> None:
    tasks = submitted(bench, [RESULT, RESULT])
    again = bench.restart(without=1)  # the plan
    said = again.come_back(W1, 1, [made(tasks[0])], [tasks[1]])
    assert refused(said.to[W1]) == ([1], [0])


def test_a_number_that_stands_for_another_task_now(bench: JournalBench) -> None:
    """Its client has sent another plan after the first one was forgotten."""
    tasks = submitted(bench, [RESULT, RESULT])
    again = bench.restart(without=1)
    again.resume(CLIENT)
    again.submit(CLIENT, [Row(result=True, config=b"else")] * 2)
    said = again.come_back(W1, 1, [made(tasks[0])], [tasks[1]])
    assert refused(said.to[W1]) == ([1], [0])
    third = again.restart()
    third.worker(W2, before=(SERVER, 1, 1), name="away in between")
    said = third.say(W2, inventory([made(tasks[0])], [tasks[1]]))
    assert refused(said.to[W2]) == ([1], [0])


def test_a_session_number_that_stands_for_another_session_now(bench: JournalBench) -> None:
    """Nobody had been told of the first one when its server died, but for the worker, which was away for a server."""
    tasks = submitted(bench, [RESULT, RESULT])
    begun = next(n for n, fact in enumerate(bench.journal) if type(fact).__name__ == "SessionBegan")
    second = bench.restart(without=len(bench.journal) - begun)
    second.client(CLIENT)
    second.submit(CLIENT, [Row(result=True, config=b"else")] * 2)
    for compact in (False, True):
        third = second.restart(compact=compact)
        third.worker(W2, before=(SERVER, 1, 1))
        said = third.say(W2, inventory([made(tasks[0])], [tasks[1]]))
        assert refused(said.to[W2]) == ([1], [0])


def test_pieces_of_an_expansion_that_was_forgotten(bench: JournalBench) -> None:
    """Another expansion has other pieces; what was made of the first one is not mixed with them."""
    plan = [Row(), Row([0], cpus=0, symbol=DGET, result=True), Row([1], cpus=0, result=True)]
    (source,) = submitted(bench, plan)
    said = bench.finish(W1, source, length=2)
    n_facts = len(said.facts)
    done = [source]
    while tasks := said.tasks(W1):
        done += tasks
        said = bench.finish(W1, *tasks)
        n_facts += len(said.facts)
    assert bench.node(1).state == bench.node(2).state == states.FINISHED
    again = bench.restart(without=n_facts)
    said = again.come_back(W1, 1, [made(task, length=2 if task is source else 0) for task in done])
    assert len(refused(said.to[W1])[1]) == len(done) - 1
    assert again.node(0).state == states.FINISHED
    assert len(said.tasks(W1)) == 6, "two pieces, a copy for each, two arrays"
    assert not {task.task for task in said.tasks(W1)} & {task.task for task in done[1:] if task.task >> 39 & 1}


def test_an_older_run_of_what_is_an_alias_now(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    bench.worker(W2, cpus=8)
    bench.down(W1)  # it goes on there
    bench.say(W2, TaskRedirected(task.task, bench.node(0).attempt, chunk_of([Row()], SERVER_MADE)))
    assert bench.node(0).flags & ALIAS
    again = bench.restart()
    again.worker(W1, before=(SERVER, 1, 1))
    said = again.say(W1, inventory(tasks=[task]))
    assert refused(said.to[W1]) == ([0], [])


def test_a_task_whose_inputs_are_elsewhere(bench: JournalBench) -> None:
    tasks = submitted(bench, CHAIN)
    bench.finish(W1, tasks[0])
    again = bench.restart()
    said = again.come_back(W1, 1, tasks=tasks[1:])  # without the object
    assert refused(said.to[W1]) == ([1, 2], [])
    assert again.node(0).state == states.ASSIGNED, "it is made again, as nobody else was there"


def test_a_run_that_another_worker_was_given(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    again = bench.restart()
    again.settle()
    (anew,) = again.worker(W2).tasks(W2)
    said = again.come_back(W1, 1, [made(task)])
    assert refused(said.to[W1]) == ([], [0])
    again.finish(W2, anew)
    assert again.node(0).attempt == anew.attempt


def test_what_nobody_needs(bench: JournalBench) -> None:
    tasks = submitted(bench, [RESULT, RESULT])
    bench.release(CLIENT, 0, 1)
    said = bench.restart().come_back(W1, 1, [made(tasks[0])], [tasks[1]])
    assert refused(said.to[W1]) == ([1], [0])


def test_claims_that_make_no_sense(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    again = bench.restart()
    again.worker(W1, before=(SERVER, 1, 1))
    strange = [
        RunTask(task_id(n, m), a, 0, 0, 0, 0, b"", []) for n in (0, 1, 9) for m in (7, SERVER_MADE) for a in (0, 9)
    ]
    top = (1 << 64) - 1
    strange.append(RunTask(top, top, 0, 0, 0, 0, b"", []))
    said = again.say(W1, inventory([made(one, top, top) for one in strange], [*strange, task, task]))
    tasks, objects = refused(said.to[W1])
    assert len(objects) == len(strange)
    assert len(tasks) == len(strange) + 1


@pytest.mark.parametrize("damaged", range(4))
def test_a_damaged_inventory_costs_its_worker_its_link(bench: JournalBench, damaged: int) -> None:
    (task,) = submitted(bench, [RESULT])
    again = bench.restart()
    again.worker(W1, before=(SERVER, 1, 1))
    said = inventory([made(task)], [task])
    match damaged:
        case 0:
            said.sizes = b""
        case 1:
            said.objects = said.objects[:-1]
        case 2:
            said.task_attempts = b""
        case 3:
            said.lengths += numbers(1)
    assert W1 in again.say(W1, said).closed
    assert not again.core.workers
    assert again.core.attaching.expected == {1: "w11"}, "it may come once more"
    again.come_back(W1, 1, [made(task)])
    assert again.node(0).state == states.FINISHED


def test_an_inventory_that_nobody_asked_for(bench: JournalBench) -> None:
    again = bench.restart()
    again.worker(W1, before=(SERVER, 1, 1))
    again.say(W1, inventory())
    assert W1 in again.say(W1, inventory()).closed
    again.worker(W2)
    assert W2 in again.say(W2, inventory()).closed


@pytest.mark.parametrize("before", [(0, 0, 0), (SERVER + 1, 1, 1), (SERVER, 1, 0)])
def test_workers_of_other_servers_have_nothing(bench: JournalBench, before: tuple[int, int, int]) -> None:
    submitted(bench, [RESULT])
    again = bench.restart()
    assert not again.worker(W1, before=before).one(W1, WorkerAccepted).keeps
    assert again.core.attaching.expected == {1: "w11"}


# -- Settling ---------------------------------------------------------------------------------------------------------


def test_nothing_is_run_nor_told_until_all_are_back(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    bench.worker(W2)
    bench.finish(W1, task)
    bench.submit(CLIENT, [RESULT], 1)
    again = bench.restart()
    said = again.resume(CLIENT, 2)
    assert not said.all(CLIENT, ResultsReady)
    said = again.come_back(W1, 1, [made(task)])
    assert (said.settled, said.tasks(W1), said.all(CLIENT, ResultsReady)) == ([], [], [])
    said = again.come_back(W2, 2)
    assert [settled.missing for settled in said.settled] == [[]]
    assert said.all(CLIENT, ResultsReady)
    assert again.node(1).state == states.ASSIGNED


def test_what_is_missing_is_made_again(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    bench.finish(W1, task)
    again = bench.restart()
    again.resume(CLIENT, 1)
    again.worker(W2)
    said = again.settle()
    assert [(settled.missing, settled.n_objects) for settled in said.settled] == [(["w11"], 1)]
    assert said.facts == [WorkerDetached(1)]
    (anew,) = said.tasks(W2)
    assert anew.task == task.task
    assert again.finish(W2, anew).all(CLIENT, ResultsReady)
    late = again.come_back(W1, 1, [made(task)])
    assert refused(late.to[W1]) == ([], [0])


def test_a_longer_wait(bench: JournalBench) -> None:
    submitted(bench, [RESULT])
    again = JournalBench(bench.journal, reattach_s=100.0)
    assert again.core.next_deadline() == again.now + 30.0, "that of the session"
    again.resume(CLIENT, 1)
    assert again.core.next_deadline() == again.now + 100.0
    assert not again.step(after_s=99.0).settled
    assert again.step(after_s=1.0).settled


def test_a_server_that_dies_before_its_workers_are_back(bench: JournalBench) -> None:
    tasks = submitted(bench, [RESULT, RESULT])
    again = bench.restart().restart()
    assert again.core.attaching.expected == {1: "w11"}
    again.worker(W1, before=(SERVER, 1, 1))
    again.say(W1, inventory([made(tasks[0])], [tasks[1]]))
    assert [again.node(i).state for i in range(2)] == [states.FINISHED, states.ASSIGNED]
    assert not again.core.attaching.settling


def test_a_server_that_dies_while_a_worker_says_what_it_has(bench: JournalBench) -> None:
    tasks = submitted(bench, [RESULT, RESULT])
    second = bench.restart()
    assert second.worker(W1, before=(SERVER, 1, 1)).facts == [WorkerAttached(2, "w11")]
    second.say(W1, inventory([made(tasks[0])], last=False))
    third = second.restart()
    assert third.core.attaching.expected == {1: "w11", 2: "w11"}
    third.worker(W1, before=(SERVER, 2, 2))
    third.say(W1, inventory([made(tasks[0])], [tasks[1]]))
    assert not third.core.attaching.expected
    assert [third.node(i).state for i in range(2)] == [states.FINISHED, states.ASSIGNED]


def test_a_worker_that_is_lost_again_while_others_are_waited_for(bench: JournalBench) -> None:
    """Another one has a copy of what it had."""
    (task,) = submitted(bench, [RESULT])
    bench.worker(W2)
    bench.finish(W1, task)
    again = bench.restart()
    again.resume(CLIENT, 1)
    again.come_back(W1, 1, [made(task)])
    again.down(W1)
    assert again.core.attaching.settling
    said = again.come_back(W2, 2, [made(task)])
    assert said.settled
    assert said.all(CLIENT, ResultsReady)


def test_full_links_and_leaving_workers_while_others_are_waited_for(bench: JournalBench) -> None:
    tasks = submitted(bench, [RESULT, RESULT])
    bench.worker(W2)
    again = bench.restart()
    again.resume(CLIENT, 1)
    again.step(LinkFull(CLIENT))
    again.come_back(W1, 1, [made(tasks[0])], [tasks[1]])
    again.step(LinkFull(W1))
    again.say(W1, WorkerLeaves())
    again.step(LinkDrained(W1), LinkDrained(CLIENT))
    again.finish(W1, tasks[1])
    said = again.come_back(W2, 2)
    assert [one.number for one in said.one(CLIENT, ResultsReady).results] == [0, 1]


def test_sessions_begin_and_end_while_workers_are_waited_for(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    bench.finish(W1, task)
    again = bench.restart()
    again.resume(CLIENT, 1)
    again.client(2)
    again.submit(2, [RESULT])
    assert again.node(0, session=2).state == states.READY
    again.say(CLIENT, CloseSession(again.seq(CLIENT)))
    assert again.core.graph.n_finished == 0
    said = again.come_back(W1, 1, [made(task)])
    assert refused(said.to[W1]) == ([], [0])
    assert len(said.tasks(W1)) == 1


def test_an_object_that_is_asked_for_while_its_worker_is_waited_for(bench: JournalBench) -> None:
    """Who asks is told at the latest when all are back, and may ask again then."""
    (task,) = submitted(bench, [RESULT])
    bench.finish(W1, task)
    again = bench.restart()
    again.resume(CLIENT, 1)
    said = again.say(CLIENT, LocateResult(again.seq(CLIENT), 0), RelayFetch(again.seq(CLIENT), 0))
    assert not said.all(CLIENT, ResultsReady)
    said = again.come_back(W1, 1, [made(task)])
    assert said.one(CLIENT, RelayedObject).error
    assert said.all(CLIENT, ResultsReady)
    assert len(again.core.relays) == 0


def test_retries_are_counted_anew(bench: JournalBench) -> None:
    (task,) = submitted(bench, [Row(result=True, retries=1)])
    (task,) = bench.say(W1, TasksFailed([FailedTask(task.task, task.attempt, "no")])).tasks(W1)
    again = bench.restart()
    again.come_back(W1, 1, tasks=[task])
    (task,) = again.say(W1, TasksFailed([FailedTask(task.task, task.attempt, "no")])).tasks(W1)
    again.say(W1, TasksFailed([FailedTask(task.task, task.attempt, "no")]))
    assert again.node(0).state == states.FAILED


# -- A server that lives ----------------------------------------------------------------------------------------------


def broken(bench: JournalBench, link: int, before: int, *later: LinkDown) -> None:
    """The worker's link breaks, and it comes again on another one."""
    bench.step(*later)
    said = bench.worker(link, cpus=8, before=(SERVER, bench.core.incarnation, before), name="w11")
    assert said.one(link, WorkerAccepted).keeps


def test_a_link_that_broke_costs_nothing(bench: JournalBench) -> None:
    tasks = submitted(bench, [RESULT, RESULT])
    bench.finish(W1, tasks[0])
    broken(bench, W2, 1, LinkDown(W1))
    said = bench.say(W2, inventory([made(tasks[0])], [tasks[1]]))
    assert W2 not in said.to
    assert [bench.node(i).state for i in range(2)] == [states.FINISHED, states.ASSIGNED]
    assert [bench.node(i).attempt for i in range(2)] == [task.attempt for task in tasks]


def test_a_link_that_broke_unnoticed(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    said = bench.worker(W2, before=(SERVER, 1, 1), name=f"w{W1}")
    assert W1 in said.closed
    assert not bench.say(W2, inventory([made(task)])).all(W2, DropObjects)
    assert bench.node(0).state == states.FINISHED


def test_what_was_given_to_another_worker_meanwhile(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    bench.worker(W2, cpus=8)
    (anew,) = bench.down(W1).tasks(W2)
    bench.finish(W2, anew)
    bench.worker(13, before=(SERVER, 1, 1))
    said = bench.say(13, inventory([made(task)]))
    assert refused(said.to[13]) == ([], [0])
    said = bench.say(13, finished(task))
    assert not said.facts


def test_a_session_that_ended_while_its_worker_was_away(bench: JournalBench) -> None:
    tasks = submitted(bench, [RESULT, RESULT])
    bench.down(W1)
    assert not bench.say(CLIENT, CloseSession(bench.seq(CLIENT))).all(W1, ForgetSession)
    bench.worker(W2, before=(SERVER, 1, 1))
    said = bench.say(W2, inventory([made(tasks[0])], [tasks[1]]))
    assert refused(said.to[W2]) == ([1], [0])


@pytest.mark.parametrize("lengths", [(1, 2, 2, 1), (1, 1, 1, 2), (2, 1, 1, 1)])
def test_columns_of_an_inventory_must_fit(bench: JournalBench, lengths: tuple[int, int, int, int]) -> None:
    submitted(bench, [RESULT])
    again = bench.restart()
    again.worker(W1, before=(SERVER, 1, 1))
    columns = [numbers(*[0] * length) for length in lengths]
    said = again.say(W1, WorkerInventory(*columns, b"", b"", True))
    assert W1 in said.closed


def test_a_run_of_a_server_that_is_still_to_come_is_refused(bench: JournalBench) -> None:
    (task,) = submitted(bench, [RESULT])
    task.attempt = (1 << 64) - 1
    again = bench.restart()
    again.worker(W1, before=(SERVER, 1, 1))
    assert refused(again.say(W1, inventory(tasks=[task])).to[W1])[0] == [0]
