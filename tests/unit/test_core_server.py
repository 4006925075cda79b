"""The server's brain: what it says to clients and workers as things happen, step by step."""

from array import array

import pytest
from core_builders import Bench, Row, Said, chunk_of, finished, ids, listed, numbers

from loom.core import states
from loom.core.events import LinkDrained, LinkFull, LinkUp, Received
from loom.ids import SERVER_MADE, number_of
from loom.limits import LIGHT_PROGRAMS, SESSION_GRACE_S
from loom.messages import (
    RUN,
    Acked,
    CancelTasks,
    CloseSession,
    DropObjects,
    FailedTask,
    ForgetSession,
    GetStats,
    GiveBack,
    LocateResult,
    ObjectsHeld,
    RecallTasks,
    RelayedObject,
    RelayFetch,
    RelayObject,
    RelayPiece,
    Release,
    ResultsFailed,
    ResultsReady,
    ResumeSession,
    RunTask,
    RunTasks,
    SessionOpened,
    SessionRefused,
    Stats,
    StopWorker,
    SubmitChunk,
    TaskRedirected,
    TasksFailed,
    TasksGivenBack,
    Terminate,
)

CLIENT, OTHER, NEW_LINK = 1, 2, 3
W1, W2 = 11, 12


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.client(CLIENT)
    bench.worker(W1)
    return bench


def fail(bench: Bench, link: int, task: RunTask, error: str = "it broke") -> Said:
    return bench.say(link, TasksFailed([FailedTask(task.task, task.attempt, error)]))


def give_back(*tasks: RunTask, answer: bool = False) -> TasksGivenBack:
    return TasksGivenBack(numbers(*(t.task for t in tasks)), numbers(*(t.attempt for t in tasks)), answer)


# -- Running ----------------------------------------------------------------------------------------------------------


def test_one_task_of_an_unmeasured_kind_goes_out_for_each_core(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(result=True)] * 5)
    assert said.numbers(W1) == [0]
    assert said.one(CLIENT, Acked).seq == 1
    assert bench.worker(W2, cpus=2).numbers(W2) == [1, 2]


def test_more_go_ahead_once_their_duration_is_known(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(result=True)] * 100)
    sent = []
    while said.tasks(W1):
        sent.append(len(said.tasks(W1)))
        said = bench.finish(W1, *said.tasks(W1))
    assert sent[:4] == [1, 2, 4, 8]
    assert sum(sent) == 100


def test_a_chain_is_sent_ahead_in_order(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(cpus=0), Row([0], cpus=0), Row([1], cpus=0, result=True)])
    assert said.numbers(W1) == [0, 1, 2]
    assert said.one(W1, RunTasks).objects == []


def test_a_result_travels_inside_the_news_while_there_is_credit(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    said = bench.finish(W1, task, packed=b"x" * 600)
    assert said.one(CLIENT, ResultsReady).results[0].packed == b"x" * 600
    (task,) = bench.submit(CLIENT, [Row(result=True)], first=1).tasks(W1)
    news = bench.finish(W1, task, packed=b"y" * 600).one(CLIENT, ResultsReady)
    assert news.results[0].packed is None
    assert [peer.name for peer in news.peers] == ["w11"]


def test_an_object_goes_with_its_last_consumer(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(cpus=0), Row([0, 0], cpus=0, result=True), Row([0], cpus=0, result=True)])
    first, twice, once = said.tasks(W1)
    assert twice.inputs == ids(0, 0)
    said = bench.finish(W1, first, twice)
    assert not said.all(W1, DropObjects)
    said = bench.finish(W1, once)
    assert listed(said.one(W1, DropObjects).objects) == ids(0)
    assert bench.has(0)  # a live result descends from it
    bench.release(CLIENT, 1, 2)
    assert not bench.core.graph.sessions[1].n_nodes
    assert not bench.core.graph.n_finished


