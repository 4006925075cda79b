"""What the server does about failures, lost workers, and workers that leave or are in need."""

from core_builders import Bench, Row, Said, ids, listed, numbers

from loom.core import states
from loom.core.crashes import Crashes
from loom.core.events import LinkDrained, LinkFull, LinkUp, Received
from loom.core.node import CUT
from loom.limits import RELAY_PIECES, SMALL_OBJECT_BYTES
from loom.messages import (
    CancelResults,
    CancelTasks,
    DropObjects,
    FailedTask,
    GiveBack,
    NotTaken,
    ObjectsHeld,
    RegisterWorker,
    RelayedObject,
    RelayObject,
    RelayPiece,
    RelayWanted,
    ResultsFailed,
    RunTask,
    StopWorker,
    TakeObjects,
    TasksFailed,
    TasksGivenBack,
    WorkerAccepted,
    WorkerCondition,
    WorkerLeaves,
)

C, W1, W2, W3 = 1, 11, 12, 13
LARGE = SMALL_OBJECT_BYTES + 1


def fail(bench: Bench, link: int, task: RunTask, error: str = "it broke") -> Said:
    return bench.say(link, TasksFailed([FailedTask(task.task, task.attempt, error)]))


def errors(said: Said) -> dict[int, str]:
    return {f.number: f.error for message in said.all(C, ResultsFailed) for f in message.results}


def bench_with(n_workers: int, **kwargs: int) -> Bench:
    bench = Bench()
    bench.client(C)
    for link in (W1, W2, W3)[:n_workers]:
        bench.worker(link, **kwargs)
    return bench


class TestRetries:
    def test_a_task_is_run_again_as_often_as_it_says(self) -> None:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True, retries=2)]).tasks(W1)
        (second,) = fail(bench, W1, task).tasks(W1)
        assert second.attempt > task.attempt
        (third,) = fail(bench, W1, second).tasks(W1)
        assert errors(fail(bench, W1, third)) == {0: "it broke\n(the last of 3 attempts; the others failed, too)"}

    def test_a_late_failure_of_an_earlier_attempt_is_void(self) -> None:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True, retries=2)]).tasks(W1)
        (second,) = fail(bench, W1, task).tasks(W1)
        assert not fail(bench, W1, task).to
        bench.finish(W1, second)
        assert bench.node(0).state == states.FINISHED

    def test_what_waits_for_a_task_that_is_run_again_goes_on_waiting(self) -> None:
        bench = bench_with(1, cpus=2)
        first, ahead = bench.submit(C, [Row(retries=1), Row([0], result=True)]).tasks(W1)
        assert fail(bench, W1, first).numbers(W1) == [0]
        said = bench.say(W1, TasksGivenBack(numbers(ahead.task), numbers(ahead.attempt), False))
        assert said.numbers(W1) == [1]
        assert bench.node(1).state == states.ASSIGNED

    def test_it_is_run_again_where_it_has_not_just_failed(self) -> None:
        bench = bench_with(1)
        bench.submit(C, [Row(result=True, retries=3), *[Row(result=True) for _ in range(3)]])
        bench.worker(W2)
        (task,) = [RunTask(n.id, n.attempt, 0, 0, 0, 0, b"", []) for n in [bench.node(0)]]
        said = fail(bench, W1, task)
        assert 0 not in said.numbers(W1)
        assert len(said.numbers(W1)) == 1  # what is behind it does not wait with it
        other = bench.node(1)
        said = bench.finish(W2, RunTask(other.id, other.attempt, 0, 0, 0, 0, b"", []))
        assert 0 in said.numbers(W2)

    def test_alone_it_is_run_again_where_it_has_failed(self) -> None:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True, retries=1)]).tasks(W1)
        assert fail(bench, W1, task).numbers(W1) == [0]

    def test_what_there_was_with_it_is_over_when_it_has_finished(self) -> None:
        bench = bench_with(0)
        bench.submit(C, [Row(result=True, retries=1)])
        for _ in range(2):
            said = bench.worker(W1)
            bench.down(W1)
        said = bench.worker(W1)
        (again,) = fail(bench, W1, *said.tasks(W1)).tasks(W1)
        bench.finish(W1, again)
        session = bench.core.graph.sessions[1]
        assert not session.tries
        assert not session.crashes
        said = bench.down(W1)
        assert not errors(said)
        assert bench.worker(W1).numbers(W1) == [0]


