"""What a journal comes to: the graph of a server that starts again is that of the one which wrote it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from core_builders import SERVER, JournalBench, Row, chunk_of, finished, fold, ids, made, numbers
from msgspec.msgpack import Decoder

from loom.core import states
from loom.core.check import check_server
from loom.core.compact import compacted
from loom.core.node import ALIAS, CANCELLED, COPIED, DYNAMIC, EXPANDED, GATHERED, KEPT, WANTED, WRITING, Node
from loom.core.past import Past
from loom.core.server import ServerCore
from loom.core.session import Session
from loom.facts import (
    AnyFact,
    ObjectsSaved,
    PlanAbandoned,
    PlanAdded,
    ResultsCancelled,
    ResultsReleased,
    ServerStarted,
    SessionAt,
    SessionBegan,
    SessionEnded,
    SessionTaken,
    TaskBecame,
    TaskMarked,
    TasksFailed,
    TasksFinished,
    TasksMade,
    WorkerDetached,
)
from loom.ids import SERVER_MADE, task_id
from loom.limits import LINEAGE_BYTES
from loom.messages import (
    DGET,
    GET,
    SAME,
    CancelResults,
    CheckpointWritten,
    CloseSession,
    FailedTask,
    ResultsFailed,
    ResultsReady,
    SubmitChunk,
    TaskRedirected,
    Terminate,
    WriteCheckpoint,
)
from loom.messages import TasksFailed as SayFailed
from loom.sim.runner import run_seed
from loom.sim.server import SimServer

CLIENT, W1, W2 = 1, 11, 12
RESULT = Row(result=True)

Restart = Callable[[JournalBench], JournalBench]


@pytest.fixture(params=[False, True], ids=["as written", "compacted"])
def restart(request: pytest.FixtureRequest) -> Restart:
    return lambda bench: bench.restart(compact=request.param)


@pytest.fixture
def bench() -> JournalBench:
    bench = JournalBench()
    bench.client(CLIENT)
    bench.worker(W1, cpus=8)
    return bench


def session_of(bench: JournalBench, number: int = 1) -> Session:
    return bench.core.graph.sessions[number]


def fail(bench: JournalBench, *tasks: object, error: str = "no") -> None:
    bench.say(W1, SayFailed([FailedTask(task.task, task.attempt, error) for task in tasks]))  # type: ignore[attr-defined]


# -- Fact by fact -----------------------------------------------------------------------------------------------------


def test_a_new_journal_says_who_writes_it() -> None:
    (started,) = JournalBench().journal
    assert isinstance(started, ServerStarted)
    assert (started.server, started.incarnation, started.next_session, started.next_worker) == (SERVER, 1, 1, 1)


def test_numbers_of_sessions_and_workers_are_not_used_again(bench: JournalBench, restart: Restart) -> None:
    bench.say(CLIENT, CloseSession(bench.seq(CLIENT)))
    bench.down(W1)
    again = restart(bench)
    assert (again.core.incarnation, again.core.clients.next_session, again.core._next_worker) == (2, 2, 2)
    assert not again.core.graph.sessions
    assert not again.core.attaching.settling, "nobody is waited for where there is nothing to be done"


def test_workers_are_expected_that_were_there(bench: JournalBench, restart: Restart) -> None:
    bench.worker(W2)
    bench.down(W1)
    assert restart(bench).core.attaching.expected == {2: "w12"}


def test_workers_without_sessions_are_not_expected_by_a_later_server(bench: JournalBench) -> None:
    """They were not waited for, and one that has gone would never be given up."""
    bench.say(CLIENT, CloseSession(bench.seq(CLIENT)))
    second = bench.restart()
    second.client(CLIENT)
    assert second.restart().core.attaching.expected == {}


def test_a_session_of_which_facts_are_missing_is_left_out() -> None:
    past = Past()
    past.apply(SessionBegan(1, b"token", "nightly", []))
    past.apply(PlanAdded(1, 1, chunk_of([RESULT], 5), None, []))
    past.apply(ResultsReleased(1, 2, numbers(5)))
    past.apply(TasksFinished(numbers(task_id(1, 5)), numbers(1), numbers(1), [(0, 3)]))
    assert not past.sessions
    assert past.problems == ["session 1 'nightly' is left out: tasks 0 to 5 are missing"]


def test_facts_about_what_is_not_there_are_passed_over() -> None:
    past = Past()
    for fact in (
        SessionTaken(9, b"t"),
        SessionEnded(9),
        SessionAt(9, 1, 1, True),
        PlanAbandoned(9),
        TaskMarked(9, 1, 1),
        TasksFailed(9, numbers(1), 1, "", ""),
        ObjectsSaved(numbers(task_id(9, 1))),
        ResultsCancelled(9, 1, numbers(1)),
        WorkerDetached(9),
        TasksFinished(numbers(task_id(9, 1)), numbers(1), numbers(1), [(0, 3)]),
    ):
        past.apply(fact)
    assert (past.sessions, past.workers, past.problems) == ({}, {}, [])


def test_a_finished_task_is_not_run_again(bench: JournalBench, restart: Restart) -> None:
    (task,) = bench.submit(CLIENT, [RESULT]).tasks(W1)
    said = bench.finish(W1, task, size_bytes=99, length=7)
    assert [type(fact) for fact in said.facts] == [TasksFinished]
    again = restart(bench)
    node = again.node(0)
    assert (node.state, node.attempt, node.size_bytes) == (states.FINISHED, task.attempt, 99)
    assert session_of(again).lengths == {0: 7}


def test_a_failure_is_told_in_the_same_words(bench: JournalBench, restart: Restart) -> None:
    said = bench.submit(CLIENT, [Row(), Row([0], result=True), Row([0], result=True)])
    fail(bench, said.tasks(W1)[0], error="a story")
    again = restart(bench)
    again.settle()
    (told,) = again.resume(CLIENT, 1).all(CLIENT, ResultsFailed)
    assert [(one.number, one.task, one.worker, one.error) for one in told.results] == [
        (1, 0, "w11", "a story"),
        (2, 0, "w11", "a story"),
    ]


def test_what_was_released_is_gone(bench: JournalBench, restart: Restart) -> None:
    bench.submit(CLIENT, [Row(), Row([0], result=True), RESULT])
    bench.release(CLIENT, 1)
    again = restart(bench)
    assert not again.has(0)
    assert not again.has(1)
    assert again.has(2)
    assert session_of(again).applied_seq == 2


def test_what_was_cancelled_stays_cancelled_until_it_is_released(bench: JournalBench, restart: Restart) -> None:
    bench.submit(CLIENT, [RESULT])
    bench.say(CLIENT, CancelResults(bench.seq(CLIENT), numbers(0)))
    again = restart(bench)
    assert again.node(0).flags & (CANCELLED | WANTED) == CANCELLED
    again.resume(CLIENT, 2)
    again.settle()
    said = again.submit(CLIENT, [Row([0], result=True)], 1)
    assert said.one(CLIENT, ResultsFailed).results[0].error == "cancelled"
    again.release(CLIENT, 0, 1)
    assert not session_of(again).n_nodes
    assert not session_of(restart(again)).n_nodes


def test_what_was_cancelled_and_failed_then_is_cancelled(bench: JournalBench, restart: Restart) -> None:
    """Another one still needed it."""
    task, *_ = bench.submit(CLIENT, [RESULT, Row([0], result=True)]).tasks(W1)
    bench.say(CLIENT, CancelResults(bench.seq(CLIENT), numbers(0)))
    fail(bench, task)
    for flags in (bench.node(0).flags, restart(bench).node(0).flags, restart(restart(bench)).node(0).flags):
        assert flags & (CANCELLED | WANTED) == CANCELLED


def test_what_had_failed_cannot_be_cancelled(bench: JournalBench, restart: Restart) -> None:
    (task,) = bench.submit(CLIENT, [RESULT]).tasks(W1)
    fail(bench, task)
    bench.say(CLIENT, CancelResults(bench.seq(CLIENT), numbers(0)))
    assert restart(bench).node(0).flags & (CANCELLED | WANTED) == WANTED


def test_commands_that_come_again_are_known(bench: JournalBench, restart: Restart) -> None:
    bench.submit(CLIENT, [RESULT])
    bench.release(CLIENT, 0)
    again = restart(bench)
    said = again.resume(CLIENT)
    said = again.submit(CLIENT, [RESULT])
    assert not session_of(again).n_nodes
    assert CLIENT not in said.closed


def test_a_plan_that_is_half_there_goes_on(bench: JournalBench, restart: Restart) -> None:
    """What has consumers still to come is kept until they are there."""
    bench.submit(CLIENT, [Row(), Row()], more={0: 2, 1: 1}, whole=False)
    bench.submit(CLIENT, [Row([0], result=True)], 2, plan_first=0, more={}, whole=False)
    again = restart(bench)
    assert session_of(again).plan_open
    assert [again.node(i).n_children for i in range(3)] == [2, 1, 0]
    again.resume(CLIENT, 2)
    again.submit(CLIENT, [Row([0, 1, 1], result=True)], 3, plan_first=0)
    check_server(again.core, {1})
    check_server(restart(again).core, {1})


def test_a_plan_that_was_given_up_has_no_more_consumers(restart: Restart) -> None:
    bench = JournalBench()
    bench.open(CLIENT, "nightly")
    bench.submit(CLIENT, [Row(), RESULT], more={0: 2, 1: 1}, whole=False)
    said = bench.open(2, "nightly", take_over=True)
    assert [type(fact) for fact in said.facts] == [PlanAbandoned, ResultsReleased, SessionTaken]
    again = restart(bench)
    assert not session_of(again).plan_open
    assert not session_of(again).n_nodes
    assert (session_of(again).token, session_of(again).who) == (b"token 2", "client 2")


def test_names_of_results(bench: JournalBench, restart: Restart) -> None:
    bench.open(2, "nightly")
    plan = chunk_of([RESULT, RESULT, RESULT])
    bench.say(2, SubmitChunk(bench.seq(2), plan, [(0, "a"), (1, "b")]))
    bench.release(2, 0)
    bench.say(2, SubmitChunk(bench.seq(2), chunk_of([RESULT], 3), [(3, "a")]))  # the name was free again
    again = restart(bench)
    assert session_of(again, 2).names == {"a": 3, "b": 1}
    assert session_of(again, 2).named == {3: "a", 1: "b"}
    assert session_of(again, 2).who == "client 2"


def test_a_session_that_ended_is_gone(bench: JournalBench, restart: Restart) -> None:
    bench.submit(CLIENT, [RESULT])
    assert SessionEnded(1) in bench.say(CLIENT, Terminate(bench.seq(CLIENT))).facts
    assert not restart(bench).core.graph.sessions


def test_a_session_without_a_name_ends_when_its_client_does_not_come(bench: JournalBench, restart: Restart) -> None:
    bench.open(2, "nightly")
    again = restart(bench)
    again.settle()
    assert set(again.core.graph.sessions) == {1, 2}
    assert again.step(after_s=30.0).facts == [SessionEnded(1)]
    assert set(again.core.graph.sessions) == {2}
    assert again.core.next_deadline() is None


def test_a_checkpoint_is_written_that_was_not_in_place(bench: JournalBench, restart: Restart) -> None:
    rows = [Row(result=True, checkpoint=b"/one"), Row(result=True, checkpoint=b"/other")]
    tasks = bench.submit(CLIENT, rows).tasks(W1)
    bench.finish(W1, *tasks)
    said = bench.say(W1, CheckpointWritten(tasks[1].task, ""))
    assert said.facts == [ObjectsSaved(numbers(tasks[1].task))]
    again = restart(bench)
    assert [bool(again.node(i).flags & WRITING) for i in range(2)] == [True, False]
    said = again.come_back(W1, 1, [made(task) for task in tasks])
    assert said.all(W1, WriteCheckpoint) == [WriteCheckpoint(tasks[0].task, b"/one")]
    said = again.resume(CLIENT, 1)
    assert [one.number for one in said.one(CLIENT, ResultsReady).results] == [1]
    again.down(CLIENT)
    said = again.say(W1, CheckpointWritten(tasks[0].task, "no room"))
    assert [type(fact) for fact in said.facts] == [TasksFailed]
    assert restart(again).node(0).state == states.FAILED


def test_a_redirected_task(bench: JournalBench, restart: Restart) -> None:
    first, task = bench.submit(CLIENT, [Row(), Row([0], result=True), Row([1], result=True)]).tasks(W1)[:2]
    bench.finish(W1, first)
    inner = chunk_of([Row([0], config=b"in"), Row([SERVER_MADE], config=b"out")], SERVER_MADE)
    said = bench.say(W1, TaskRedirected(task.task, task.attempt, inner))
    assert [type(fact) for fact in said.facts] == [PlanAdded, TaskMarked, TaskBecame]
    again = restart(bench)
    node = again.node(1)
    assert node.flags & ALIAS
    assert node.kind.symbol == SAME
    (target,) = node.inputs
    assert target.flags & GATHERED
    assert target.config() == b"out"
    assert [source.inputs[0].number for source in target.inputs] == [0]
    assert target.users_number == 1
    again.settle()
    again.worker(W2, cpus=4)
    check_server(again.core, {1})


def test_expanded_tasks(bench: JournalBench, restart: Restart) -> None:
    plan = [Row(), Row([0], cpus=0, symbol=DGET), Row([1], result=True, retries=2), Row([2], result=True)]
    (source,) = bench.submit(CLIENT, plan).tasks(W1)
    said = bench.finish(W1, source, length=3)
    assert [type(fact) for fact in said.facts] == [TasksFinished, TasksMade, TaskBecame, TasksMade, *[TaskBecame] * 2]
    again = restart(bench)
    assert snapshot(session_of(again)) == snapshot(session_of(bench))
    copied = again.node(2)
    assert copied.flags & (COPIED | EXPANDED) == COPIED | EXPANDED
    assert len(again.node(3).inputs) == 3
    assert [copy.rules().retries for copy in copied.inputs] == [2] * 3
    assert [copy.inputs[0].kind.symbol for copy in copied.inputs] == [GET] * 3
    again.settle()
    made_before = {node.number for node in session_of(again).nodes()}
    again.worker(W2, cpus=8)
    assert {node.number for node in session_of(again).nodes()} == made_before, "nothing is expanded twice"


def test_a_consumer_of_what_was_expanded_takes_its_parts_after_all_dynamic_tasks_have_gone(
    bench: JournalBench, restart: Restart
) -> None:
    (source,) = bench.submit(CLIENT, [Row(cpus=0, result=True)]).tasks(W1)
    bench.submit(CLIENT, [Row([0], cpus=0, symbol=DGET, result=True)], 1)
    bench.submit(CLIENT, [Row([1], cpus=0, result=True)], 2)
    said = bench.finish(W1, source, length=2)
    while tasks := said.tasks(W1):
        said = bench.finish(W1, *tasks)
    bench.release(CLIENT, 1)
    assert not bench.has(1)
    again = restart(bench)
    bench.submit(CLIENT, [Row([2], cpus=0, result=True)], 3)
    again.resume(CLIENT, 4)
    again.settle()
    again.submit(CLIENT, [Row([2], cpus=0, result=True)], 3)
    for one in (bench, again):
        assert len(one.node(3).inputs) == 2, "the copies, not their array"


def test_dynamic_tasks_of_a_plan_that_is_half_there(bench: JournalBench, restart: Restart) -> None:
    (source,) = bench.submit(CLIENT, [Row()], more={0: 1}, whole=False).tasks(W1)
    bench.submit(CLIENT, [Row([0], cpus=0, symbol=DGET)], 1, plan_first=0, more={1: 1}, whole=False)
    bench.finish(W1, source, length=2)
    again = restart(bench)
    assert again.node(1).flags & DYNAMIC
    again.come_back(W1, 1, [made(source, length=2)])
    again.resume(CLIENT, 2)
    assert not again.node(1).flags & EXPANDED
    again.submit(CLIENT, [Row([1], result=True)], 2, plan_first=0)
    assert again.node(2).flags & EXPANDED
    check_server(again.core, {1})


# -- What a peer may do to it -----------------------------------------------------------------------------------------


def test_a_session_that_broke_the_protocol_is_gone(bench: JournalBench, restart: Restart) -> None:
    bench.submit(CLIENT, [RESULT])
    said = bench.submit(CLIENT, [Row([77])], 1)
    assert CLIENT in said.closed
    assert said.facts[-1] == SessionEnded(1)
    assert not restart(bench).core.graph.sessions


@pytest.mark.parametrize("column", [b"123", numbers(99)])
def test_what_is_no_command_leaves_nothing_that_cannot_be_read(bench: JournalBench, column: bytes) -> None:
    bench.submit(CLIENT, [RESULT])
    assert CLIENT in bench.say(CLIENT, CancelResults(bench.seq(CLIENT), column)).closed
    assert not bench.restart().core.graph.sessions


def test_a_worker_that_lies_in_the_middle_of_a_report(bench: JournalBench) -> None:
    """What came before the lie is not in the journal: the worker is lost with all that it had."""
    sent = bench.submit(CLIENT, [RESULT, Row(), Row([1], result=True)]).tasks(W1)
    tasks = {task.task: task for task in sent}
    true, lie = ids(0, 2)
    assert W1 in bench.say(W1, finished(tasks[true], tasks[lie])).closed
    for core in (bench.core, bench.restart().core):
        assert not core.graph.n_finished


# -- Holes ------------------------------------------------------------------------------------------------------------


def holed(bench: JournalBench, kind: type) -> JournalBench:
    """A server that starts from a journal in which all facts of this kind are missing."""
    return JournalBench([fact for fact in bench.journal if not isinstance(fact, kind)])


def test_what_takes_something_that_is_missing_fails(bench: JournalBench) -> None:
    (source,) = bench.submit(CLIENT, [Row(), Row([0], cpus=0, symbol=DGET), Row([1], result=True)]).tasks(W1)
    bench.finish(W1, source, length=3)
    again = holed(bench, TasksMade)
    assert again.node(2).state == states.FAILED
    again.settle()
    told = again.resume(CLIENT, 1).one(CLIENT, ResultsFailed).results
    assert "missing in the server's journal" in told[0].error
    again.release(CLIENT, 2)
    assert not session_of(again).n_nodes


def test_an_array_without_its_parts_has_failed(bench: JournalBench) -> None:
    (source,) = bench.submit(CLIENT, [Row(cpus=0), Row([0], cpus=0, symbol=DGET, result=True)]).tasks(W1)
    said = bench.finish(W1, source, length=3)
    while tasks := said.tasks(W1):
        said = bench.finish(W1, *tasks)
    assert bench.node(1).state == states.FINISHED
    again = holed(bench, TasksMade)
    check_server(again.core)
    assert again.node(1).state == states.FAILED
    again.settle()


def test_what_is_finished_and_takes_something_that_is_missing_is_good_until_it_is_lost(bench: JournalBench) -> None:
    one, task, _ = bench.submit(CLIENT, [RESULT, Row([0], result=True), Row([0, 1], result=True)]).tasks(W1)
    bench.finish(W1, one)
    inner = chunk_of([Row([0]), Row([SERVER_MADE])], SERVER_MADE)
    said = bench.say(W1, TaskRedirected(task.task, task.attempt, inner))
    while tasks := said.tasks(W1):
        said = bench.finish(W1, *tasks)
    facts = [fact for fact in bench.journal if not (isinstance(fact, PlanAdded) and fact.stands_for is not None)]
    again = JournalBench(facts)
    check_server(again.core)
    assert again.node(1).state == states.FINISHED
    again.settle()
    assert again.node(1).state == states.FAILED
    again.worker(W1, cpus=8)
    assert again.node(0).state == states.ASSIGNED


# -- At any moment ----------------------------------------------------------------------------------------------------


def spec(node: Node) -> tuple[object, ...]:
    kind = node.kind
    of_kind = (kind.symbol, kind.label, kind.request, kind.time_limit_ms)
    of_chunk = (node.config(), node.input_numbers(), node.rules(), node.checkpoint(), node.level(), node.users_number)
    return (*of_kind, *of_chunk, node.flags & (KEPT | WANTED | CANCELLED))


def snapshot(session: Session) -> dict[int, tuple[object, ...]]:
    return {node.number: (*spec(node), node.n_children) for node in session.nodes()}


def head(session: Session) -> tuple[object, ...]:
    names = (session.names, session.named)
    return session.token, session.name, session.who, names, session.next_number, session.plan_open


def compare(live: ServerCore, facts: list[AnyFact]) -> None:
    """What was written down comes to the same as what there is, and so does its short form."""
    restored = ServerCore(live.incarnation + 1, past=fold(facts))
    assert restored.graph.sessions.keys() == live.graph.sessions.keys()
    for number, session in live.graph.sessions.items():
        again = restored.graph.sessions[number]
        assert head(again) == head(session)
        is_saving = any(node.flags & WRITING for node in again.nodes())  # perhaps what is lost, and needed no more
        ours, theirs = snapshot(session), snapshot(again)
        assert ours == theirs or (is_saving and ours.keys() <= theirs.keys()), f"{session} is not {again}"
        for node in session.nodes():
            same = again.find(node.number)
            assert same is not None
            _compare_states(node, same)
    short = ServerCore(live.incarnation + 1, past=fold(list(compacted(fold(facts)))))
    assert short.graph.sessions.keys() == restored.graph.sessions.keys()
    assert (short.clients.next_session, short._next_worker) == (restored.clients.next_session, restored._next_worker)
    for number, session in restored.graph.sessions.items():
        again = short.graph.sessions[number]
        assert (*head(again), again.applied_seq, again.starts) == (*head(session), session.applied_seq, session.starts)
        assert {n.number: str(n) for n in again.nodes()} == {n.number: str(n) for n in session.nodes()}
        assert snapshot(again) == snapshot(session)
        assert (again.failures, again.lengths) == (session.failures, session.lengths)
    for core in (restored, short):  # nobody comes back
        core.step([], 0.0)
        core.step([], 100.0)
        assert not core.attaching.settling
        check_server(core)


def _compare_states(node: Node, again: Node) -> None:
    """What is lost has still to be noticed by `again`, and then what it takes is not needed."""
    assert (node.state == states.FAILED) == (again.state == states.FAILED), f"{node} is not {again}"
    if node.state == states.FAILED:
        assert node.session.failures[node.number] == again.session.failures[node.number]
    elif node.state == states.FINISHED and again.state != states.DROPPED:
        assert again.state == states.FINISHED, f"{node} is not {again}"
        assert (node.attempt, node.size_bytes) == (again.attempt, again.size_bytes)
        assert node.session.lengths.get(node.number) == again.session.lengths.get(node.number)
        assert node.flags & WRITING == again.flags & WRITING
    elif again.state in states.UNFINISHED:
        assert node.state in states.UNFINISHED, f"{node} is not {again}"


@pytest.mark.parametrize("first", range(0, 80, 20))
def test_at_any_moment_of_simulated_runs(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    decode = Decoder(list[AnyFact]).decode
    turn = SimServer._turn
    rng = Random(first)
    compared = 0

    def compare_sometimes(server: SimServer) -> None:
        nonlocal compared
        turn(server)
        journal = server.journal
        whole = server.world.lineage_bytes == LINEAGE_BYTES  # else specs come back that were forgotten
        if server.alive and journal is not None and whole and server.core.graph.sessions and rng.random() < 0.1:
            facts = [fact for record in (*journal.written, *journal._waiting) for fact in decode(record)]
            compare(server.core, facts)
            compared += 1

    monkeypatch.setattr(SimServer, "_turn", compare_sometimes)
    for seed in range(first, first + 20):
        run_seed(seed)
    assert compared > 10