def test_a_worker_is_told_where_its_inputs_are(bench: Bench) -> None:
    bench.worker(W2)
    said = bench.submit(CLIENT, [Row(result=True), Row(result=True)])
    (a,), (b,) = said.tasks(W1), said.tasks(W2)
    bench.finish(W1, a, size_bytes=10)
    bench.finish(W2, b, size_bytes=1_000_000)
    said = bench.submit(CLIENT, [Row([0, 1], result=True)], first=2)
    batch = said.one(W2, RunTasks)  # where most bytes are
    assert [(at.object, at.size_bytes, at.workers) for at in batch.objects] == [(*ids(0), 10, [1])]
    assert [peer.worker for peer in batch.peers] == [1]
    bench.say(W2, ObjectsHeld(numbers(*ids(0))))
    bench.finish(W2, *batch.tasks)
    assert bench.node(0).holders() == [bench.core.workers[1], bench.core.workers[2]]
    said = bench.release(CLIENT, 0, 1, 2)
    assert listed(said.one(W1, DropObjects).objects) == ids(0)
    assert sorted(listed(said.one(W2, DropObjects).objects)) == ids(0, 1, 2)


def test_a_wide_task_waits_for_a_worker_that_is_wide_enough(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(cpus=4, result=True), Row(result=True)])
    assert said.numbers(W1) == [1]
    assert bench.worker(W2, cpus=4).numbers(W2) == [0]


def test_two_sessions_are_served_in_turn(bench: Bench) -> None:
    bench.client(OTHER)
    bench.submit(CLIENT, [Row(result=True, config=b"first")] * 20)
    said = bench.submit(OTHER, [Row(result=True, config=b"second")] * 20)
    ran = [b"first"]
    said = bench.finish(W1, *bench_tasks(bench))
    while len(ran) < 20:
        ran += [task.config for task in said.tasks(W1)]
        said = bench.finish(W1, *said.tasks(W1))
    assert 8 <= ran[:20].count(b"second") <= 12


def bench_tasks(bench: Bench) -> list[RunTask]:
    """What is assigned now."""
    nodes = [n for s in bench.core.graph.sessions.values() for n in s.nodes() if n.state == states.ASSIGNED]
    return [RunTask(n.id, n.attempt, 0, 0, 0, 0, n.config(), []) for n in nodes]


def test_a_full_link_is_not_fed(bench: Bench) -> None:
    bench.step(LinkFull(W1))
    assert not bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    (task,) = bench.step(LinkDrained(W1)).tasks(W1)
    bench.step(LinkFull(CLIENT))
    assert not bench.finish(W1, task, packed=b"x").all(CLIENT, ResultsReady)
    assert bench.step(LinkDrained(CLIENT)).one(CLIENT, ResultsReady).results[0].packed is None


# -- Chunks -----------------------------------------------------------------------------------------------------------


def test_a_plan_may_start_before_it_is_whole(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row()], more={0: 1}, whole=False).tasks(W1)
    assert not bench.finish(W1, task).all(W1, DropObjects)
    rest = chunk_of([Row([0], result=True)], first=1, plan_first=0)
    (task,) = bench.say(CLIENT, SubmitChunk(bench.seq(CLIENT), rest, [])).tasks(W1)
    assert listed(bench.finish(W1, task).one(W1, DropObjects).objects) == ids(0)


# -- Failure ----------------------------------------------------------------------------------------------------------


def test_a_failure_reaches_all_that_depend_on_it_and_nothing_else(bench: Bench) -> None:
    rows = [Row(), Row([0], result=True), Row([1], result=True), Row(result=True)]
    said = bench.submit(CLIENT, rows)
    first = said.tasks(W1)[0]
    said = fail(bench, W1, first)
    failed = said.one(CLIENT, ResultsFailed).results
    assert [(f.number, f.task, f.worker, f.error) for f in failed] == [(n, 0, "w11", "it broke") for n in (1, 2)]
    assert said.numbers(W1) == [3]
    later = bench.submit(CLIENT, [Row([1], result=True)], first=4)
    assert [(f.number, f.task) for f in later.one(CLIENT, ResultsFailed).results] == [(4, 0)]