class TestPriorities:
    def test_the_highest_goes_first_whatever_it_asks_for(self) -> None:
        bench = Bench()
        bench.client(C)
        rows = [Row(result=True, priority=p, symbol=s) for p, s in ((0, "a/x"), (5, "a/y"), (1, "a/x"), (3, "a/y"))]
        bench.submit(C, rows)
        order = []
        said = bench.worker(W1, symbols=("a/x", "a/y"))
        while tasks := said.tasks(W1):
            order += said.numbers(W1)
            said = bench.finish(W1, *tasks, duration_us=50_000)
        assert order == [1, 3, 2, 0]


class TestCancelling:
    def test_a_task_that_nobody_else_needs_is_stopped(self) -> None:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True)]).tasks(W1)
        said = bench.say(C, CancelResults(bench.seq(C), numbers(0)))
        assert listed(said.one(W1, CancelTasks).tasks) == [task.task]
        bench.release(C, 0)
        assert not bench.has(0)

    def test_one_that_another_result_needs_goes_on(self) -> None:
        bench = bench_with(1, cpus=2)
        first, second = bench.submit(C, [Row(result=True), Row([0], result=True)]).tasks(W1)
        assert not bench.say(C, CancelResults(bench.seq(C), numbers(0))).all(W1, CancelTasks)
        bench.finish(W1, first)
        bench.finish(W1, second)
        assert bench.node(1).state == states.FINISHED
        assert bench.node(0).state == states.DROPPED

    def test_who_takes_it_later_fails_with_it(self) -> None:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True)]).tasks(W1)
        bench.finish(W1, task)
        said = bench.say(C, CancelResults(bench.seq(C), numbers(0)))
        assert listed(said.one(W1, DropObjects).objects) == [task.task]
        assert errors(bench.submit(C, [Row([0], result=True)], first=1)) == {1: "cancelled"}
        bench.release(C, 0, 1)
        assert not bench.has(0)

    def test_cancelling_twice_breaks_the_protocol(self) -> None:
        bench = bench_with(0)
        bench.submit(C, [Row(result=True)])
        bench.say(C, CancelResults(bench.seq(C), numbers(0)))
        assert C in bench.say(C, CancelResults(bench.seq(C), numbers(0))).closed


