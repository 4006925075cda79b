"""What a worker does about limits, partitions, its memory, and when it has to leave."""

import pytest
from core_builders import listed, numbers
from worker_builders import FUNCTION, INLINE, PEERS, PROGRAM, SMALL, Bench, S, accepted, at, ids, task

from loom.core.worker_events import (
    Condition,
    Drain,
    Drop,
    ExecutorLost,
    Failed,
    Fetch,
    Fetched,
    FetchFailed,
    OverMemory,
    ReadBackDone,
    ServerLost,
    StillRunning,
    Stop,
    TakePiece,
)
from loom.core.worker_tasks import KillExecutor, ReadBack, StopProgram
from loom.messages import (
    DropObjects,
    ObjectsHeld,
    RelayedObject,
    RelayWanted,
    StopWorker,
    TakeObjects,
    TasksFailed,
    WorkerCondition,
    WorkerLeaves,
)


@pytest.fixture
def bench() -> Bench:
    return Bench()


class TestTimeLimits:
    def test_a_program_is_stopped_and_fails_when_it_is_gone(self, bench: Bench) -> None:
        bench.run(task(0, PROGRAM, limit_ms=500))
        assert bench.core.next_deadline() == bench.now + 0.5
        assert not bench.step(after_s=0.4).effects
        why = "time limit of 0.5 s exceeded"
        assert bench.step(after_s=0.1).one(StopProgram) == StopProgram(S, 1, why)
        assert not bench.step(after_s=0.1).effects
        (failed,) = bench.step(Failed(S, 1, why)).told(TasksFailed)
        assert failed.tasks[0].error == why

    def test_one_that_is_done_in_time_is_left_alone(self, bench: Bench) -> None:
        bench.run(task(0, PROGRAM, limit_ms=500))
        bench.done(0)
        assert not bench.step(after_s=10).all(StopProgram)

    def test_a_functions_time_is_that_since_it_began(self, bench: Bench) -> None:
        bench.run(task(0, FUNCTION, limit_ms=2_000))
        kill = bench.step(after_s=2).one(KillExecutor)
        assert kill == KillExecutor(0, (S, 1), 2.0, "time limit of 2 s exceeded")
        bench.step(StillRunning(0, (S, 1), 0.3))
        assert not bench.step(after_s=0.2).all(KillExecutor)
        assert bench.step(after_s=0.2).one(KillExecutor) == kill
        (failed,) = bench.step(ExecutorLost(0, (S, 1), kill.why)).told(TasksFailed)
        assert failed.tasks[0].error == kill.why

    def test_what_waits_behind_another_has_not_begun(self, bench: Bench) -> None:
        for number in range(20):
            bench.run(task(number, FUNCTION, limit_ms=2_000))
            bench.done(number)
        bench.run(task(30, FUNCTION, limit_ms=2_000), task(31, FUNCTION, limit_ms=2_000))
        assert bench.step(after_s=1.9).all(KillExecutor) == []
        bench.done(30)
        assert bench.step(after_s=1.9).all(KillExecutor) == []
        assert bench.step(after_s=0.2).one(KillExecutor).run == (S | 31, 1)


class TestMemory:
    def test_a_function_over_its_request_loses_its_process(self, bench: Bench) -> None:
        bench.run(task(0, SMALL))
        kill = bench.step(OverMemory(S, 1, 130 << 20)).one(KillExecutor)
        assert kill == KillExecutor(0, (S, 1), 0.0, "memory limit of 100 MiB exceeded: peak 130 MiB")

    def test_one_that_is_over_is_not_stopped(self, bench: Bench) -> None:
        bench.run(task(0, SMALL))
        bench.done(0)
        assert not bench.step(OverMemory(S, 1, 130 << 20)).effects

    def test_the_server_hears_how_the_store_is(self, bench: Bench) -> None:
        (said,) = bench.step(Condition(True, False)).told(WorkerCondition)
        assert said == WorkerCondition(True, False)
        bench.step(ServerLost())
        assert bench.say(accepted(2)).told(WorkerCondition) == [said]