def test_what_was_sent_ahead_on_a_failed_task_is_cancelled(bench: Bench) -> None:
    first, second = bench.submit(CLIENT, [Row(cpus=0), Row([0], cpus=0, result=True)]).tasks(W1)
    said = fail(bench, W1, first)
    assert listed(said.one(W1, CancelTasks).tasks) == [second.task]


# -- Releasing --------------------------------------------------------------------------------------------------------


def test_releasing_an_unfinished_result_stops_what_only_it_needs(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(cpus=0), Row([0], cpus=0, result=True), Row([0], cpus=0, result=True)])
    assert said.numbers(W1) == [0, 1, 2]
    assert listed(bench.release(CLIENT, 1).one(W1, CancelTasks).tasks) == ids(1)
    assert bench.node(0).state == states.ASSIGNED
    assert sorted(listed(bench.release(CLIENT, 2).one(W1, CancelTasks).tasks)) == ids(0, 2)
    assert not bench.core.graph.sessions[1].n_nodes


def test_a_finish_that_crosses_a_cancellation_is_void(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    bench.release(CLIENT, 0)
    assert bench.finish(W1, task).to == {}


# -- Workers come and go ----------------------------------------------------------------------------------------------


def test_tasks_of_a_lost_worker_run_elsewhere_as_another_attempt(bench: Bench) -> None:
    (old,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    bench.worker(W2)
    (new,) = bench.down(W1).tasks(W2)
    assert new.task == old.task
    assert new.attempt == old.attempt + 1
    assert not bench.finish(W2, old).all(CLIENT, ResultsReady)  # an attempt of long ago
    assert bench.finish(W2, new).all(CLIENT, ResultsReady)


def test_a_lost_result_is_made_again_from_its_dropped_inputs(bench: Bench) -> None:
    rows = [Row(cpus=0), Row([0], cpus=0), Row([1], cpus=0, result=True)]
    bench.finish(W1, *bench.submit(CLIENT, rows).tasks(W1))
    assert bench.node(0).state == states.DROPPED
    bench.down(W1)
    said = bench.worker(W2)
    assert said.numbers(W2) == [0, 1, 2]
    assert bench.finish(W2, *said.tasks(W2)).one(CLIENT, ResultsReady).results[0].number == 2


def test_a_result_that_the_client_has_is_not_made_again(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    bench.finish(W1, task, packed=b"x")
    bench.down(W1)
    assert not bench.worker(W2).tasks(W2)
    said = bench.submit(CLIENT, [Row([0], result=True)], first=1)  # until somebody needs it
    assert said.numbers(W2) == [0, 1] or said.numbers(W2) == [0]


def _recalled(bench: Bench) -> RunTask:
    """Task 2 at W2 with input 0 of W1 and input 1 of W2; W1 is lost."""
    bench.worker(W2)
    said = bench.submit(CLIENT, [Row(result=True), Row(result=True)])
    bench.finish(W1, *said.tasks(W1), size_bytes=10)
    bench.finish(W2, *said.tasks(W2), size_bytes=1000)
    (task,) = bench.submit(CLIENT, [Row([0, 1], result=True)], first=2).tasks(W2)
    said = bench.down(W1)
    assert listed(said.one(W2, RecallTasks).tasks) == [task.task]
    return task


def test_a_task_whose_input_was_lost_is_recalled(bench: Bench) -> None:
    task = _recalled(bench)
    said = bench.say(W2, give_back(task))
    assert bench.node(2).state in (states.WAITING, states.ASSIGNED)
    assert 0 in [number_of(t.task) for t in bench_tasks(bench)] or 0 in said.numbers(W2)


def test_a_recalled_task_may_have_finished(bench: Bench) -> None:
    task = _recalled(bench)
    assert [r.number for r in bench.finish(W2, task).one(CLIENT, ResultsReady).results] == [2]
    bench.down(W2)  # all is to be made again: it must be listed with its inputs once, not twice
    said = bench.worker(W1)
    while said.tasks(W1):
        said = bench.finish(W1, *said.tasks(W1))
    assert bench.node(2).state == states.FINISHED


def test_a_cancelled_task_waits_for_its_input_once_when_it_is_needed_again(bench: Bench) -> None:
    """Its inputs still know it from before."""
    bench.worker(W2)
    rows = [Row(), Row([0], result=True), Row([1], result=True)]
    said = bench.submit(CLIENT, rows)
    while tasks := {link: said.tasks(link) for link in (W1, W2) if said.tasks(link)}:
        link, sent = next(iter(tasks.items()))
        said = bench.finish(link, *sent)
    bench.down(W1)
    bench.down(W2)  # everything is to be made again, nothing can run
    assert bench.node(1).state == states.WAITING
    bench.release(CLIENT, 1)
    assert bench.node(1).state == states.WAITING  # 2 needs it
    bench.submit(CLIENT, [Row([2], result=True)], first=3)
    bench.release(CLIENT, 2)
    assert [bench.node(n).state for n in range(4)] == [states.READY, *[states.WAITING] * 3]
    bench.release(CLIENT, 3)
    assert not bench.core.graph.sessions[1].n_nodes


def test_what_only_a_failed_task_needs_is_not_made_again(bench: Bench) -> None:
    """Task 3 takes 2 and 1; 1 takes 0, which failed when it was made again for somebody else."""
    rows = [Row(), Row([0]), Row(), Row([2, 1], result=True), Row([0], result=True)]
    ahead = bench.submit(CLIENT, rows).tasks(W1)
    while ahead:
        task = ahead.pop(0)
        ahead += bench.finish(W1, task, packed=b"x" if number_of(task.task) == 3 else None).tasks(W1)
    assert all(bench.node(n).state == states.FINISHED for n in (3, 4))
    bench.down(W1)
    first, _ahead = bench.worker(W2).tasks(W2)
    assert number_of(first.task) == 0
    fail(bench, W2, first)
    assert [bench.node(n).state for n in range(5)] == [states.FAILED, *[states.DROPPED] * 3, states.FAILED]
    said = bench.submit(CLIENT, [Row([3], result=True)], first=5)
    assert [f.number for f in said.one(CLIENT, ResultsFailed).results] == [5]
    assert bench.node(2).state == states.DROPPED


def test_a_replica_takes_the_place_of_a_lost_holder(bench: Bench) -> None:
    bench.worker(W2)
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    bench.finish(W1, task)
    bench.say(W2, ObjectsHeld(numbers(task.task)))
    bench.down(W1)
    assert bench.node(0).state == states.FINISHED
    said = bench.say(CLIENT, LocateResult(bench.seq(CLIENT), 0))
    assert said.one(CLIENT, ResultsReady).results[0].worker == 2


def test_a_copy_that_nobody_needs_is_dropped(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    bench.finish(W1, task)
    bench.release(CLIENT, 0)
    assert listed(bench.say(W1, ObjectsHeld(numbers(task.task))).one(W1, DropObjects).objects) == [task.task]


# -- Giving back ------------------------------------------------------------------------------------------------------


def test_a_copy_of_what_the_worker_makes_itself_is_its_own_affair(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    assert not bench.say(W1, ObjectsHeld(numbers(task.task))).to


def test_a_task_given_back_is_placed_again_with_what_was_sent_ahead_on_it(bench: Bench) -> None:
    sent = bench.submit(CLIENT, [Row(cpus=0), Row([0], cpus=0, result=True)]).tasks(W1)
    again = bench.say(W1, give_back(*sent)).tasks(W1)
    assert [t.task for t in again] == [t.task for t in sent]
    assert [t.attempt for t in again] == [t.attempt + 1 for t in sent]


def test_what_was_sent_on_a_task_while_that_came_back_comes_back_too(bench: Bench) -> None:
    sent = bench.submit(CLIENT, [Row(cpus=0), Row([0], cpus=0, result=True)]).tasks(W1)
    bench.step(LinkFull(W1))
    bench.say(W1, give_back(sent[0]))
    assert bench.node(0).state == states.READY
    assert bench.node(1).state == states.ASSIGNED
    bench.say(W1, give_back(sent[1]))
    assert bench.node(1).state == states.WAITING


def test_the_longest_queue_is_asked_when_a_core_is_idle(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(result=True)] * 7)
    said = bench.finish(W1, *said.tasks(W1))
    said = bench.finish(W1, *said.tasks(W1))
    assert said.numbers(W1) == [3, 4, 5, 6]
    assert bench.worker(W2).one(W1, GiveBack).count == 1
    (last,) = said.tasks(W1)[-1:]
    assert bench.say(W1, give_back(last, answer=True)).numbers(W2) == [6]
    assert bench.core.next_deadline() is None


def test_a_worker_with_nothing_to_give_is_left_alone_for_a_while(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(result=True)] * 7)
    said = bench.finish(W1, *said.tasks(W1))
    bench.finish(W1, *said.tasks(W1))
    assert bench.worker(W2).one(W1, GiveBack)
    assert not bench.say(W1, give_back(answer=True)).all(W1, GiveBack)
    deadline = bench.core.next_deadline()
    assert deadline is not None
    assert bench.step(after_s=deadline - bench.now).one(W1, GiveBack).count == 1


def test_inputs_that_cannot_be_brought_are_made_again_in_the_end(bench: Bench) -> None:
    bench.worker(W2)
    said = bench.submit(CLIENT, [Row(result=True), Row(result=True)])
    bench.finish(W1, *said.tasks(W1))
    bench.finish(W2, *said.tasks(W2), size_bytes=1_000_000)
    (task,) = bench.submit(CLIENT, [Row([0, 1], result=True)], first=2).tasks(W2)
    for _ in range(50):
        said = bench.say(W2, give_back(task))
        if said.all(W1, DropObjects):
            break
        (task,) = said.tasks(W2) + said.tasks(W1)
    assert listed(said.one(W1, DropObjects).objects) == ids(0)


def test_a_worker_that_misses_an_object_is_not_taken_for_its_holder(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    bench.finish(W1, task)
    said = bench.say(W1, RelayPiece(task.task, b"", b"", True, "not here"))
    assert said.numbers(W1) == [0]


# -- Redirection ------------------------------------------------------------------------------------------------------


def redirected(task: RunTask, rows: list[Row]) -> TaskRedirected:
    return TaskRedirected(task.task, task.attempt, chunk_of(rows, first=SERVER_MADE))


def test_a_redirected_task_has_the_result_of_its_plan(bench: Bench) -> None:
    rows = [Row(cpus=0), Row([0], cpus=0, result=True)]
    first, second = bench.submit(CLIENT, rows).tasks(W1)
    bench.finish(W1, first)
    said = bench.say(W1, redirected(second, [Row([0], cpus=0), Row([SERVER_MADE, 0], cpus=0)]))
    made, last, alias = said.tasks(W1)
    assert made.inputs == [first.task]
    assert last.inputs == [made.task, first.task]
    assert (alias.task, alias.inputs) == (second.task, [last.task])
    said = bench.finish(W1, made, last, alias)
    assert [r.number for r in said.one(CLIENT, ResultsReady).results] == [1]
    assert sorted(listed(said.one(W1, DropObjects).objects)) == sorted([first.task, made.task, last.task])


def test_a_redirection_inside_a_redirection_fails_as_a_whole(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(cpus=0, result=True)]).tasks(W1)
    (inner, _) = bench.say(W1, redirected(task, [Row(cpus=0)])).tasks(W1)
    (innermost, *_) = bench.say(W1, redirected(inner, [Row(cpus=0)])).tasks(W1)
    said = fail(bench, W1, innermost)
    assert [(f.number, f.error) for f in said.one(CLIENT, ResultsFailed).results] == [(0, "it broke")]


@pytest.mark.parametrize(
    "chunk",
    [
        chunk_of([Row([7])], first=SERVER_MADE),
        chunk_of([Row()], first=5),
        chunk_of([Row([SERVER_MADE])], first=SERVER_MADE),
        chunk_of([Row(cpus=1 << 40)], first=SERVER_MADE),
        chunk_of([Row(extras=(("b", 1), ("a", 1)))], first=SERVER_MADE),
    ],
)
def test_a_bad_redirection_costs_its_task_only(bench: Bench, chunk: object) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    said = bench.say(W1, TaskRedirected(task.task, task.attempt, chunk))  # type: ignore[arg-type]
    assert not said.closed
    (failed,) = said.one(CLIENT, ResultsFailed).results
    assert failed.error.startswith("The task returned a plan that is invalid")
    assert bench.submit(CLIENT, [Row(result=True)], first=1).numbers(W1) == [1]


# -- Sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_is_resumed_and_its_commands_apply_once(bench: Bench) -> None:
    submit = SubmitChunk(bench.seq(CLIENT), chunk_of([Row(result=True), Row(result=True)]), [])
    (task,) = bench.say(CLIENT, submit).tasks(W1)
    bench.down(CLIENT)
    bench.finish(W1, task, packed=b"x")
    said = bench.step(LinkUp(NEW_LINK, "client"), Received(NEW_LINK, [ResumeSession(1, b"token", 100, 0)]))
    assert said.one(NEW_LINK, SessionOpened).session == 1
    assert said.one(NEW_LINK, Acked).seq == 1
    (ready,) = said.one(NEW_LINK, ResultsReady).results
    assert (ready.number, ready.packed) == (0, None)
    said = bench.say(NEW_LINK, submit)
    assert said.one(NEW_LINK, Acked).seq == 1
    assert not said.tasks(W1)
    assert not said.closed


def test_a_question_is_answered_again_after_a_reconnect(bench: Bench) -> None:
    assert bench.say(CLIENT, GetStats(1)).one(CLIENT, Stats).seq == 1
    said = bench.step(LinkUp(NEW_LINK, "client"), Received(NEW_LINK, [ResumeSession(1, b"token", 100, 0), GetStats(1)]))
    assert said.one(NEW_LINK, Stats).values["n_workers"] == 1
    assert CLIENT in said.closed  # the old link had not been noticed to be dead
    assert not bench.down(CLIENT).to
    assert bench.core.graph.sessions[1].link == NEW_LINK


def test_a_result_that_may_not_have_arrived_is_made_again(bench: Bench) -> None:
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    bench.finish(W1, task, packed=b"x")
    bench.down(CLIENT)
    bench.down(W1)
    bench.step(LinkUp(NEW_LINK, "client"), Received(NEW_LINK, [ResumeSession(1, b"token", 100, 0)]))
    (task,) = bench.worker(W2).tasks(W2)
    assert bench.finish(W2, task).one(NEW_LINK, ResultsReady).results[0].number == 0


def test_a_session_ends_when_its_client_stays_away(bench: Bench) -> None:
    bench.submit(CLIENT, [Row(result=True)])
    bench.down(CLIENT)
    deadline = bench.core.next_deadline()
    assert deadline == bench.now + SESSION_GRACE_S
    assert bench.step(after_s=SESSION_GRACE_S).one(W1, ForgetSession).session == 1
    resume = ResumeSession(1, b"token", 100, 0)
    said = bench.step(LinkUp(NEW_LINK, "client"), Received(NEW_LINK, [resume]))
    assert said.all(NEW_LINK, SessionRefused)
    assert not bench.core.graph.sessions
    assert not bench.core.clients.dying


def test_nobody_resumes_a_session_without_its_token(bench: Bench) -> None:
    said = bench.step(LinkUp(NEW_LINK, "client"), Received(NEW_LINK, [ResumeSession(1, b"guess", 100, 0)]))
    assert said.all(NEW_LINK, SessionRefused)
    assert not said.closed


def test_a_closed_session_leaves_nothing(bench: Bench) -> None:
    said = bench.submit(CLIENT, [Row(cpus=0), Row([0], cpus=0, result=True)])
    bench.finish(W1, said.tasks(W1)[0])
    said = bench.say(CLIENT, CloseSession(bench.seq(CLIENT)))
    assert said.one(CLIENT, Acked)
    assert said.closed[CLIENT]
    assert said.one(W1, ForgetSession).session == 1
    bench.step()
    assert not bench.core.clients.dying
    assert bench.core.graph.n_finished == 0
    assert not bench.core.workers[1].loads


def test_a_closed_session_is_not_sent_ahead_any_more(bench: Bench) -> None:
    """Its tasks may wait at a worker that has no room yet; they are taken apart in steps."""
    bench.submit(CLIENT, [Row(), Row([0], result=True)])
    worker = bench.core.workers[1]
    assert list(worker.ahead) == [bench.node(1)]
    bench.core.graph.forget_at(worker, bench.core.graph.sessions[1])
    assert not worker.ahead
    assert not worker.loads


def test_a_client_ends_everything(bench: Bench) -> None:
    said = bench.say(CLIENT, Terminate(1))
    assert said.shutdown
    assert said.all(W1, StopWorker)
    assert said.one(CLIENT, Acked).seq == 1


def test_a_session_without_a_name_ends_with_the_server_it_ended(bench: Bench) -> None:
    bench.submit(CLIENT, [Row(result=True)])
    said = bench.say(CLIENT, Terminate(bench.seq(CLIENT)), Release(bench.seq(CLIENT), numbers(0), 0))
    assert not said.closed
    assert said.one(CLIENT, Acked).seq == 2
    assert not bench.core.graph.sessions


# -- Relays -----------------------------------------------------------------------------------------------------------


def _relaying(bench: Bench) -> int:
    (task,) = bench.submit(CLIENT, [Row(result=True)]).tasks(W1)
    bench.finish(W1, task)
    assert bench.say(CLIENT, RelayFetch(bench.seq(CLIENT), 0)).one(W1, RelayObject).object == task.task
    return task.task


def test_an_object_is_relayed_piece_by_piece(bench: Bench) -> None:
    task = _relaying(bench)
    for last in (False, True):
        said = bench.say(W1, RelayPiece(task, b"h", b"piece", last, ""))
        assert said.one(CLIENT, RelayedObject) == RelayedObject(0, b"h", b"piece", last, "")
    assert not bench.say(W1, RelayPiece(task, b"h", b"piece", True, "")).to


def test_a_broken_off_relay_ends_before_another_begins(bench: Bench) -> None:
    task = _relaying(bench)
    bench.say(W1, RelayPiece(task, b"", b"1", False, ""))
    bench.down(CLIENT)
    bench.step(LinkUp(NEW_LINK, "client"), Received(NEW_LINK, [ResumeSession(1, b"token", 100, 0)]))
    said = bench.say(NEW_LINK, RelayFetch(bench.seq(CLIENT), 0))
    assert not said.all(W1, RelayObject)
    assert not bench.say(W1, RelayPiece(task, b"", b"2", False, "")).to
    assert bench.say(W1, RelayPiece(task, b"", b"3", True, "")).one(W1, RelayObject).object == task
    said = bench.say(W1, RelayPiece(task, b"", b"123", True, ""))
    assert said.one(NEW_LINK, RelayedObject).piece == b"123"


def test_a_relay_fails_with_its_worker_and_others_go_on(bench: Bench) -> None:
    _relaying(bench)
    bench.worker(W2)
    bench.step(LinkFull(W1))
    (task,) = bench.submit(CLIENT, [Row(result=True)], first=1).tasks(W2)
    bench.finish(W2, task)
    bench.say(CLIENT, RelayFetch(bench.seq(CLIENT), 1))
    failed = bench.down(W1).one(CLIENT, RelayedObject)
    assert failed.number == 0
    assert failed.error
    assert bench.say(W2, RelayPiece(task.task, b"", b"1", True, "")).one(CLIENT, RelayedObject).piece == b"1"


def test_what_is_not_there_is_not_relayed(bench: Bench) -> None:
    bench.submit(CLIENT, [Row(result=True)])
    assert bench.say(CLIENT, RelayFetch(bench.seq(CLIENT), 0)).one(CLIENT, RelayedObject).error


# -- Peers that break the protocol ------------------------------------------------------------------------------------


def bad_chunks() -> dict[str, object]:
    good = [Row(), Row([0], result=True)]
    chunks = {name: chunk_of(good) for name in ("levels", "flags", "table", "offsets", "data", "forward", "cpus")}
    chunks["levels"].levels = chunks["levels"].levels[:4]
    chunks["flags"].flags = b"\1"
    chunks["table"].label_of = array("H", [0, 9]).tobytes()
    chunks["offsets"].config_ends = array("I", [9, 2]).tobytes()
    chunks["data"].inputs = b""
    chunks["forward"].inputs = numbers(1)
    chunks["cpus"] = chunk_of([Row(cpus=1 << 40)])
    chunks["ragged"] = chunk_of(good)
    chunks["ragged"].consumers = b"123"
    chunks["empty"] = chunk_of([])
    chunks["unknown input"] = chunk_of([Row([3])], first=0)
    chunks["first"] = chunk_of([Row()], first=1)
    chunks["plan_first"] = chunk_of([Row()], plan_first=1)
    return dict(chunks)


@pytest.mark.parametrize(("name", "chunk"), bad_chunks().items(), ids=str)
def test_a_bad_chunk_costs_its_session_and_nobody_else(bench: Bench, name: str, chunk: object) -> None:
    bench.client(OTHER)
    (task,) = bench.submit(OTHER, [Row(result=True)]).tasks(W1)
    said = bench.say(CLIENT, SubmitChunk(bench.seq(CLIENT), chunk, []))  # type: ignore[arg-type]
    assert CLIENT in said.closed
    assert OTHER not in said.closed
    assert bench.finish(W1, task).all(OTHER, ResultsReady)
    assert not bench.say(CLIENT, GetStats(2)).to  # nobody listens there any more


def test_what_cannot_be_released_costs_the_session(bench: Bench) -> None:
    bench.submit(CLIENT, [Row(result=True)])
    bench.release(CLIENT, 0)
    assert "released twice" in bench.release(CLIENT, 0).closed[CLIENT]
    assert not bench.core.graph.sessions


def test_a_command_that_is_left_out_costs_the_session(bench: Bench) -> None:
    assert "came after" in bench.say(CLIENT, GetStats(5)).closed[CLIENT]


def test_messages_of_the_wrong_role_are_refused(bench: Bench) -> None:
    assert bench.say(CLIENT, finished()).closed
    assert bench.say(W1, GetStats(1)).closed
    bench.step(LinkUp(NEW_LINK, "worker"))
    assert bench.say(NEW_LINK, GetStats(1)).closed
    assert not bench.core.workers


def test_a_worker_that_finishes_before_the_inputs_is_not_believed(bench: Bench) -> None:
    first, second = bench.submit(CLIENT, [Row(cpus=0), Row([0], cpus=0, result=True)]).tasks(W1)
    assert W1 in bench.finish(W1, second).closed
    assert bench.worker(W2).numbers(W2) == [number_of(first.task), number_of(second.task)]


def test_columns_of_a_report_must_fit(bench: Bench) -> None:
    assert W1 in bench.say(W1, ObjectsHeld(b"123")).closed
    bench.worker(W2)
    assert W2 in bench.say(W2, TasksGivenBack(numbers(1, 2), numbers(1), False)).closed


def test_programs_without_a_request_run_beside_each_other_however_long_they_take() -> None:
    bench = Bench()
    bench.client(CLIENT)
    bench.worker(W1)
    program = Row(result=True, symbol=RUN, cpus=0)
    (task,) = bench.submit(CLIENT, [program]).tasks(W1)
    bench.finish(W1, task, duration_us=10_000_000)
    first = bench.submit(CLIENT, [program] * 100, first=1).tasks(W1)
    assert len(first) == LIGHT_PROGRAMS
    assert len(bench.finish(W1, *first[:3], duration_us=10_000_000).tasks(W1)) == 3