class TestCrashes:
    def crash(self, bench: Bench, link: int) -> Said:
        bench.down(link)
        return bench.worker(link)

    def test_a_task_that_takes_three_workers_with_it_fails(self) -> None:
        bench = bench_with(0)
        bench.submit(C, [Row(result=True), Row(result=True)])
        said = bench.worker(W1, cpus=2)
        assert said.numbers(W1) == [0, 1]
        bench.down(W1)
        said = bench.worker(W1, cpus=2)
        assert said.numbers(W1) == [0, 1]
        bench.down(W1)
        said = bench.worker(W1, cpus=2)
        (alone,) = said.numbers(W1)  # now one at a time: the next loss says which one it is
        said = bench.down(W1)
        assert list(errors(said)) == [alone]
        assert "3 workers were lost while they had this task" in errors(said)[alone]
        said = bench.worker(W1, cpus=2)
        (other,) = said.tasks(W1)
        bench.finish(W1, other)
        assert bench.node(1 - alone).state == states.FINISHED

    def test_a_worker_that_left_in_good_order_says_nothing(self) -> None:
        bench = bench_with(1)
        bench.submit(C, [Row(result=True)])
        for _ in range(5):
            bench.say(W1, WorkerLeaves())
            bench.down(W1)
            assert not bench.core.graph.sessions[1].crashes
            bench.worker(W1)
        assert bench.node(0).state == states.ASSIGNED

    def test_a_worker_that_comes_back_takes_the_suspicion_with_it(self) -> None:
        bench = bench_with(0)
        bench.submit(C, [Row(result=True)])
        worker = bench.worker(W1).one(W1, WorkerAccepted).worker
        for link in (W2, W3, W1, W2, W3):
            bench.down(link)
            bench.down(W1)
            register = RegisterWorker("w", 1, [], "host", link, "", ["t/work"], 0, (0, 1, worker))
            worker = _register(bench, link, register).one(link, WorkerAccepted).worker
            assert not bench.core.graph.sessions[1].crashes
            bench.down(link)

    def test_its_old_link_is_closed_where_nobody_has_missed_it(self) -> None:
        bench = bench_with(0)
        bench.submit(C, [Row(result=True)])
        worker = bench.worker(W1).one(W1, WorkerAccepted).worker
        said = _register(bench, W2, RegisterWorker("w11", 1, [], "host", 2, "", ["t/work"], 0, (0, 1, worker)))
        assert W1 in said.closed
        assert said.numbers(W2) == [0]

    def test_a_worker_that_comes_back_before_it_is_missed_has_lost_nothing_by_it(self) -> None:
        bench = bench_with(0)
        bench.submit(C, [Row(result=True)])
        for _ in range(2):
            bench.worker(W1)
            bench.down(W1)
        worker = bench.worker(W1).one(W1, WorkerAccepted).worker  # has it on trial
        said = _register(bench, W2, RegisterWorker("w11", 1, [], "host", 2, "", ["t/work"], 0, (0, 1, worker)))
        assert not errors(said)
        assert said.numbers(W2) == [0]

    def test_a_task_on_trial_whose_type_nobody_has_fails(self) -> None:
        bench = bench_with(0)
        bench.submit(C, [Row(result=True, symbol="own/x")])
        for _ in range(2):
            bench.worker(W1, symbols=["own/x"])
            bench.down(W1)
        assert "unknown task type" in errors(bench.worker(W1))[0]

    def test_the_limit_is_the_servers(self) -> None:
        bench = bench_with(0)
        bench.core._crashes = Crashes(bench.core.graph, 0)
        bench.submit(C, [Row(result=True)])
        for _ in range(10):
            assert self.crash(bench, W1).numbers(W1) == [0] or bench.node(0).state == states.ASSIGNED
        assert not bench.core.graph.sessions[1].crashes

    def test_a_busy_worker_is_kept_for_a_task_on_trial(self) -> None:
        bench = bench_with(0)
        bench.submit(C, [Row(result=True)])
        for _ in range(2):
            bench.worker(W1)
            bench.down(W1)
        assert list(bench.core.graph.sessions[1].on_trial) == [bench.node(0)]
        bench.client(2)
        bench.worker(W1)  # it gets the suspect at once
        said = bench.finish(W1, RunTask(bench.node(0).id, bench.node(0).attempt, 0, 0, 0, 0, b"", []))
        assert not said.all(C, ResultsFailed)
        assert bench.node(0).state == states.FINISHED


def _register(bench: Bench, link: int, register: RegisterWorker) -> Said:
    return bench.step(LinkUp(link, "worker"), Received(link, [register]))