class TestPartitions:
    located = (at(1, 7, 8, size_bytes=100),)

    def unreachable(self, bench: Bench) -> None:
        bench.run(task(0, FUNCTION, 1), at=self.located)
        assert bench.step(FetchFailed(S | 1, True)).one(Fetch).peer.worker == 8
        (wanted,) = bench.step(FetchFailed(S | 1, False)).told(RelayWanted)
        assert listed(wanted.objects) == ids(1)

    def test_what_cannot_be_reached_comes_through_the_server(self, bench: Bench) -> None:
        self.unreachable(bench)
        first = bench.say(RelayedObject(S | 1, b"h", b"da", False, "")).one(TakePiece)
        assert first == TakePiece(S | 1, b"h", b"da", False, True)
        last = bench.say(RelayedObject(S | 1, b"h", b"ta", True, "")).one(TakePiece)
        assert last == TakePiece(S | 1, b"h", b"ta", True, False)
        assert bench.step(Fetched(S | 1, 100)).started() == ids(0)
        assert listed(bench.told(ObjectsHeld)[0].objects) == ids(1)

    def test_where_the_server_cannot_bring_it_the_task_goes_back(self, bench: Bench) -> None:
        self.unreachable(bench)
        assert bench.say(RelayedObject(S | 1, b"", b"", True, "not there")).given() == ids(0)

    def test_a_holder_that_has_it_no_more_is_no_reason_for_a_relay(self, bench: Bench) -> None:
        bench.run(task(0, FUNCTION, 1), at=self.located)
        bench.step(FetchFailed(S | 1, False))
        assert bench.step(FetchFailed(S | 1, False)).given() == ids(0)

    def test_another_stream_begins_when_the_last_has_ended(self, bench: Bench) -> None:
        self.unreachable(bench)
        bench.say(RelayedObject(S | 1, b"h", b"da", False, ""))
        assert bench.say(DropObjects(numbers(S | 1))).one(Drop).objects == ids(1)
        bench.run(task(2, FUNCTION, 1), at=(at(1, 7, size_bytes=100),))
        assert not bench.step(FetchFailed(S | 1, True)).told(RelayWanted)
        assert not bench.say(RelayedObject(S | 1, b"h", b"old", False, "")).effects
        said = bench.say(RelayedObject(S | 1, b"h", b"old", True, ""))
        assert listed(said.told(RelayWanted)[0].objects) == ids(1)
        assert bench.say(RelayedObject(S | 1, b"h", b"new", True, "")).one(TakePiece).first


class TestLeaving:
    def test_what_has_not_started_goes_back_and_what_runs_goes_on(self, bench: Bench) -> None:
        bench.run(task(0, PROGRAM), task(1, PROGRAM), task(2, PROGRAM, 0))
        bench.step(Drain(bench.now + 10))
        assert bench.told(WorkerLeaves)
        assert sorted(bench.given()) == ids(1, 2)
        assert bench.done(0).finished() == ids(0)
        assert bench.say(StopWorker()).one(Stop)

    def test_an_executors_queue_is_read_back(self, bench: Bench) -> None:
        for number in range(20):
            bench.run(task(number, FUNCTION))
            bench.done(number)
        bench.run(task(30, FUNCTION), task(31, FUNCTION), task(32, FUNCTION))
        assert bench.step(Drain(bench.now + 10)).one(ReadBack) == ReadBack(0, 3)
        assert bench.step(ReadBackDone(0, [(S | 31, 1), (S | 32, 1)])).given() == ids(31, 32)

    def test_what_crossed_goes_back_at_once(self, bench: Bench) -> None:
        bench.step(Drain(bench.now + 10))
        assert bench.run(task(0, FUNCTION)).given() == ids(0)

    def test_at_the_end_of_its_time_what_runs_is_stopped_and_goes_back(self, bench: Bench) -> None:
        bench.run(task(0, PROGRAM))
        bench.step(Drain(bench.now + 10))
        assert bench.core.next_deadline() == bench.now + 10
        bench.step(after_s=10)
        assert bench.one(StopProgram).why == "cancelled"
        assert bench.given() == ids(0)
        assert not bench.step(Failed(S, 1, "cancelled")).told(TasksFailed)

    def test_the_earlier_of_two_times_counts(self, bench: Bench) -> None:
        bench.run(task(0, PROGRAM))
        bench.step(Drain(bench.now + 10))
        bench.step(Drain(bench.now + 1))
        assert bench.step(after_s=1).given() == ids(0)

    def test_without_a_server_there_is_nothing_to_wait_for(self, bench: Bench) -> None:
        bench.step(Drain(bench.now + 10))
        assert bench.step(ServerLost()).one(Stop)

    def test_it_takes_what_another_leaves_behind(self, bench: Bench) -> None:
        bench.say(TakeObjects(PEERS[:1], [at(5, 7, size_bytes=100)]))
        assert bench.one(Fetch).objects == ids(5)
        assert listed(bench.step(Fetched(S | 5, 100)).told(ObjectsHeld)[0].objects) == ids(5)

    def test_a_builtin_in_the_loop_is_done_before(self, bench: Bench) -> None:
        bench.run(task(0, INLINE))
        assert bench.step(Drain(bench.now + 10)).given() == []
        assert bench.done(0).finished() == ids(0)
