"""What the server does about failures, lost workers, and workers that leave or are in need."""

from core_builders import Bench, Row, Said, ids, listed, numbers

from loom.core import states
from loom.core.crashes import Crashes
from loom.core.events import LinkUp, Received
from loom.limits import SMALL_OBJECT_BYTES
from loom.messages import (
    CancelResults,
    CancelTasks,
    DropObjects,
    FailedTask,
    GiveBack,
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
            register = RegisterWorker("w", 1, [], "host", link, "", ["t/work"], 0, (1, worker))
            worker = _register(bench, link, register).one(link, WorkerAccepted).worker
            assert not bench.core.graph.sessions[1].crashes
            bench.down(link)

    def test_its_old_link_is_closed_where_nobody_has_missed_it(self) -> None:
        bench = bench_with(0)
        bench.submit(C, [Row(result=True)])
        worker = bench.worker(W1).one(W1, WorkerAccepted).worker
        said = _register(bench, W2, RegisterWorker("w", 1, [], "host", 2, "", ["t/work"], 0, (1, worker)))
        assert W1 in said.closed
        assert said.numbers(W2) == [0]

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
        said = bench.finish(W1, RunTask(bench.node(0).id, bench.node(0).attempt, 0, 0, 0, b"", []))
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
        _register(bench, W1, RegisterWorker("w", 1, [], "host", 1, "", ["t/work"], 10_000, (0, 0)))
        said = bench.submit(C, [Row(result=True, time_limit_ms=60_000), Row(result=True, time_limit_ms=5_000)])
        assert said.numbers(W1) == [1]
        bench.finish(W1, *said.tasks(W1))
        assert bench.worker(W2).numbers(W2) == [0]

    def test_its_length_is_what_such_tasks_took(self) -> None:
        bench = bench_with(1)
        said = bench.submit(C, [Row(result=True)])
        bench.step(after_s=20)
        bench.finish(W1, *said.tasks(W1), duration_us=20_000_000)
        bench.down(W1)
        bench.release(C, 0)
        _register(bench, W2, RegisterWorker("w", 1, [], "host", 1, "", ["t/work"], 10_000, (0, 0)))
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
        assert bench.core.scheduler.disks_full  # which the server's log says
        assert bench.say(W1, WorkerCondition(False, False)).numbers(W1) == [0]


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