class TestLeaving:
    def test_a_worker_with_nothing_may_go_at_once(self) -> None:
        bench = bench_with(2)
        assert bench.say(W1, WorkerLeaves()).all(W1, StopWorker)

    def test_it_hands_over_what_only_it_has_and_somebody_needs(self) -> None:
        bench = bench_with(1, cpus=3)
        for task in bench.submit(C, [Row(result=True), Row(), Row([1], result=True)]).tasks(W1):
            bench.finish(W1, task)
        bench.worker(W2)
        said = bench.say(W1, WorkerLeaves())
        take = said.one(W2, TakeObjects)
        assert [located.object for located in take.objects] == ids(0, 2)
        assert take.peers[0].name == "w11"
        assert not said.all(W1, StopWorker)
        assert not bench.say(W2, ObjectsHeld(numbers(*ids(0)))).all(W1, StopWorker)
        assert bench.say(W2, ObjectsHeld(numbers(*ids(2)))).all(W1, StopWorker)
        bench.down(W1)
        assert bench.node(0).state == bench.node(2).state == states.FINISHED

    def test_it_gets_no_more_tasks_and_what_it_finishes_is_handed_over_too(self) -> None:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True)]).tasks(W1)
        bench.worker(W2)
        bench.say(W1, WorkerLeaves())
        assert bench.submit(C, [Row(result=True)], first=1).numbers(W2) == [1]
        said = bench.finish(W1, task)
        assert [located.object for located in said.one(W2, TakeObjects).objects] == ids(0)
        bench.say(W2, ObjectsHeld(numbers(*ids(0))))
        assert bench.node(0).holders()[-1].name == "w12"

    def test_what_it_gives_back_is_run_elsewhere_and_counts_for_nothing(self) -> None:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True)]).tasks(W1)
        bench.say(W1, WorkerLeaves())
        said = bench.say(W1, TasksGivenBack(numbers(task.task), numbers(task.attempt), False))
        assert said.all(W1, StopWorker)
        assert bench.worker(W2).numbers(W2) == [0]
        assert not bench.core.graph.sessions[1].crashes

    def ready(self) -> Bench:
        """A result at two workers, a third one that has nothing."""
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True)]).tasks(W1)
        bench.finish(W1, task)
        bench.worker(W2)
        bench.say(W2, ObjectsHeld(numbers(task.task)))
        bench.worker(W3)
        return bench

    def test_a_copy_at_a_worker_that_leaves_too_is_none(self) -> None:
        bench = self.ready()
        assert bench.say(W1, WorkerLeaves()).all(W1, StopWorker)
        said = bench.say(W2, WorkerLeaves())
        assert said.one(W3, TakeObjects)
        assert not said.all(W2, StopWorker)
        assert bench.say(W3, ObjectsHeld(numbers(*ids(0)))).all(W2, StopWorker)

    def test_another_takes_what_one_cannot_take_or_is_gone_with(self) -> None:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True)]).tasks(W1)
        bench.finish(W1, task)
        bench.worker(W2)
        assert bench.say(W1, WorkerLeaves()).one(W2, TakeObjects)
        bench.worker(W3)
        assert bench.say(W2, NotTaken(numbers(task.task))).one(W3, TakeObjects)
        assert bench.down(W3).one(W2, TakeObjects)
        bench.worker(W3)
        assert bench.say(W2, WorkerLeaves()).one(W3, TakeObjects)
        assert bench.say(W3, ObjectsHeld(numbers(task.task))).all(W1, StopWorker)

    def test_with_nobody_there_to_take_its_objects_it_goes_all_the_same(self) -> None:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True)]).tasks(W1)
        bench.finish(W1, task)
        assert bench.say(W1, WorkerLeaves()).all(W1, StopWorker)
        bench.down(W1)
        assert bench.worker(W2).numbers(W2) == [0]


class TestTheEndOfAnAllocation:
    def test_a_task_that_would_not_be_done_in_time_is_not_sent(self) -> None:
        bench = Bench()
        bench.client(C)
        _register(bench, W1, RegisterWorker("w", 1, [], "host", 1, "", ["t/work"], 10_000, (0, 0, 0)))
        said = bench.submit(C, [Row(result=True, time_limit_ms=60_000), Row(result=True, time_limit_ms=5_000)])
        assert said.numbers(W1) == [1]
        bench.finish(W1, *said.tasks(W1))
        assert bench.worker(W2).numbers(W2) == [0]

    def test_tasks_that_are_too_long_do_not_hold_up_others_of_their_line(self) -> None:
        bench = Bench()
        bench.client(C)
        _register(bench, W1, RegisterWorker("w", 1, [], "host", 1, "", ["t/work"], 10_000, (0, 0, 0)))
        rows = [Row(result=True, time_limit_ms=60_000, priority=i % 2) for i in range(100)]
        said = bench.submit(C, [*rows, Row(result=True, time_limit_ms=5_000), Row(result=True)])
        assert set(said.numbers(W1)) < {100, 101}

    def test_limits_of_their_own_do_not_make_kinds_of_their_own(self) -> None:
        bench = bench_with(1)
        rows = [Row(result=True, time_limit_ms=60_000 + i) for i in range(2_000)]
        (task,) = bench.submit(C, rows).tasks(W1)
        assert task.time_limit_ms == 60_000
        assert len(bench.core._kinds._kinds) < 5
        assert len(bench.finish(W1, task).tasks(W1)) == 2

    def test_its_length_is_what_such_tasks_took(self) -> None:
        bench = bench_with(1)
        said = bench.submit(C, [Row(result=True)])
        bench.step(after_s=20)
        bench.finish(W1, *said.tasks(W1), duration_us=20_000_000)
        bench.down(W1)
        bench.release(C, 0)
        _register(bench, W2, RegisterWorker("w", 1, [], "host", 1, "", ["t/work"], 10_000, (0, 0, 0)))
        assert not bench.submit(C, [Row(result=True)], first=1).numbers(W2)
        assert bench.worker(W1).numbers(W1) == [1]


class TestMemory:
    def test_over_its_budget_a_worker_gets_what_takes_data_in(self) -> None:
        bench = bench_with(1)
        rows = [Row(), Row([0], result=True), *[Row(result=True) for _ in range(3)]]
        said = bench.submit(C, rows)
        made = next(task for task in said.tasks(W1) if task.task == ids(0)[0])
        bench.say(W1, WorkerCondition(True, False))
        said = bench.finish(W1, made, size_bytes=LARGE, duration_us=50_000)
        assert 1 in said.numbers(W1) or bench.node(1).state == states.ASSIGNED
        assert not {2, 3, 4} & set(said.numbers(W1))

    def test_with_nothing_else_to_do_it_makes_data_all_the_same(self) -> None:
        bench = bench_with(1)
        bench.say(W1, WorkerCondition(True, False))
        said = bench.submit(C, [Row(result=True), Row(result=True)])
        assert said.numbers(W1) == [0]
        assert bench.finish(W1, *said.tasks(W1), size_bytes=LARGE).numbers(W1) == [1]

    def test_what_waits_there_is_asked_back(self) -> None:
        bench = bench_with(1)
        first = bench.submit(C, [Row(result=True, label="m") for _ in range(40)]).tasks(W1)
        while len(first) < 3:
            first = bench.finish(W1, *first).tasks(W1)
        assert bench.say(W1, WorkerCondition(True, False)).one(W1, GiveBack).count == len(first) - 1

    def test_a_worker_without_room_on_its_disk_is_passed_over(self) -> None:
        bench = bench_with(1)
        bench.say(W1, WorkerCondition(False, True))
        assert not bench.submit(C, [Row(result=True)]).numbers(W1)
        assert bench.core.scheduler.full_disks.all_wait  # which the server's log says
        assert bench.say(W1, WorkerCondition(False, False)).numbers(W1) == [0]

    def test_where_all_disks_are_full_what_makes_room_runs_one_by_one(self) -> None:
        bench = bench_with(1, cpus=4)
        rows = [Row(), Row(), Row([0], result=True), Row([1], result=True), Row(result=True)]
        *made, other, ahead = bench.submit(C, rows).tasks(W1)
        bench.say(W1, WorkerCondition(False, True))
        given = TasksGivenBack(numbers(other.task, ahead.task), numbers(other.attempt, ahead.attempt), True)
        assert not bench.say(W1, given).to
        assert not bench.finish(W1, *made, size_bytes=LARGE).numbers(W1)
        assert not bench.step(after_s=4.9).to
        (first,) = bench.step(after_s=0.2).tasks(W1)
        assert first.task in ids(2, 3)
        assert not bench.finish(W1, first).numbers(W1)
        assert len(bench.step(after_s=5.1).tasks(W1)) == 1
        assert not bench.step(after_s=20).tasks(W1)

    def test_beside_a_worker_that_cannot_run_them(self) -> None:
        bench = Bench()
        bench.client(C)
        bench.worker(W1, cpus=4)
        (made,) = bench.submit(C, [Row(cpus=4), Row([0], result=True, cpus=4)]).tasks(W1)
        bench.worker(W2, cpus=1)
        bench.say(W1, WorkerCondition(False, True))
        assert not bench.finish(W1, made, size_bytes=LARGE).to.get(W1)
        assert bench.core.scheduler.full_disks.all_wait
        assert bench.step(after_s=5.1).numbers(W1) == [1]


class TestInputsThatDoNotCome:
    def bench(self) -> Bench:
        """Task 0 has been made at W1, task 1 takes its object at W2."""
        bench = bench_with(0)
        bench.worker(W2, symbols=["own/x"])
        bench.worker(W1)
        (made,) = bench.submit(C, [Row(result=True), Row([0], result=True, symbol="own/x")]).tasks(W1)
        assert bench.finish(W1, made).numbers(W2) == [1]
        return bench

    def give_back(self, bench: Bench) -> Said:
        node = bench.node(1)
        return bench.say(W2, TasksGivenBack(numbers(node.id), numbers(node.attempt), False))

    def test_they_are_made_again_in_the_end(self) -> None:
        bench = self.bench()
        for _ in range(15):
            assert not self.give_back(bench).numbers(W1)
        assert self.give_back(bench).numbers(W1) == [0]

    def test_but_not_where_how_they_were_made_is_forgotten(self) -> None:
        bench = self.bench()
        bench.node(0).flags |= CUT
        for _ in range(40):
            assert not self.give_back(bench).numbers(W1)
        assert bench.node(0).state == states.FINISHED


class TestRelaysToWorkers:
    def ready(self) -> tuple[Bench, int]:
        bench = bench_with(1)
        (task,) = bench.submit(C, [Row(result=True)]).tasks(W1)
        bench.finish(W1, task)
        bench.worker(W2)
        return bench, task.task

    def test_an_object_goes_through_the_server(self) -> None:
        bench, object_id = self.ready()
        assert bench.say(W2, RelayWanted(numbers(object_id))).one(W1, RelayObject).object == object_id
        piece = RelayPiece(object_id, b"h", b"data", True, "")
        assert bench.say(W1, piece).one(W2, RelayedObject) == RelayedObject(object_id, b"h", b"data", True, "")
        assert not bench.core.relays

    def test_who_asks_meanwhile_comes_next(self) -> None:
        bench, object_id = self.ready()
        bench.worker(W3)
        bench.say(W2, RelayWanted(numbers(object_id)))
        assert not bench.say(W3, RelayWanted(numbers(object_id))).to
        said = bench.say(W1, RelayPiece(object_id, b"", b"data", True, ""))
        assert said.one(W1, RelayObject).object == object_id
        assert bench.say(W1, RelayPiece(object_id, b"", b"data", True, "")).one(W3, RelayedObject).last

    def test_what_nobody_has_is_said(self) -> None:
        bench, object_id = self.ready()
        bench.release(C, 0)
        assert bench.say(W2, RelayWanted(numbers(object_id))).one(W2, RelayedObject).error

    def test_a_lost_source_is_said(self) -> None:
        bench, object_id = self.ready()
        bench.say(W2, RelayWanted(numbers(object_id)))
        assert bench.down(W1).one(W2, RelayedObject).error

    def test_a_lost_asker_is_forgotten(self) -> None:
        bench, object_id = self.ready()
        bench.say(W2, RelayWanted(numbers(object_id)))
        bench.down(W2)
        assert not bench.say(W1, RelayPiece(object_id, b"", b"data", True, "")).to

    def relaying(self) -> tuple[Bench, int]:
        bench, object_id = self.ready()
        asked = bench.say(W2, RelayWanted(numbers(object_id))).one(W1, RelayObject)
        assert asked == RelayObject(object_id, RELAY_PIECES, go_on=False)
        return bench, object_id

    def pieces(self, bench: Bench, object_id: int) -> list[RelayObject]:
        """As many as may come; what is said to the holder then."""
        piece = RelayPiece(object_id, b"", b"data", False, "")
        assert not bench.say(W1, *[piece] * (RELAY_PIECES - 1)).all(W1, RelayObject)
        return bench.say(W1, piece).all(W1, RelayObject)

    def test_a_holder_goes_on_when_it_is_told_to(self) -> None:
        bench, object_id = self.relaying()
        for _ in range(3):
            assert self.pieces(bench, object_id) == [RelayObject(object_id, RELAY_PIECES, go_on=True)]
        assert not bench.say(W1, RelayPiece(object_id, b"", b"data", True, "")).all(W1, RelayObject)

    def test_a_holder_waits_while_the_link_of_who_asked_is_full(self) -> None:
        bench, object_id = self.relaying()
        bench.step(LinkFull(W2))
        assert not self.pieces(bench, object_id)
        assert not bench.step(LinkFull(C)).to
        assert not bench.step(LinkDrained(C)).all(W1, RelayObject)
        assert bench.step(LinkDrained(W2)).one(W1, RelayObject) == RelayObject(object_id, RELAY_PIECES, go_on=True)
        assert not bench.step(LinkFull(W2), LinkDrained(W2)).all(W1, RelayObject)  # it has not sent these yet

    def test_a_holder_does_not_wait_for_who_is_gone(self) -> None:
        bench, object_id = self.relaying()
        bench.step(LinkFull(W2))
        assert not self.pieces(bench, object_id)
        assert bench.down(W2).one(W1, RelayObject).go_on
        assert self.pieces(bench, object_id)

    def test_a_holder_that_is_done_is_not_told_to_go_on(self) -> None:
        bench, object_id = self.relaying()
        bench.step(LinkFull(W2))
        assert not self.pieces(bench, object_id)
        bench.say(W1, RelayPiece(object_id, b"", b"data", True, ""))  # it needs no leave for the last one
        assert not bench.step(LinkDrained(W2)).all(W1, RelayObject)

    def test_a_holder_that_does_not_wait_breaks_the_protocol(self) -> None:
        bench, object_id = self.relaying()
        bench.step(LinkFull(W2))
        self.pieces(bench, object_id)
        assert "more of an object" in bench.say(W1, RelayPiece(object_id, b"", b"data", False, "")).closed[W1]


class TestLineage:
    def test_above_its_limit_the_oldest_are_forgotten(self) -> None:
        bench = bench_with(1)
        bench.core.graph.lineage._limit_bytes = 3_000
        for number in range(4):  # each takes the last one's result
            inputs = [number - 1] if number else []
            said = bench.submit(C, [Row(inputs, result=True, config=b"x" * 1_000)], first=number)
            bench.finish(W1, *said.tasks(W1))
        bench.release(C, 0, 1, 2)
        assert bench.core.graph.sessions[1].spec_bytes < 4_000
        bench.down(W1)
        said = bench.step()
        story = bench.core.graph.sessions[1].failures[3].error
        assert "cannot be made again" in story
        assert "--lineage-limit" in story

    def test_below_it_everything_is_made_again(self) -> None:
        bench = bench_with(1)
        said = bench.submit(C, [Row(), Row([0], result=True)])
        for task in said.tasks(W1):
            bench.finish(W1, task)
        bench.down(W1)
        assert bench.worker(W1).numbers(W1) == [0, 1]
